//! How precisely a kernel computes.

use super::MathFidelity;
use serde::{Deserialize, Serialize};

/// `WormholeComputeKernelConfig`. What JSON leaves out has the default of TT-NN's `init_device_compute_kernel_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeKernelConfig {
    /// Passes of a product.
    pub math_fidelity: MathFidelity,
    /// Whether exponentials and the like may be approximate.
    pub math_approx_mode: bool,
    /// Whether sums are kept in 32 bits; halves the tiles that the registers hold.
    pub fp32_dest_acc_en: bool,
    /// Whether partial sums are added up in L1 as they are packed.
    pub packer_l1_acc: bool,
    /// Whether all registers are used at once, without a second half to pack from meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_full_sync_en: Option<bool>,
}

impl Default for ComputeKernelConfig {
    fn default() -> Self {
        Self {
            math_fidelity: MathFidelity::LoFi,
            math_approx_mode: true,
            fp32_dest_acc_en: false,
            packer_l1_acc: false,
            dst_full_sync_en: None,
        }
    }
}
