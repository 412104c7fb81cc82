//! How precisely each operator computes: upstream's compute kernel configs, and what it found out about them.

use crate::types::{ComputeKernelConfig, MathFidelity};

const fn config(
    math_fidelity: MathFidelity,
    math_approx_mode: bool,
    fp32: bool,
    l1: bool,
) -> ComputeKernelConfig {
    ComputeKernelConfig {
        math_fidelity,
        math_approx_mode,
        fp32_dest_acc_en: fp32,
        packer_l1_acc: l1,
        dst_full_sync_en: None,
    }
}

/// Products with bfloat8_b weights of the attention: one pass covers the 7 bits of a weight, sums are in 32 bits.
pub const ATTENTION_PRODUCT: ComputeKernelConfig = config(MathFidelity::LoFi, true, true, true);
/// Products with bfloat8_b weights of MLPs, head and gate: two passes, after answers were wrong with one (PR #39794).
pub const PRODUCT: ComputeKernelConfig = config(MathFidelity::HiFi2, true, true, true);
/// Products with bfloat4_b weights, whose 3 bits one pass covers, and of MTP's `eh_proj` (upstream's `LOFI`).
pub const LOFI: ComputeKernelConfig = config(MathFidelity::LoFi, false, false, true);
/// Sums over devices: all bits, in 32 bits.
pub const SUM: ComputeKernelConfig = config(MathFidelity::HiFi4, false, true, true);
/// Norms: all bits (PR #39794), sums in 16 bits.
pub const NORM: ComputeKernelConfig = config(MathFidelity::HiFi4, false, false, true);
/// Attention: all bits, sums in 16 bits, since it needs the registers.
pub const ATTENTION: ComputeKernelConfig = config(MathFidelity::HiFi4, false, false, false);

/// Tiles that the registers hold of a result: 16 bits for each of 8, half of that where sums are kept in 32 bits. The other
/// half is packed from meanwhile.
pub fn register_tiles(config: &ComputeKernelConfig) -> u32 {
    let half = if config.fp32_dest_acc_en { 4 } else { 8 };
    if config.dst_full_sync_en == Some(true) { 2 * half } else { half }
}
