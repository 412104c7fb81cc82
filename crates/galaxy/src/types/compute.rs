//! How precisely a kernel computes.

use super::MathFidelity;
use serde::{Deserialize, Serialize};

/// `WormholeComputeKernelConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_full_sync_en: Option<bool>,
}
