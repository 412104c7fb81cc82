//! One tensor as it lies in the checkpoint.

use super::{Bytes, Dtype};
use crate::Error;
use dsv3_kernels::{bf16_to_f32, f16_to_f32};

/// What the header of a shard says of a tensor. The place is checked: it lies within the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of [`Checkpoint::shards`](super::Checkpoint::shards) it lies in.
    pub shard: usize,
    /// Its first byte, from the start of the shard's file. Not aligned to anything.
    pub offset: u64,
    /// Its number of bytes: exactly what shape and type take.
    pub length: u64,
}

impl TensorInfo {
    /// An error about this tensor.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::Tensor { name: self.name.clone(), message: message.into() }
    }
}

/// A tensor of the checkpoint: what it is, and its bytes in place.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// What it is.
    pub info: TensorInfo,
    /// Its elements, row-major, little-endian.
    pub bytes: Bytes,
}

impl RawTensor {
    /// The elements as f32, which all of F32, F16 and BF16 fit in without loss.
    ///
    /// # Errors
    /// If the elements are FP8, which mean nothing without their scales
    /// ([`Checkpoint::dequantized`](super::Checkpoint::dequantized)), or unsupported.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let bytes = self.bytes.as_slice();
        match self.info.dtype {
            Dtype::F32 => Ok(convert(bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(convert(bytes, |element| f16_to_f32(u16::from_le_bytes(element)))),
            Dtype::Bf16 => Ok(convert(bytes, |element| bf16_to_f32(u16::from_le_bytes(element)))),
            Dtype::F8E4M3 => {
                Err(self.info.error("is F8_E4M3, which has values only together with its scales"))
            }
            Dtype::Q8_0 | Dtype::Q4K | Dtype::Ggml(_) => {
                Err(self.info.error("is quantised in blocks, not a list of values"))
            }
            dtype @ (Dtype::Unsupported(_) | Dtype::UnsupportedGgml(_)) => {
                Err(self.info.error(format!("has the unsupported type {dtype}")))
            }
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], to_f32: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&element| to_f32(element)).collect()
}
