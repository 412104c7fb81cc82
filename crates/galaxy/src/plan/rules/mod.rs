//! The rules by which configs are made, each with the reason for it: what the hardware has, what TT-NN checks, or what
//! upstream found out.

pub mod chunks;
pub mod collectives;
pub mod grids;
pub mod kernels;
pub mod matmul;
pub mod norms;
pub mod placement;

use crate::types::DataType;

/// Bytes of a core's L1 that tensors and circular buffers may take (`get_max_worker_l1_unreserved_size` of 0.81.1 on a
/// Galaxy; where memory is set aside for small buffers it is less by that).
pub const L1_BYTES: u64 = 1_463_968;
/// Bytes of L1 that a product's circular buffers may take by these rules: half, so that its factors, its result and what
/// other steps have left find place beside them.
pub const BUFFER_BYTES: u64 = L1_BYTES / 2;
/// Links of a chip to each neighbour in a Galaxy. A fifth is refused.
pub const LINKS: u32 = 4;

/// Bytes of a tile of 32x32 elements: block floats have an exponent for each 16 of them.
pub fn tile_bytes(dtype: DataType) -> u64 {
    match dtype {
        DataType::Float32 | DataType::Uint32 | DataType::Int32 => 4096,
        DataType::Bfloat16 | DataType::Uint16 => 2048,
        DataType::Uint8 => 1024,
        DataType::Bfloat8B => 1088,
        DataType::Bfloat4B => 576,
    }
}

/// Bytes of an element in rows.
///
/// # Panics
/// Of block floats, whose elements share an exponent with others of their tile: they do not lie in rows.
pub fn element_bytes(dtype: DataType) -> u64 {
    dtype.element_bytes().unwrap_or_else(|| panic!("{dtype} in rows")) as u64
}

/// The largest divisor of a number that is not above a limit.
///
/// # Panics
/// If one of them is 0.
pub fn largest_divisor(number: u32, limit: u32) -> u32 {
    assert!(number > 0 && limit > 0, "a divisor of {number} up to {limit}");
    (1..=limit.min(number)).rev().find(|part| number.is_multiple_of(*part)).expect("1 divides")
}
