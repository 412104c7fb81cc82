//! Tokens lie side by side in lanes of four columns each, which one instruction multiplies with four weights and adds up
//! exactly (`tile`).

mod fill;
mod tile;

use super::{Few, avx2};
use crate::{Format, IntegerRef, MatrixMut, MatrixView, Order};

/// Tokens up to which q4_K is used from the register.
const STREAMED: usize = 4;
/// Lanes cost the same however few are filled: as much as passes of four and of one (measured on Emerald Rapids).
pub(crate) const FEW: Few = Few { q8_0: 4, fp8: 4 };

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub(crate) fn matmul_integer(order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    let few = match order {
        Order::Fastest => x.rows() <= STREAMED,
        Order::Few => true,
        Order::Many => false,
    };
    match w.format() {
        Format::Q4K if few => avx2::matmul_integer(order, w, x, out),
        Format::Q4K => tile::matmul::<true>(w, x, out),
        Format::Q8_0 | Format::Fp8 => tile::matmul::<false>(w, x, out),
        Format::F32 | Format::Bf16 => unreachable!("{} has no integer product", w.format()),
    }
}
