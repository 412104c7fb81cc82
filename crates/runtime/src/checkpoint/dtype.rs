//! Element types, as checkpoints name them.

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
    /// Known to the file format, so that it can be listed; no weight may have it.
    Unsupported(safetensors::Dtype),
    /// A type of a GGUF file that no weight may have, by ggml's name.
    UnsupportedGgml(&'static str),
}

impl Dtype {
    /// Whether a weight may have this type.
    pub fn is_weight(self) -> bool {
        !matches!(self, Self::Unsupported(_) | Self::UnsupportedGgml(_))
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
            Self::UnsupportedGgml(name) => f.pad(name),
            Self::Unsupported(other) => f.pad(&other.to_string()),
        }
    }
}
