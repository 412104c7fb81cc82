//! The specification: integers are multiplied and summed exactly over the columns that share scales on both sides, then take
//! those.

use super::{FP8_GROUP, fp8_step};
use crate::integers::BLOCK;
use crate::quantized::{BlockQ4K, BlockQ8_0, Q4K_GROUPS, blocks};
use crate::{Format, IntegerRef, MatrixMut, MatrixView, Order, fp8_e4m3_to_f32};

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`; of FP8, `w` in steps of its group.
pub(crate) fn matmul_integer(_: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, mut out: MatrixMut<'_>) {
    for row in 0..w.rows() {
        for token in 0..x.rows() {
            let product = match w.format() {
                Format::Fp8 => fp8(w, row, x, token),
                Format::Q8_0 => q8_0(w, row, x, token),
                Format::Q4K => q4k(w, row, x, token),
                Format::F32 | Format::Bf16 => unreachable!("{} has no integer product", w.format()),
            };
            out.row_mut(token)[row] = product;
        }
    }
}

fn fp8(w: &MatrixView<'_>, row: usize, x: IntegerRef<'_>, token: usize) -> f32 {
    let (scales, bytes) = (w.row_scales(row), w.row_bytes(row, 0..w.cols()));
    let (x, x_scales) = (x.blocks(token), x.scales(token));
    let mut total = 0.0;
    for block in w.column_blocks(0..w.cols()) {
        let scale = scales.of(block);
        for first in (block.start..block.end).step_by(FP8_GROUP) {
            let bytes = &bytes[first..block.end.min(first + FP8_GROUP)];
            let step = fp8_step(bytes).unwrap_or(f32::NAN);
            let integer = |byte| (fp8_e4m3_to_f32(byte) / step).round_ties_even() as i32;
            let x = x[first / BLOCK..].as_flattened();
            let sum: i32 = bytes.iter().zip(x).map(|(&w, &x)| integer(w) * i32::from(x)).sum();
            total += sum as f32 * (scale * step * x_scales[first / BLOCK]);
        }
    }
    total
}

fn q8_0(w: &MatrixView<'_>, row: usize, x: IntegerRef<'_>, token: usize) -> f32 {
    let weights = blocks::<BlockQ8_0>(w.row_bytes(row, 0..w.cols()));
    let mut total = 0.0;
    for (w, (x, scale)) in weights.iter().zip(x.blocks(token).iter().zip(x.scales(token))) {
        let sum: i32 = w.values.iter().zip(x).map(|(w, x)| i32::from(w.cast_signed()) * i32::from(*x)).sum();
        total += sum as f32 * (w.scale() * scale);
    }
    total
}

fn q4k(w: &MatrixView<'_>, row: usize, x: IntegerRef<'_>, token: usize) -> f32 {
    let weights = blocks::<BlockQ4K>(w.row_bytes(row, 0..w.cols()));
    let (x, scales, sums) = (x.blocks(token), x.scales(token), x.sums(token));
    let mut total = 0.0;
    for (number, w) in weights.iter().enumerate() {
        let (d, dmin) = w.factors();
        for (group, (scale, minimum)) in w.groups().into_iter().enumerate() {
            let at = number * Q4K_GROUPS + group;
            let sum: i32 = w.bits(group).iter().zip(x[at]).map(|(w, x)| i32::from(*w) * i32::from(x)).sum();
            total += (sum * i32::from(scale)) as f32 * (d * scales[at]);
            total -= dmin * f32::from(minimum) * sums[at];
        }
    }
    total
}
