//! Our own quantiser of `q4_K`: least squares over scale and minimum of each group, then over the two factors of the
//! block, with the 6-bit scales and minima chosen by the error that they really make.
//!
//! An element is `scale * bits - minimum`. For given bits the best scale and minimum are a linear least-squares
//! problem of two unknowns; for a given scale and minimum the best bits are a rounding. Several scales are tried side
//! by side, one a lane.

use super::scalar::ROUNDER;
use crate::quantized::{BlockQ4K, Q4K_COLS, Q4K_GROUP, Q4K_GROUPS};
use half::f16;

/// Scales that are tried side by side.
const LANES: usize = 8;
/// Pairs of a scale and a minimum that are tried side by side.
const PAIRS: usize = 16;
/// The largest value of four bits.
const MAX_BITS: f32 = 15.0;
/// The largest scale or minimum of six bits.
const MAX_SCALE: f32 = 63.0;
/// How far around its best place a scale is sought the second time, as a share of it.
const SECOND_SPREAD: f32 = 0.05;

type Group = [f32; Q4K_GROUP];

/// Scale and minimum of a group.
#[derive(Clone, Copy)]
struct Affine {
    scale: f32,
    minimum: f32,
}

/// The factors of a block, each exactly a half.
#[derive(Clone, Copy)]
struct Factors {
    d: f32,
    dmin: f32,
}

/// The 6-bit scale and minimum of a group, as whole numbers, and the squared error that they make.
#[derive(Clone, Copy, Default)]
struct Coded {
    scale: f32,
    minimum: f32,
    error: f32,
}

/// Sums over a group that least squares need: `x` are the values, `q` the bits.
#[derive(Clone, Copy)]
struct Sums {
    q: f32,
    qq: f32,
    xq: f32,
}

/// A block of 256 values.
#[inline(always)]
pub(super) fn block(values: &[f32; Q4K_COLS]) -> BlockQ4K {
    let groups: &[Group; Q4K_GROUPS] = values.as_chunks().0.try_into().expect("a block has eight groups");
    let mut fits = [Affine { scale: 0.0, minimum: 0.0 }; Q4K_GROUPS];
    for (fit, group) in fits.iter_mut().zip(groups) {
        *fit = fit_group(group);
    }
    let largest = |part: fn(&Affine) -> f32| fits.iter().map(part).fold(0.0_f32, f32::max);
    let mut factors = Factors {
        d: to_half(largest(|fit| fit.scale) / MAX_SCALE),
        dmin: to_half(largest(|fit| fit.minimum) / MAX_SCALE),
    };
    let mut coded = code_groups(groups, &fits, factors);
    // The factors are fitted to the bits, and the bits to the factors, once: more gains a thousandth.
    let refitted = refit(groups, &coded, factors);
    let again = code_groups(groups, &coded.map(|code| code.affine(factors)), refitted);
    if total_error(&again) < total_error(&coded) {
        (coded, factors) = (again, refitted);
    }
    pack(groups, &coded, factors)
}

/// The scale and minimum of a group with the least squared error, among those tried. The first time, scales are tried
/// that spread the range of values over 13 to 17 steps, the smallest value at its lower end; the second time, those
/// around the best one and with its minimum.
#[inline(always)]
fn fit_group(group: &Group) -> Affine {
    let mut low = 0.0_f32;
    let mut high = f32::NEG_INFINITY;
    for &value in group {
        low = low.min(value);
        high = high.max(value);
    }
    let range = high - low;
    // The second test leaves out ranges so small that their inverse is no number.
    if range <= 0.0 || !(MAX_BITS / range).is_finite() {
        return Affine { scale: 0.0, minimum: -low };
    }
    let mut inverses = [0.0; LANES];
    for (lane, inverse) in inverses.iter_mut().enumerate() {
        *inverse = (13.2 + 0.4 * lane as f32) / range;
    }
    let first = try_scales(group, &inverses, -low);
    if first.scale <= 0.0 {
        return first;
    }
    for (lane, inverse) in inverses.iter_mut().enumerate() {
        let step = lane as f32 / (LANES - 1) as f32 * 2.0 - 1.0; // -1 to 1
        *inverse = (1.0 + SECOND_SPREAD * step) / first.scale;
    }
    try_scales(group, &inverses, first.minimum)
}

/// Quantises a group with each of the scales and one minimum, fits scale and minimum to the bits, and gives the best
/// fit.
#[inline(always)]
fn try_scales(group: &Group, inverses: &[f32; LANES], minimum: f32) -> Affine {
    let (mut q, mut qq, mut xq) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let (mut x_sum, mut xx_sum) = (0.0, 0.0);
    for &x in group {
        x_sum += x;
        xx_sum += x * x;
        let above = x + minimum;
        for lane in 0..LANES {
            let bits = to_bits(above * inverses[lane]);
            q[lane] += bits;
            qq[lane] += bits * bits;
            xq[lane] += x * bits;
        }
    }
    let count = Q4K_GROUP as f32;
    let (mut scales, mut minima, mut errors) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let sums = Sums { q: q[lane], qq: qq[lane], xq: xq[lane] };
        let determinant = count * sums.qq - sums.q * sums.q;
        let free = (count * sums.xq - x_sum * sums.q) / determinant;
        let offset = (free * sums.q - x_sum) / count;
        // A minimum is not negative, and without one the scale fits the values alone.
        let is_free = determinant > 0.0 && offset >= 0.0;
        let pinned = if sums.qq > 0.0 { sums.xq / sums.qq } else { 0.0 };
        let scale = if is_free { free } else { pinned };
        let minimum = if is_free { offset } else { 0.0 };
        scales[lane] = scale;
        minima[lane] = minimum;
        errors[lane] = xx_sum - 2.0 * (scale * sums.xq - minimum * x_sum)
            + scale * (scale * sums.qq - 2.0 * minimum * sums.q)
            + count * minimum * minimum;
    }
    let best = smallest(&errors);
    Affine { scale: scales[best], minimum: minima[best] }
}

/// Chooses each group's 6-bit scale and minimum: of the sixteen pairs around what is asked for the one that makes the
/// least error.
#[inline(always)]
fn code_groups(
    groups: &[Group; Q4K_GROUPS],
    fits: &[Affine; Q4K_GROUPS],
    factors: Factors,
) -> [Coded; Q4K_GROUPS] {
    let mut coded = [Coded::default(); Q4K_GROUPS];
    for ((code, group), fit) in coded.iter_mut().zip(groups).zip(fits) {
        *code = code_group(group, *fit, factors);
    }
    coded
}

#[inline(always)]
fn code_group(group: &Group, fit: Affine, factors: Factors) -> Coded {
    let wanted = |value: f32, factor: f32| if factor > 0.0 { value / factor } else { 0.0 };
    let first = |wanted: f32| (wanted.min(MAX_SCALE) as i32 - 1) as f32; // two below, two above
    let (scale, minimum) = (first(wanted(fit.scale, factors.d)), first(wanted(fit.minimum, factors.dmin)));
    let (mut scale_codes, mut minimum_codes) = ([0.0; PAIRS], [0.0; PAIRS]);
    let (mut scales, mut minima, mut inverses) = ([0.0; PAIRS], [0.0; PAIRS], [0.0; PAIRS]);
    for lane in 0..PAIRS {
        scale_codes[lane] = (scale + (lane % 4) as f32).clamp(0.0, MAX_SCALE);
        minimum_codes[lane] = (minimum + (lane / 4) as f32).clamp(0.0, MAX_SCALE);
        scales[lane] = factors.d * scale_codes[lane];
        minima[lane] = factors.dmin * minimum_codes[lane];
        inverses[lane] = if scales[lane] > 0.0 { 1.0 / scales[lane] } else { 0.0 };
    }
    let mut errors = [0.0; PAIRS];
    for &x in group {
        for lane in 0..PAIRS {
            let above = x + minima[lane];
            let error = scales[lane] * to_bits(above * inverses[lane]) - above;
            errors[lane] += error * error;
        }
    }
    let best = smallest(&errors);
    Coded { scale: scale_codes[best], minimum: minimum_codes[best], error: errors[best] }
}

/// The factors that fit a block best, given each group's 6-bit scale and minimum and its elements' bits.
#[inline(always)]
fn refit(groups: &[Group; Q4K_GROUPS], coded: &[Coded; Q4K_GROUPS], factors: Factors) -> Factors {
    let (mut ss, mut sm, mut mm, mut xs, mut xm) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (group, code) in groups.iter().zip(coded) {
        let (sums, x_sum) = sums(group, *code, factors);
        ss += code.scale * code.scale * sums.qq;
        sm += code.scale * code.minimum * sums.q;
        mm += code.minimum * code.minimum * Q4K_GROUP as f32;
        xs += code.scale * sums.xq;
        xm += code.minimum * x_sum;
    }
    let determinant = ss * mm - sm * sm;
    let both = Factors { d: (xs * mm - xm * sm) / determinant, dmin: (xs * sm - xm * ss) / determinant };
    let is_usable = |value: f32| value > 0.0 && value < f32::from(f16::MAX);
    if is_usable(both.d) && is_usable(both.dmin) {
        return Factors { d: to_half(both.d), dmin: to_half(both.dmin) };
    }
    factors
}

/// The sums over a group's bits, and the sum of its values.
#[inline(always)]
fn sums(group: &Group, code: Coded, factors: Factors) -> (Sums, f32) {
    let affine = code.affine(factors);
    let inverse = affine.inverse();
    let mut sums = Sums { q: 0.0, qq: 0.0, xq: 0.0 };
    let mut x_sum = 0.0;
    for &x in group {
        let bits = to_bits((x + affine.minimum) * inverse);
        sums.q += bits;
        sums.qq += bits * bits;
        sums.xq += x * bits;
        x_sum += x;
    }
    (sums, x_sum)
}

impl Coded {
    #[inline(always)]
    fn affine(self, factors: Factors) -> Affine {
        Affine { scale: self.scale * factors.d, minimum: self.minimum * factors.dmin }
    }
}

impl Affine {
    /// What a value above the minimum is multiplied by; zero where all elements are the minimum.
    #[inline(always)]
    fn inverse(self) -> f32 {
        if self.scale > 0.0 { 1.0 / self.scale } else { 0.0 }
    }
}

#[inline(always)]
fn pack(groups: &[Group; Q4K_GROUPS], coded: &[Coded; Q4K_GROUPS], factors: Factors) -> BlockQ4K {
    let mut values = [0; Q4K_COLS / 2];
    for (number, (group, code)) in groups.iter().zip(coded).enumerate() {
        let affine = code.affine(factors);
        let inverse = affine.inverse();
        let shift = if number.is_multiple_of(2) { 0 } else { 4 };
        let bytes = &mut values[number / 2 * Q4K_GROUP..][..Q4K_GROUP];
        for (byte, x) in bytes.iter_mut().zip(group) {
            // The sum's lowest bits are the whole number.
            let bits = to_bits((x + affine.minimum) * inverse) + ROUNDER;
            *byte |= (bits.to_bits() as u8 & 15) << shift;
        }
    }
    let groups = coded.map(|code| (code.scale as u8, code.minimum as u8));
    BlockQ4K::new(f16::from_f32(factors.d), f16::from_f32(factors.dmin), groups, values)
}

/// Rounded to a whole number of four bits.
#[inline(always)]
fn to_bits(value: f32) -> f32 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < MAX_BITS { value } else { MAX_BITS };
    (value + ROUNDER) - ROUNDER
}

/// The lane of the smallest number, the first of several.
#[inline(always)]
fn smallest(errors: &[f32]) -> usize {
    let mut best = 0;
    for (lane, error) in errors.iter().enumerate() {
        if *error < errors[best] {
            best = lane;
        }
    }
    best
}

#[inline(always)]
fn total_error(coded: &[Coded; Q4K_GROUPS]) -> f32 {
    coded.iter().map(|code| code.error).sum()
}

/// The nearest finite half, as f32.
#[inline(always)]
fn to_half(value: f32) -> f32 {
    f16::from_f32(value.min(f16::MAX.to_f32())).to_f32()
}
