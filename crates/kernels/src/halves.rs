//! F32 in half of its memory, read without a conversion.
//!
//! Values of a row share their bits: the upper half of each is its own, the lower half is the upper half of the value before.
//! So the f32 that begins two bytes after another *is* the next value, and a kernel that reads f32 reads these, too, at steps
//! of two bytes instead of four. Each value is rounded to the nearest that can follow the one before it, as that was before it
//! was rounded itself, so that none waits for another: it is off by half of its upper half's last place, as in bf16, and a
//! 1024th of it at most; by two thirds just below a power of two, where the next is above it. What is less than 2^-64
//! becomes that, zero included; what is not finite becomes NaN; and the largest finite values may lose a whole place.

use crate::MatrixRef;
use crate::view::f32_bytes;
use std::ops::Range;

/// Bytes of a half.
const HALF: usize = 2;
/// The upper half of the smallest value, 2^-64: nothing beside any latent, and times a weight still no subnormal value, which
/// are slow to compute with.
const SMALLEST: u32 = (127 - 64) << 7;
/// That of NaN, whatever the lower half is.
const NAN: u32 = 0x7fc0;
/// That of a sign.
const SIGN: u32 = 1 << 15;

/// Bytes of a row of `cols` values that share halves: a half before the first.
pub const fn halves_bytes(cols: usize) -> usize {
    HALF * (cols + 1)
}

/// Stores `values` as a row that shares halves.
///
/// # Shapes
/// `out` `[halves_bytes(values.len())]`.
///
/// # Panics
/// If `out` has another length.
pub fn store_halves(values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), halves_bytes(values.len()), "bytes of {} values", values.len());
    let (first, rest) = out.split_at_mut(HALF);
    first.fill(0);
    let mut before = 0;
    for (out, value) in rest.as_chunks_mut().0.iter_mut().zip(values) {
        *out = half_after(before, *value).to_le_bytes();
        let upper = value.to_bits() >> 16;
        before = upper & SIGN | (upper & !SIGN).max(SMALLEST);
    }
}

/// The upper half that makes the value nearest to `value` where `lower` is the lower. Without branches, for many at once.
#[inline]
fn half_after(lower: u32, value: f32) -> u16 {
    let (sign, magnitude) = (value.to_bits() >> 16 & SIGN, value.abs());
    let upper = magnitude.to_bits().saturating_sub(lower) >> 16;
    let [below, above] = [upper, upper + 1].map(|upper| f32::from_bits(upper << 16 | lower));
    // Nothing is above the largest finite value: what would be is not less than anything.
    let upper = if above - magnitude < magnitude - below { upper + 1 } else { upper };
    // Behind anything but zero there is no zero, and an infinity would need a lower half of zero.
    let upper = if value.is_finite() { upper.max(SMALLEST) } else { NAN };
    (sign | upper) as u16
}

/// Reads a row that shares halves.
///
/// # Shapes
/// `bytes` `[halves_bytes(out.len())]`.
///
/// # Panics
/// If `bytes` has another length.
pub fn read_halves(bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), halves_bytes(out.len()), "bytes of {} values", out.len());
    for (out, halves) in out.iter_mut().zip(bytes.as_chunks::<HALF>().0.windows(2)) {
        let [lower, upper] = [halves[0], halves[1]].map(|half| u32::from(u16::from_le_bytes(half)));
        *out = f32::from_bits(upper << 16 | lower);
    }
}

/// Rows of f32 that begin four bytes apart, or two, where they share halves.
#[derive(Clone, Copy, Debug)]
pub struct KeyRows<'a> {
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
    /// Bytes from the start of a row to the start of the next.
    stride: usize,
    shares_halves: bool,
}

impl<'a> KeyRows<'a> {
    /// Rows of f32.
    pub fn f32(values: MatrixRef<'a>) -> Self {
        let (all, stride) = values.values();
        Self {
            bytes: f32_bytes(all),
            rows: values.rows(),
            cols: values.cols(),
            stride: stride * size_of::<f32>(),
            shares_halves: false,
        }
    }

    /// Rows that share halves, one after another.
    ///
    /// # Panics
    /// If `bytes` are no whole number of rows.
    pub fn halves(bytes: &'a [u8], cols: usize) -> Self {
        let stride = halves_bytes(cols);
        assert!(bytes.len().is_multiple_of(stride), "rows of {stride} bytes, not {}", bytes.len());
        Self { bytes, rows: bytes.len() / stride, cols, stride, shares_halves: true }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether values share halves.
    pub(crate) fn shares_halves(&self) -> bool {
        self.shares_halves
    }

    /// Bytes from a value to the next.
    fn step(&self) -> usize {
        if self.shares_halves { HALF } else { size_of::<f32>() }
    }

    /// Bytes from the start of a row to the start of the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The bytes of a row's values from `column` on.
    #[inline]
    pub(crate) fn row(&self, row: usize, column: usize) -> &'a [u8] {
        assert!(
            row < self.rows && column <= self.cols,
            "row {row}, column {column} of {} x {}",
            self.rows,
            self.cols
        );
        let values = self.cols - column;
        let bytes = if values == 0 { 0 } else { (values - 1) * self.step() + size_of::<f32>() };
        &self.bytes[row * self.stride + column * self.step()..][..bytes]
    }

    /// Where `column` of the first row begins. From there on all rows can be read to their last columns: they begin
    /// [`stride`](Self::stride) bytes apart, their values `APART`.
    ///
    /// # Panics
    /// If values begin another number of bytes apart, or rows have no such column.
    pub(crate) fn start<const APART: usize>(&self, column: usize) -> *const u8 {
        assert_eq!(self.step(), APART, "bytes from a value to the next");
        if let Some(last) = self.rows.checked_sub(1) {
            // It ends last, and is found whole or not at all.
            self.row(last, column);
        }
        self.bytes.as_ptr().wrapping_add(column * APART)
    }

    /// The values of a row.
    pub fn values(&self, row: usize) -> impl Iterator<Item = f32> + use<'a> {
        self.row(row, 0)
            .windows(size_of::<f32>())
            .step_by(self.step())
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("a window is as long as an f32")))
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If the range ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let bytes = if range.is_empty() { &[] } else { &self.bytes[range.start * self.stride..] };
        Self { bytes, rows: range.len(), ..*self }
    }

    /// The first columns of every row.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first_columns(&self, cols: usize) -> Self {
        assert!(cols <= self.cols, "{cols} columns of {}", self.cols);
        Self { cols, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes back.
    fn stored(values: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0; halves_bytes(values.len())];
        store_halves(values, &mut bytes);
        KeyRows::halves(&bytes, values.len()).values(0).collect()
    }

    proptest! {
        #[test]
        fn a_value_is_off_by_half_a_step_at_most_as_in_bf16(bits in prop::collection::vec(prop_oneof![any::<u32>(), Just(0), Just(1 << 31)], 0..40)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            for (got, value) in stored(&values).into_iter().zip(values) {
                if value.is_finite() {
                    let step = f64::from(f32::from_bits(value.to_bits() & 0x7f80_0000)) / 128.0;
                    let largest = f64::from(f32::from_bits(0x7f7f_0000));
                    // Zero becomes 2^-64 and its lower half.
                    let smallest = f64::from(f32::from_bits((SMALLEST << 16) + 0xffff));
                    let error = (f64::from(got) - f64::from(value)).abs();
                    // Just below a power of two the next value is above it, where steps are twice as long. Above the
                    // largest that can be stored there is nothing.
                    let below_power = value.to_bits() & 0x007f_0000 == 0x007f_0000;
                    let step = if below_power { step * 4.0 / 3.0 } else { step };
                    let bound = (step * (0.5 + 2f64.powi(-10))).max(f64::from(value).abs() - largest).max(smallest);
                    prop_assert!(error <= bound, "{got} for {value}: {error} > {bound}");
                    prop_assert!(got.is_normal(), "{got} for {value}");
                } else {
                    prop_assert!(got.is_nan(), "{got} for {value}");
                }
            }
        }
    }

    #[test]
    fn rows_are_read_where_they_begin() {
        let values = [1.0, -2.5, 3.25, 1e-3, -7e5, 0.1];
        let mut bytes = vec![0; 3 * halves_bytes(2)];
        for (out, values) in bytes.chunks_mut(halves_bytes(2)).zip(values.chunks(2)) {
            store_halves(values, out);
        }
        let rows = KeyRows::halves(&bytes, 2);
        let all: Vec<f32> = (0..3).flat_map(|row| rows.values(row)).collect();
        assert!(
            all.iter().zip(values).all(|(got, value)| (got - value).abs() <= value.abs() / 256.0),
            "{all:?}"
        );
        let last: Vec<f32> = rows.row_range(1..3).first_columns(1).values(1).collect();
        assert_eq!(last, all[4..5]);
        let mut read = [0.0; 2];
        read_halves(&bytes[2 * halves_bytes(2)..], &mut read);
        assert_eq!(read, all[4..]);
        let same = MatrixRef::strided(&all, 3, 1, 2);
        assert_eq!(KeyRows::f32(same).values(2).collect::<Vec<_>>(), last);
    }
}
