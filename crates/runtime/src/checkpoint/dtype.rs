//! Element types, as checkpoints name them.

use super::GgmlBlocks;
use dsv3_kernels::Format;
use std::fmt::{self, Display};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// OCP e4m3fn; as a weight it comes with block scales.
    F8E4M3,
    /// ggml's `q8_0`; only in GGUF files.
    Q8_0,
    /// ggml's `q4_K`; only in GGUF files.
    Q4K,
    /// Another of ggml's block formats, which no kernel reads; only in GGUF files.
    Ggml(GgmlBlocks),
    /// Known to the file format, so that it can be listed; no weight may have it.
    Unsupported(safetensors::Dtype),
    /// A type of a GGUF file that no weight may have, by ggml's number.
    UnsupportedGgml(u32),
}

impl Dtype {
    /// Whether a weight may have this type.
    pub fn is_weight(self) -> bool {
        !matches!(self, Self::Unsupported(_) | Self::UnsupportedGgml(_))
    }

    /// The format in which kernels read such elements; none where no kernel does.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::F32 => Some(Format::F32),
            Self::Bf16 => Some(Format::Bf16),
            Self::F8E4M3 => Some(Format::Fp8),
            Self::Q8_0 => Some(Format::Q8_0),
            Self::Q4K => Some(Format::Q4K),
            Self::F16 | Self::Ggml(_) | Self::Unsupported(_) | Self::UnsupportedGgml(_) => None,
        }
    }
}

/// Names of ggml's types that are met in files and that no weight may have, from `ggml.h`.
const GGML_NAMES: [(u32, &str); 14] = [
    (9, "q8_1"),
    (15, "q8_K"),
    (16, "iq2_xxs"),
    (17, "iq2_xs"),
    (18, "iq3_xxs"),
    (19, "iq1_s"),
    (21, "iq3_s"),
    (22, "iq2_s"),
    (29, "iq1_m"),
    (34, "tq1_0"),
    (35, "tq2_0"),
    (39, "mxfp4"),
    (40, "nvfp4"),
    (41, "q1_0"),
];

impl Dtype {
    /// The type of this number in `ggml.h`.
    pub(super) fn from_ggml(number: u32) -> Self {
        match number {
            0 => Self::F32,
            1 => Self::F16,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            30 => Self::Bf16,
            other => GgmlBlocks::from_number(other).map_or(Self::UnsupportedGgml(other), Self::Ggml),
        }
    }

    /// Elements that lie together, and their bytes; none for types that no weight may have.
    pub(super) fn block(self) -> Option<(usize, u64)> {
        let of = |format: Format| Some((format.block_cols(), format.block_bytes() as u64));
        match self {
            Self::F32 => of(Format::F32),
            Self::F16 | Self::Bf16 => of(Format::Bf16),
            Self::F8E4M3 => of(Format::Fp8),
            Self::Q8_0 => of(Format::Q8_0),
            Self::Q4K => of(Format::Q4K),
            Self::Ggml(blocks) => Some((blocks.block_cols(), blocks.block_bytes() as u64)),
            Self::Unsupported(_) | Self::UnsupportedGgml(_) => None,
        }
    }
}

impl From<safetensors::Dtype> for Dtype {
    fn from(dtype: safetensors::Dtype) -> Self {
        match dtype {
            safetensors::Dtype::F32 => Self::F32,
            safetensors::Dtype::F16 => Self::F16,
            safetensors::Dtype::BF16 => Self::Bf16,
            safetensors::Dtype::F8_E4M3 => Self::F8E4M3,
            other => Self::Unsupported(other),
        }
    }
}

/// The name that safetensors or ggml gives the type: `BF16`, `F8_E4M3`, `q8_0`.
impl Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.pad("F32"),
            Self::F16 => f.pad("F16"),
            Self::Bf16 => f.pad("BF16"),
            Self::F8E4M3 => f.pad("F8_E4M3"),
            Self::Q8_0 => f.pad("q8_0"),
            Self::Q4K => f.pad("q4_K"),
            Self::Ggml(blocks) => f.pad(blocks.name()),
            Self::UnsupportedGgml(number) => match GGML_NAMES.iter().find(|(known, _)| known == number) {
                Some((_, name)) => f.pad(name),
                None => f.pad(&format!("ggml type {number}")),
            },
            Self::Unsupported(other) => f.pad(&other.to_string()),
        }
    }
}
