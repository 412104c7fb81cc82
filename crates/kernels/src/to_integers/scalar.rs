//! The specification.

use super::SMALLEST;
use crate::integers::{BLOCK, LIMIT};
use crate::{IntegerMut, MatrixRef};

/// Every group of `x`: its largest magnitude becomes the limit of the integers, the rest is rounded to the nearest
/// step, ties to even. A group that has a value that is not finite gets NaN as scale and sums, so that the products
/// are NaN, too.
pub(crate) fn quantize(x: MatrixRef<'_>, mut out: IntegerMut<'_>) {
    let group = out.group();
    for row in 0..x.rows() {
        let out = out.row_mut(row);
        for (number, x) in x.row(row).chunks(group).enumerate() {
            let (factor, scale) = factor_and_scale(x);
            for (block, x) in (number * group / BLOCK..).zip(x.chunks(BLOCK)) {
                let sum = quantize_block(x, factor, &mut out.blocks[block]);
                (out.scales[block], out.sums[block]) = (scale, sum as f32 * scale);
            }
        }
    }
}

/// What makes integers of a group, and what makes it of them again.
fn factor_and_scale(group: &[f32]) -> (f32, f32) {
    let limit = f32::from(LIMIT);
    let most = group.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    match group.iter().all(|x| x.is_finite()) {
        false => (0.0, f32::NAN),
        true if most < SMALLEST => (0.0, 0.0),
        true => (limit / most, most / limit),
    }
}

/// Gives the sum of the integers.
fn quantize_block(x: &[f32], factor: f32, out: &mut [i8; BLOCK]) -> i32 {
    let mut sum = 0;
    for (column, out) in out.iter_mut().enumerate() {
        *out = match x.get(column) {
            Some(x) if factor > 0.0 => (x * factor).round_ties_even() as i8,
            _ => 0,
        };
        sum += i32::from(*out);
    }
    sum
}
