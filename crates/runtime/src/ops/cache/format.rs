//! How cached latents are stored.

use dsv3_kernels::{Format, f32_to_bf16, halves_bytes, store_halves};
use half::f16;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the cache stores what it holds of a token: the latent, and the rotated key part that all heads share.
///
/// Half of the precision is not free: on small models a bf16 cache changes the logits by 2e-3 to 9e-3 of their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheFormat {
    /// Both as they were computed.
    #[default]
    F32,
    /// Both rounded to 16 bits, as precise as bf16 but for what is less than 2^-64 or not finite: half of the memory.
    Bf16,
    /// The latent in signed bytes, 32 features with one scale, the rotated part in bf16: 58 % of bf16's memory where
    /// a latent has 512 features and the rotated part 64.
    Q8,
}

impl CacheFormat {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Q8];

    /// The name that is printed and typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Features that a cached token has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentShape {
    /// Features of the latent.
    pub kv_lora_rank: usize,
    /// Features of the rotated key part that all heads share.
    pub qk_rope_head_dim: usize,
}

impl LatentShape {
    /// Features of both.
    pub const fn features(self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}

/// How columns of a page are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// As a matrix of weights is.
    Matrix(Format),
    /// In rows whose values share halves: in 16 bits, and read as f32 where they lie.
    Halves,
}

/// Columns of a page that are stored alike, row after row. A page is one such plane or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plane {
    pub(super) storage: Storage,
    /// The first feature.
    pub(super) first: usize,
    /// Features that are stored.
    pub(super) features: usize,
    /// Columns that they take: whole blocks of the format.
    pub(super) cols: usize,
}

impl Plane {
    /// The planes of a page. What is stored alike is one.
    pub(super) fn of(format: CacheFormat, shape: LatentShape) -> Vec<Self> {
        let LatentShape { kv_lora_rank: rank, qk_rope_head_dim: rope } = shape;
        let matrix = |format: Format, first, features: usize| Self {
            storage: Storage::Matrix(format),
            first,
            features,
            cols: features.next_multiple_of(format.block_cols()),
        };
        let features = rank + rope;
        match format {
            CacheFormat::F32 => vec![matrix(Format::F32, 0, features)],
            CacheFormat::Bf16 => vec![Self { storage: Storage::Halves, first: 0, features, cols: features }],
            CacheFormat::Q8 => vec![matrix(Format::Q8_0, 0, rank), matrix(Format::Bf16, rank, rope)],
        }
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> usize {
        match self.storage {
            Storage::Matrix(format) => format.bytes(self.cols),
            Storage::Halves => halves_bytes(self.cols),
        }
    }

    /// Stores a row. `values` `[features]`, `out` `[row_bytes]`.
    pub(super) fn store(&self, values: &[f32], out: &mut [u8]) {
        let Storage::Matrix(format) = self.storage else { return store_halves(values, out) };
        match format {
            Format::F32 => {
                for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
                    *out = value.to_le_bytes();
                }
            }
            Format::Bf16 => {
                for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
                    *out = f32_to_bf16(*value).to_le_bytes();
                }
            }
            Format::Q8_0 => {
                let block = format.block_cols();
                let blocks = out.chunks_exact_mut(format.block_bytes());
                for (out, values) in blocks.zip(values.chunks(block)) {
                    store_block(values, out);
                }
            }
            format => unreachable!("no cache is stored in {format}"),
        }
    }
}

/// Stores a block of [`Format::Q8_0`]: multiples of a scale that takes the largest magnitude to 127. Values are
/// divided by the scale as it is stored, so that each is at most half of it away from what comes back.
fn store_block(values: &[f32], out: &mut [u8]) {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    // Rounded up where it must be rounded, or the largest value would not fit; at most what a half can hold.
    let mut scale = f16::from_f32((largest / 127.0).min(f16::MAX.to_f32()));
    if scale.to_f32() * 127.0 < largest && scale < f16::MAX {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    if values.iter().any(|value| value.is_nan()) {
        scale = f16::NAN; // a byte cannot say it
    }
    out[..2].copy_from_slice(&scale.to_le_bytes());
    let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    for (out, value) in out[2..].iter_mut().zip(values) {
        // The conversion saturates.
        *out = ((value * inverse).round() as i8).cast_unsigned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsv3_kernels::{Kernels, KeyRows, MatrixView};

    /// What comes back of `values`, stored in the plane.
    fn stored(plane: &Plane, values: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0; plane.row_bytes()];
        plane.store(values, &mut bytes);
        let Storage::Matrix(format) = plane.storage else {
            return KeyRows::halves(&bytes, plane.cols).values(0).collect();
        };
        let view = MatrixView::from_bytes(format, &bytes, 1, plane.cols, None);
        let mut out = vec![f32::NAN; plane.cols];
        Kernels::best().dequantize_row(&view, 0, &mut out);
        out.truncate(values.len());
        out
    }

    #[test]
    fn what_is_stored_is_near_what_was_computed() {
        let shape = LatentShape { kv_lora_rank: 70, qk_rope_head_dim: 6 };
        let values: Vec<f32> = (0..76).map(|i| (i as f32 * 0.7).sin() * (i as f32 - 20.0) / 9.0).collect();
        for format in CacheFormat::ALL {
            for plane in Plane::of(format, shape) {
                let part = &values[plane.first..][..plane.features];
                for (block, (got, values)) in stored(&plane, part).chunks(32).zip(part.chunks(32)).enumerate()
                {
                    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                    for (got, value) in got.iter().zip(values) {
                        let bound = match plane.storage {
                            Storage::Matrix(Format::F32) => 0.0,
                            // 8 bits of significand, rounded to nearest.
                            Storage::Matrix(Format::Bf16) => value.abs() / 256.0,
                            // A little more for the half before it, and zero becomes 2^-64 and a half.
                            Storage::Halves => value.abs() / 255.0 + 2f32.powi(-64) * (1.0 + 1.0 / 128.0),
                            // Half a step; the scale is rounded by 2^-10, the quotient by f32.
                            _ => largest / 127.0 * (0.5 + 2f32.powi(-10)),
                        };
                        assert!((got - value).abs() <= bound, "{format} block {block}: {got}, not {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_of_any_size_of_values_are_stored() {
        let plane = Plane { storage: Storage::Matrix(Format::Q8_0), first: 0, features: 32, cols: 32 };
        assert_eq!(stored(&plane, &[0.0; 32]), [0.0; 32]);
        assert!(stored(&plane, &[f32::NAN; 32])[0].is_nan());
        let huge = stored(&plane, &[1e30; 32]);
        assert!(huge.iter().all(|value| *value == 127.0 * 65504.0), "saturates: {huge:?}");
        // Scales below the smallest half are rounded up to it.
        let tiny = stored(&plane, &[3e-7; 32]);
        assert!(tiny.iter().all(|value| (value - 3e-7).abs() <= 3e-8), "{tiny:?}");
    }
}
