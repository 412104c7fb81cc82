//! The specification.

use super::SMALLEST;
use crate::integers::{BLOCK, LIMIT};
use crate::{IntegerMut, MatrixRef};

/// Every block of `x`: its largest magnitude becomes the limit of the integers, the rest is rounded to the nearest
/// step, ties to even. A block that has a value that is not finite gets NaN as scale and sum, so that the products
/// are NaN, too.
pub(crate) fn quantize(x: MatrixRef<'_>, mut out: IntegerMut<'_>) {
    for row in 0..x.rows() {
        let out = out.row_mut(row);
        for (number, x) in x.row(row).chunks(BLOCK).enumerate() {
            (out.scales[number], out.sums[number]) = quantize_block(x, &mut out.blocks[number]);
        }
    }
}

/// Gives the scale, and the sum of what the integers stand for.
fn quantize_block(x: &[f32], out: &mut [i8; BLOCK]) -> (f32, f32) {
    let limit = f32::from(LIMIT);
    let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let finite = x.iter().all(|x| x.is_finite());
    let factor = if finite && most >= SMALLEST { limit / most } else { 0.0 };
    let mut sum = 0;
    for (column, out) in out.iter_mut().enumerate() {
        *out = match x.get(column) {
            Some(x) if factor > 0.0 => (x * factor).round_ties_even() as i8,
            _ => 0,
        };
        sum += i32::from(*out);
    }
    let scale = match factor {
        0.0 if finite => 0.0,
        0.0 => f32::NAN,
        _ => most / limit,
    };
    (scale, sum as f32 * scale)
}
