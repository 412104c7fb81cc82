//! Of `q4_K`, few tokens read each weight once and use it from the register (`stream_q4k`). More tokens lie side by side in
//! lanes: weights of 4 bits are multiplied as they are (`tile_q4k`), those of 8 bits as magnitudes, their signs being the
//! tokens' (`tile_signed`).

pub(super) mod q4k;
pub(super) mod signed;
pub(super) mod stream_q4k;
mod tile_q4k;
mod tile_signed;

use crate::{Format, IntegerRef, MatrixMut, MatrixView, Order};

/// Tokens up to which q4_K is used from the register.
const STREAMED: usize = 4;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul_integer(order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, mut out: MatrixMut<'_>) {
    match w.format() {
        Format::Q4K if order == Order::Few => {
            for first in (0..x.rows()).step_by(STREAMED) {
                let x = x.row_range(first..x.rows().min(first + STREAMED));
                let (some, rest) = out.split_rows_at(x.rows());
                few_q4k(w, x, some);
                out = rest;
            }
        }
        Format::Q4K if order == Order::Fastest && x.rows() <= STREAMED => few_q4k(w, x, out),
        Format::Q4K => tile_q4k::matmul(w, x, out),
        Format::Q8_0 | Format::Fp8 => tile_signed::matmul(w, x, out),
        Format::F32 | Format::Bf16 => unreachable!("{} has no integer product", w.format()),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn few_q4k(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    match x.rows() {
        0 => (),
        1 => stream_q4k::matmul::<1>(w, x, out),
        2 => stream_q4k::matmul::<2>(w, x, out),
        3 => stream_q4k::matmul::<3>(w, x, out),
        STREAMED => stream_q4k::matmul::<STREAMED>(w, x, out),
        more => unreachable!("{more} tokens are for `tile_q4k`"),
    }
}
