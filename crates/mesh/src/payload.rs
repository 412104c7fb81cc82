//! The forms in which values move between devices.

use crate::view::{Buffer, View};
use half::{bf16, slice::HalfFloatSliceExt};
use serde::{Deserialize, Serialize};

/// Values that share an exponent in [`Payload::Bf8`].
const BLOCK: usize = 16;
/// Bits of an f32 below its exponent.
const F32_FRACTION_BITS: i32 = 23;
/// Bits of a magnitude of [`Payload::Bf8`] below its leading one.
const FRACTION_BITS: i32 = 6;
/// The largest magnitude of [`Payload::Bf8`].
const LARGEST: f32 = 127.0;
/// The stored exponent of a block that holds a value which is not finite. All of it is read as NaN.
const NOT_FINITE: u8 = 255;

/// The form in which values move. What is added is widened to f32 first; one's own values are rounded as the others'
/// are, so that all devices hold the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bfloat16, within 2^-8 of each value.
    Bf16,
    /// Blocks of 16 values of one exponent, a byte each (a sign and a magnitude of 7 bits): within 1/127.5 of the
    /// block's largest magnitude. Blocks run over the ends of rows; below 2^-126 all is zero.
    Bf8,
}

impl Payload {
    /// All forms.
    pub const EACH: [Self; 3] = [Self::F32, Self::Bf16, Self::Bf8];

    /// The bytes that a matrix of so many values takes.
    pub fn bytes(self, values: usize) -> usize {
        match self {
            Self::F32 => 4 * values,
            Self::Bf16 => 2 * values,
            Self::Bf8 => values + values.div_ceil(BLOCK),
        }
    }

    /// Puts a matrix of f32 values into this form. Copies nothing where it has it.
    pub(crate) fn encode(self, matrix: View) -> View {
        if self == Self::F32 {
            return matrix;
        }
        let mut bytes = Vec::with_capacity(self.bytes(matrix.length() / 4));
        self.encode_into(&matrix, &mut bytes);
        View::whole(Buffer::from(bytes))
    }

    /// Appends a matrix of f32 values in this form.
    fn encode_into(self, matrix: &View, bytes: &mut Vec<u8>) {
        let values = to_f32(matrix);
        match self {
            Self::F32 => bytes.extend_from_slice(bytemuck::cast_slice(&values)),
            Self::Bf16 => {
                let mut rounded = vec![bf16::ZERO; values.len()];
                rounded.convert_from_f32_slice(&values);
                bytes.extend(rounded.iter().flat_map(|value| value.to_ne_bytes()));
            }
            Self::Bf8 => values.chunks(BLOCK).for_each(|block| encode_block(block, bytes)),
        }
    }

    /// A matrix of f32 values from this form. Copies nothing where they are f32.
    pub(crate) fn decode(self, matrix: View) -> View {
        let bytes = match self {
            Self::F32 => return matrix,
            Self::Bf16 | Self::Bf8 => matrix.to_contiguous(),
        };
        let values: Vec<f32> = if self == Self::Bf16 {
            bytes.chunks_exact(2).map(|pair| bf16::from_ne_bytes([pair[0], pair[1]]).to_f32()).collect()
        } else {
            bytes.chunks(1 + BLOCK).flat_map(decode_block).collect()
        };
        View::whole(Buffer::from(values))
    }
}

fn to_f32(matrix: &View) -> Vec<f32> {
    let mut values = Vec::with_capacity(matrix.length() / 4);
    for row in matrix.rows() {
        append(&mut values, row);
    }
    values
}

/// Appends f32 values, wherever they lie.
pub(crate) fn append(values: &mut Vec<f32>, bytes: &[u8]) {
    match bytemuck::try_cast_slice(bytes) {
        Ok(aligned) => values.extend_from_slice(aligned),
        Err(_) => values.extend(bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>)),
    }
}

/// Adds f32 values, wherever they lie.
pub(crate) fn add(sums: &mut [f32], bytes: &[u8]) {
    match bytemuck::try_cast_slice::<u8, f32>(bytes) {
        Ok(aligned) => sums.iter_mut().zip(aligned).for_each(|(sum, value)| *sum += value),
        Err(_) => {
            let values = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// What a magnitude of 1 stands for in a block with this exponent, which is stored as in an f32.
fn step(exponent: i32) -> f32 {
    let stored = exponent - FRACTION_BITS;
    // An exponent of 1 and less belongs to subnormal numbers, which have no leading one of their own.
    f32::from_bits(if stored > 0 {
        stored << F32_FRACTION_BITS
    } else {
        1 << (F32_FRACTION_BITS - 1 + stored)
    } as u32)
}

/// An exponent, then a byte a value. The exponent is that of the largest magnitude, or one more where that would round
/// to more than a byte holds.
fn encode_block(block: &[f32], bytes: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    if !block.iter().all(|value| value.is_finite()) {
        bytes.push(NOT_FINITE);
        bytes.resize(bytes.len() + block.len(), 0);
        return;
    }
    let mut exponent = (largest.to_bits() >> F32_FRACTION_BITS) as i32;
    if exponent > 0 && (largest / step(exponent)).round_ties_even() > LARGEST {
        exponent += 1;
    }
    // The largest finite values have no exponent above theirs; they saturate.
    let exponent = exponent.min(i32::from(NOT_FINITE) - 1);
    bytes.push(exponent as u8);
    let step = step(exponent);
    bytes.extend(block.iter().map(|value| {
        let magnitude = if exponent == 0 { 0.0 } else { (value.abs() / step).round_ties_even().min(LARGEST) };
        (u8::from(value.is_sign_negative()) << 7) | magnitude as u8
    }));
}

fn decode_block(bytes: &[u8]) -> impl Iterator<Item = f32> {
    let exponent = bytes[0];
    let step = if exponent == NOT_FINITE { f32::NAN } else { step(i32::from(exponent)) };
    bytes[1..].iter().map(move |byte| {
        let magnitude = f32::from(byte & 0x7f) * step;
        if byte & 0x80 == 0 { magnitude } else { -magnitude }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(payload: Payload, values: &[f32]) -> Vec<f32> {
        let encoded = payload.encode(View::whole(Buffer::from(values.to_vec())));
        assert_eq!(encoded.length(), payload.bytes(values.len()));
        to_f32(&payload.decode(encoded))
    }

    proptest! {
        #[test]
        fn what_comes_out_is_within_the_bound(
            values in prop::collection::vec(any::<f32>().prop_filter("finite", |value| value.abs() < 1e38), 0..70),
        ) {
            prop_assert_eq!(&round_trip(Payload::F32, &values), &values);
            for (value, rounded) in values.iter().zip(round_trip(Payload::Bf16, &values)) {
                // Half of the last place, which for subnormal values is 2^-133.
                let bound = (value.abs() * 2_f32.powi(-8)).max(2_f32.powi(-134));
                prop_assert!((value - rounded).abs() <= bound, "{value} became {rounded}");
            }
            let rounded = round_trip(Payload::Bf8, &values);
            for (block, rounded) in values.chunks(BLOCK).zip(rounded.chunks(BLOCK)) {
                let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (value, rounded) in block.iter().zip(rounded) {
                    let bound = (f64::from(largest) / 127.5).max(2_f64.powi(-126));
                    let error = (f64::from(*value) - f64::from(*rounded)).abs();
                    prop_assert!(error <= bound, "{value} became {rounded}");
                }
            }
        }

        #[test]
        fn what_was_rounded_stays(values in prop::collection::vec(-1e6_f32..1e6, 1..40)) {
            for payload in Payload::EACH {
                let once = round_trip(payload, &values);
                prop_assert_eq!(&round_trip(payload, &once), &once);
            }
        }
    }

    #[test]
    fn zeros_the_largest_and_what_is_not_finite() {
        for payload in Payload::EACH {
            assert_eq!(round_trip(payload, &[0.0; 17]), [0.0; 17]);
            assert!(round_trip(payload, &[1.0, f32::NAN])[1].is_nan());
            assert!(!round_trip(payload, &[1.0, f32::NEG_INFINITY])[1].is_finite());
        }
        let largest = round_trip(Payload::Bf8, &[f32::MAX, -1e38])[0];
        assert!((f32::MAX - largest) / f32::MAX < 1.0 / 127.5, "{largest}");
        assert_eq!(round_trip(Payload::Bf8, &[255.0, -3.0, 1.0]), [256.0, -4.0, 0.0]);
    }
}
