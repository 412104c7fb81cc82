//! FP8 weights: blocks of e4m3 elements, each with a scale that multiplies, in a companion tensor.

use super::{Checkpoint, Dtype, RawTensor, TensorInfo};
use crate::{Error, weight::scales_shape};
use dsv3_kernels::fp8_e4m3_to_f32;

/// What the name of a weight's scales adds to the weight's name. It says "inverse" because it undoes the scaling that
/// was applied when the weight was quantised; it multiplies.
const SCALES_SUFFIX: &str = "_scale_inv";

impl Checkpoint {
    /// The block scales of an FP8 weight `[rows, cols]`: F32, `[ceil(rows / block rows), ceil(cols / block columns)]`.
    /// They may lie in another shard than the weight. Reads headers only; see [`validate_scales`] for the values.
    ///
    /// # Errors
    /// If the weight is absent or not an FP8 matrix, or its scales are absent, misshapen or not F32.
    ///
    /// # Panics
    /// If a side of the block is zero.
    pub fn scales(&self, weight_name: &str, block: [usize; 2]) -> Result<RawTensor, Error> {
        assert!(!block.contains(&0), "a block of {block:?} has no elements");
        let weight = self.tensor(weight_name)?.info;
        if weight.dtype != Dtype::F8E4M3 {
            return Err(weight.error(format!("has block scales only as F8_E4M3, got {}", weight.dtype)));
        }
        let &[rows, cols] = &weight.shape[..] else {
            return Err(weight.error(format!("as F8_E4M3 must be a matrix, got shape {:?}", weight.shape)));
        };
        let name = format!("{weight_name}{SCALES_SUFFIX}");
        if self.get(&name).is_none() {
            return Err(weight.error(format!("is F8_E4M3, but its scales {name} are not in the checkpoint")));
        }
        let scales = self.tensor(&name)?;
        if scales.info.dtype != Dtype::F32 {
            return Err(scales.info.error(format!("scales must be F32, got {}", scales.info.dtype)));
        }
        let expected = scales_shape([rows, cols], block);
        if scales.info.shape != expected {
            return Err(scales.info.error(format!(
                "a [{rows}, {cols}] weight in blocks of {block:?} has scales {expected:?}, got {:?}",
                scales.info.shape
            )));
        }
        Ok(scales)
    }

    /// The shape and all values of a weight, FP8 or not, as f32. Slow and large (four bytes an element, one thread):
    /// for references, tests and small tensors.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), [`scales`](Self::scales) and [`validate_scales`].
    ///
    /// # Panics
    /// As [`scales`](Self::scales), for an FP8 weight.
    pub fn dequantized(&self, name: &str, block: [usize; 2]) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let weight = self.tensor(name)?;
        if weight.info.dtype != Dtype::F8E4M3 {
            let values = weight.to_f32()?;
            return Ok((weight.info.shape, values));
        }
        let scales = self.scales(name, block)?;
        validate_scales(&scales.info, scales.bytes.as_slice())?;
        let (cols, grid_cols) = (weight.info.shape[1], scales.info.shape[1]);
        let scales = scales.to_f32()?;
        let value = |(index, &element): (usize, &u8)| {
            let (row, col) = (index / cols, index % cols);
            fp8_e4m3_to_f32(element) * scales[row / block[0] * grid_cols + col / block[1]]
        };
        let values = weight.bytes.as_slice().iter().enumerate().map(value).collect();
        Ok((weight.info.shape, values))
    }
}

/// Checks that F32 block scales can be multiplied with: finite and not negative. Zero is legal: it is what quantising
/// a block of zeros by its largest magnitude leaves.
///
/// # Errors
/// Names the tensor, and value and position of the first bad scale.
pub fn validate_scales(info: &TensorInfo, bytes: &[u8]) -> Result<(), Error> {
    let scales = bytes.as_chunks().0.iter().map(|&scale| f32::from_le_bytes(scale));
    for (index, scale) in scales.enumerate() {
        if !(scale >= 0.0 && scale.is_finite()) {
            let cols = info.shape.last().copied().unwrap_or(1).max(1);
            let position = [index / cols, index % cols];
            return Err(
                info.error(format!("the scale at {position:?} is {scale}, expected a finite number >= 0"))
            );
        }
    }
    Ok(())
}
