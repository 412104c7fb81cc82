//! Storage formats of weights, and the exact conversions between them and f32.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the elements of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// IEEE single precision.
    #[serde(rename = "f32")]
    F32,
    /// The upper half of a single: 8 bits of exponent, 7 of mantissa.
    #[serde(rename = "bf16")]
    Bf16,
    /// OCP e4m3fn (4 bits of exponent, 3 of mantissa, no infinities) with f32 scales of blocks that multiply.
    #[serde(rename = "fp8")]
    Fp8,
    /// ggml's `q8_0`: 32 columns of a row in 34 bytes, a half-precision scale, then signed bytes.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// ggml's `q4_K`: 256 columns of a row in 144 bytes: half-precision `d` and `dmin`, 6-bit scales and minima of 8
    /// groups of 32 (12 bytes), then 4 bits a column. An element is `d * scale * bits - dmin * minimum`.
    #[serde(rename = "q4_K")]
    Q4K,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 5] = [Format::F32, Format::Bf16, Format::Fp8, Format::Q8_0, Format::Q4K];

    /// Columns of a row that are stored together; a row has a multiple of it.
    pub const fn block_cols(self) -> usize {
        match self {
            Format::F32 | Format::Bf16 | Format::Fp8 => 1,
            Format::Q8_0 => 32,
            Format::Q4K => 256,
        }
    }

    /// Columns of activations that share a scale where they are multiplied with this format in integers: as many as ggml's
    /// blocks have, or, as in DeepSeek-V3's own inference code (`act_quant`), as blocks of FP8 have.
    pub const fn group_cols(self) -> usize {
        match self {
            Format::Fp8 => 128,
            Format::F32 | Format::Bf16 | Format::Q8_0 | Format::Q4K => 32,
        }
    }

    /// Bytes that a block takes; the separate scales of FP8 are not counted.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::Bf16 => 2,
            Format::Fp8 => 1,
            Format::Q8_0 => 34,
            Format::Q4K => 144,
        }
    }

    /// Bytes that `elements` of a row take.
    ///
    /// # Panics
    /// If they are no whole number of blocks.
    pub const fn bytes(self, elements: usize) -> usize {
        assert!(elements.is_multiple_of(self.block_cols()), "a row is stored in whole blocks");
        elements / self.block_cols() * self.block_bytes()
    }

    /// Bytes of a matrix, or none where its rows are no whole blocks or their number is no `usize`.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_cols()) {
            return None;
        }
        (cols / self.block_cols()).checked_mul(self.block_bytes())?.checked_mul(rows)
    }

    /// The name that is printed and typed.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::Fp8 => "fp8",
            Format::Q8_0 => "q8_0",
            Format::Q4K => "q4_K",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
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

pub(crate) static FP8_VALUES: [f32; 256] = fp8_values();

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

#[cfg(test)]
mod tests {
    use super::*;

    /// From the definition: (-1)^s 2^(e - 7) (1 + m / 8), and (-1)^s 2^-6 m / 8 for e = 0.
    fn fp8_by_definition(byte: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f64::from(byte & 7) / 8.0);
        let magnitude = match (exponent, byte & 7) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa * 2.0_f64.powi(-6),
            _ => (1.0 + mantissa) * 2.0_f64.powi(exponent - 7),
        };
        if byte < 0x80 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_fp8_byte_has_the_value_of_its_definition() {
        for byte in 0..=255 {
            let (got, expected) = (fp8_e4m3_to_f32(byte), fp8_by_definition(byte));
            assert_eq!(got.is_nan(), expected.is_nan(), "{byte:#x}");
            assert!(expected.is_nan() || f64::from(got) == expected, "{byte:#x}: {got}, not {expected}");
            assert_eq!(got.is_sign_negative(), byte >= 0x80, "{byte:#x}");
        }
        assert_eq!(fp8_e4m3_to_f32(0x7e), 448.0);
    }

    #[test]
    fn every_bf16_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            assert_eq!(value.to_bits(), u32::from(bits) << 16);
            let back = f32_to_bf16(value);
            assert!(
                back == bits || (value.is_nan() && bf16_to_f32(back).is_nan()),
                "{bits:#x} became {back:#x}"
            );
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_and_ties_to_even() {
        for upper in (0x3f80_u32..0x4080).chain([0, 1, 0x7f7e, 0x8000, 0xbf80]) {
            let even = upper + (upper & 1);
            let cases =
                [(0, upper), (0x7fff, upper), (0x8000, even), (0x8001, upper + 1), (0xffff, upper + 1)];
            for (lower, expected) in cases {
                let value = f32::from_bits(upper << 16 | lower);
                assert_eq!(u32::from(f32_to_bf16(value)), expected, "{upper:#x} {lower:#x}");
            }
        }
        assert_eq!(f32_to_bf16(f32::MAX), f32_to_bf16(f32::INFINITY));
    }

    #[test]
    fn halves_have_their_values() {
        let cases = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2.0_f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
        ];
        for (bits, expected) in cases {
            assert_eq!(f16_to_f32(bits), expected, "{bits:#x}");
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }

    #[test]
    fn a_format_is_written_as_it_is_called() {
        for format in Format::ALL {
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
            assert_eq!(format.matrix_bytes(3, 512), Some(3 * format.bytes(512)));
        }
        assert_eq!(Format::Q8_0.matrix_bytes(1, 33), None);
        assert_eq!(Format::Q4K.bytes(512), 288);
        assert_eq!(Format::F32.matrix_bytes(usize::MAX, 2), None);
    }
}
