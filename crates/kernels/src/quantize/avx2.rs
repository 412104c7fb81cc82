//! The specification's loops over fixed arrays, compiled for AVX2: eight lanes of the same arithmetic in the same
//! order, so that every byte is the same. FMA is left out on purpose: it rounds otherwise.

use super::scalar;
use crate::Format;

/// `row` in `format`.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn quantize_row(format: Format, row: &[f32], out: &mut [u8]) {
    scalar::quantize(format, row, out);
}
