//! The specification.

use super::SMALLEST;
use crate::integers::{BLOCK, BlocksMut};
use crate::{IntegerMut, IntegerWidth, MatrixRef};

/// Every block of `x`: its largest magnitude becomes the limit of the integers, the rest is rounded to the nearest
/// step, ties to even. A block that has a value that is not finite gets NaN as scale and sum, so that the products
/// are NaN, too.
pub(crate) fn quantize(x: MatrixRef<'_>, mut out: IntegerMut<'_>) {
    for row in 0..x.rows() {
        let mut out = out.row_mut(row);
        for (number, x) in x.row(row).chunks(BLOCK).enumerate() {
            let (scale, sum) = match &mut out.blocks {
                BlocksMut::Int8(blocks) => {
                    quantize_block(x, IntegerWidth::Int8.limit().into(), |column, value| {
                        blocks[number][column] = value as i8;
                    })
                }
                BlocksMut::Int16(blocks) => {
                    quantize_block(x, IntegerWidth::Int16.limit().into(), |column, value| {
                        blocks[number][column] = value as i16;
                    })
                }
            };
            (out.scales[number], out.sums[number]) = (scale, sum);
        }
    }
}

/// Gives each of the block's 32 integers to `set`; the scale, and the sum of what the integers stand for.
fn quantize_block(x: &[f32], limit: f32, mut set: impl FnMut(usize, i32)) -> (f32, f32) {
    let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let finite = x.iter().all(|x| x.is_finite());
    let factor = if finite && most >= SMALLEST { limit / most } else { 0.0 };
    let mut sum = 0;
    for column in 0..BLOCK {
        let value = match x.get(column) {
            Some(x) if factor > 0.0 => (x * factor).round_ties_even() as i32,
            _ => 0,
        };
        set(column, value);
        sum += value;
    }
    let scale = match factor {
        0.0 if finite => 0.0,
        0.0 => f32::NAN,
        _ => most / limit,
    };
    (scale, sum as f32 * scale)
}
