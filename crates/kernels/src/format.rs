//! Storage formats of weights, and the exact conversions between them and f32.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// How the elements of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// The upper half of a single: 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// OCP e4m3fn (4 bits of exponent, 3 of mantissa, no infinities) with f32 scales of blocks that multiply.
    Fp8,
}

impl Format {
    /// Bytes that an element takes, scales not counted.
    pub const fn bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::Bf16 => 2,
            Format::Fp8 => 1,
        }
    }

    /// The distance from 1 to the next larger number. Rounding to nearest errs by at most half of it, relatively,
    /// within the range of normal numbers.
    pub const fn epsilon(self) -> f32 {
        match self {
            Format::F32 => f32::EPSILON,
            Format::Bf16 => 1.0 / 128.0,
            Format::Fp8 => 1.0 / 8.0,
        }
    }
}

/// The value of an e4m3fn byte, exactly: `s eeee mmm`, bias 7, subnormals in steps of 2^-9, NaN at 0x7f and 0xff.
pub fn fp8_e4m3_to_f32(byte: u8) -> f32 {
    FP8_VALUES[usize::from(byte)]
}

/// The value of a bfloat16, exactly.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The value of an IEEE half, exactly.
pub fn f16_to_f32(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// The nearest bfloat16, ties to even; a NaN stays a NaN.
pub fn f32_to_bf16(value: f32) -> u16 {
    bf16::from_f32(value).to_bits()
}

static FP8_VALUES: [f32; 256] = fp8_values();

const fn fp8_values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        values[byte] = fp8_value(byte as u32);
        byte += 1;
    }
    values
}

const fn fp8_value(byte: u32) -> f32 {
    let sign = (byte & 0x80) << 24;
    let exponent = (byte >> 3) & 0xf;
    let mantissa = byte & 0x7;
    if byte & 0x7f == 0x7f {
        return f32::from_bits(sign | f32::NAN.to_bits());
    }
    if exponent == 0 {
        let magnitude = mantissa as f32 / 512.0;
        return f32::from_bits(sign | magnitude.to_bits());
    }
    f32::from_bits(sign | ((exponent + 127 - 7) << 23) | (mantissa << 20))
}
