//! What the AVX2 files share: loads of weights as f32, sums across a vector, and the ends of rows.
//!
//! A vector is eight f32. Functions here are compiled for AVX2, FMA and F16C and inlined into kernels that are, too.

pub(crate) mod fp8;

use crate::Format;
use std::arch::x86_64::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Values in a vector.
pub(crate) const LANES: usize = 8;
/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// A format whose elements stand alone, as a type, so that a loop is compiled once for each.
pub(crate) trait Encoding {
    /// The format.
    const FORMAT: Format;
    /// Bytes of an element.
    const BYTES: usize = Self::FORMAT.bytes(1);
    /// What the values that [`load16`] gives must be multiplied by: a power of two.
    const UNIT: f32 = 1.0;
}

pub(crate) enum F32 {}
pub(crate) enum Bf16 {}
pub(crate) enum Fp8 {}

impl Encoding for F32 {
    const FORMAT: Format = Format::F32;
}

impl Encoding for Bf16 {
    const FORMAT: Format = Format::Bf16;
}

impl Encoding for Fp8 {
    const FORMAT: Format = Format::Fp8;
    const UNIT: f32 = 256.0;
}

/// Sixteen weights as f32, divided by [`Encoding::UNIT`]. An FP8 NaN comes out as 480, the value its bits would have
/// otherwise: who calls this looks for NaN with [`fp8::watch_nan`], which is cheaper than a test of every element.
///
/// FP8 goes through half precision, whose exponent is one bit wider and biased by 8 more: the same bits, moved, are
/// the value divided by 2^8, subnormals included, and the processor's conversion from half is exact. (Through f32
/// it would be one instruction less, but subnormals would be f32 subnormals, which some processors trap on.)
///
/// # Safety
/// `weights` points to 16 readable elements.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) unsafe fn load16<E: Encoding>(weights: *const u8) -> [__m256; 2] {
    match E::FORMAT {
        // SAFETY: 16 elements of 4 bytes are two loads of 32; they need no alignment.
        Format::F32 => unsafe { [_mm256_loadu_ps(weights.cast()), _mm256_loadu_ps(weights.add(32).cast())] },
        Format::Bf16 => {
            // SAFETY: 16 elements of 2 bytes are two loads of 16; they need no alignment.
            let halves =
                unsafe { [_mm_loadu_si128(weights.cast()), _mm_loadu_si128(weights.add(16).cast())] };
            [widen_bf16(halves[0]), widen_bf16(halves[1])]
        }
        Format::Fp8 => {
            // SAFETY: 16 elements of 1 byte are one load of 16; it needs no alignment.
            widen_half(fp8_to_half(unsafe { _mm_loadu_si128(weights.cast()) }))
        }
        Format::Q8_0 | Format::Q4K => unreachable!("formats of blocks have no encoding"),
    }
}

/// As [`load16`], but an FP8 NaN is NaN.
///
/// # Safety
/// `weights` points to 16 readable elements.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) unsafe fn load16_with_nan<E: Encoding>(weights: *const u8) -> [__m256; 2] {
    if E::FORMAT != Format::Fp8 {
        // SAFETY: what the caller promises is what `load16` asks for.
        return unsafe { load16::<E>(weights) };
    }
    // SAFETY: 16 elements of 1 byte are one load of 16; it needs no alignment.
    let halves = fp8_to_half(unsafe { _mm_loadu_si128(weights.cast()) });
    let magnitude = _mm256_and_si256(halves, _mm256_set1_epi16(0x7fff));
    let is_nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f << 7));
    widen_half(_mm256_or_si256(halves, is_nan)) // all bits set is a NaN in half precision, too
}

/// The sign to bit 15, exponent and mantissa from bit 7 on. The shift carries two copies of the sign; one stays.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fp8_to_half(bytes: __m128i) -> __m256i {
    let shifted = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(bytes));
    _mm256_and_si256(shifted, _mm256_set1_epi16(0xbf80_u16.cast_signed()))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen_half(halves: __m256i) -> [__m256; 2] {
    [_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves))]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen_bf16(halves: __m128i) -> __m256 {
    // One shuffle moves each half to the top of its word: four halves in each half of the vector.
    let top = |half: i8| i32::from_le_bytes([-1, -1, 2 * half, 2 * half + 1].map(i8::cast_unsigned));
    let [a, b, c, d, e, f, g, h] = std::array::from_fn(|half| top(half as i8));
    let tops = _mm256_setr_epi32(a, b, c, d, e, f, g, h);
    _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(halves), tops))
}

/// Whether what is used once is to come into the first cache and to push nothing out of the others. On Zen 2 that makes a
/// stream up to a third faster; on Emerald Rapids, whose first cache waits for few lines at a time, half as fast as asking
/// for it into the second.
static ALONE: AtomicBool = AtomicBool::new(true);

/// Finds out how memory is asked for on this processor.
pub(crate) fn meet_processor() {
    // Only AMD's have SSE4a.
    ALONE.store(is_x86_feature_detected!("sse4a"), Ordering::Relaxed);
}

/// How many bytes ahead a loop that reads weights once asks for them where they come into the first cache: what a core gets
/// from memory in several times the latency, and a part of that cache.
pub(crate) const AHEAD: usize = 4 << 10;

/// How many bytes ahead such a loop asks for them: `first` where they come into the first cache. The second has room for more
/// (measured on Emerald Rapids).
pub(crate) fn ahead(first: usize) -> usize {
    match ALONE.load(Ordering::Relaxed) {
        true => first,
        false => 6 << 10,
    }
}

/// Asks for the cache line of `address` ahead of time, which will be used once. Any address may be asked for, mapped or not: a
/// prefetch never faults and reads nothing that the program can see.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    prefetch_range(address, 1);
}

/// As [`prefetch`], for the lines of `start`, `start + 64` and so on of some bytes: how to ask is looked up once. What of the
/// last byte's line lies behind that, the next range asks for.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn prefetch_range(start: *const u8, bytes: usize) {
    if ALONE.load(Ordering::Relaxed) {
        for byte in (0..bytes).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_NTA>(start.wrapping_add(byte).cast());
        }
    } else {
        for byte in (0..bytes).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(byte).cast());
        }
    }
}

/// A sequence of addresses that a loop asks memory for while it computes, which spreads the requests over the work
/// that hides them. They need not be mapped.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) start: *const u8,
    /// Bytes from an address to the next.
    pub(crate) step: usize,
}

impl Ahead {
    /// Asks for nothing new: for `near`, which is in the first cache anyway.
    pub(crate) fn nothing<T>(near: &[T]) -> Self {
        Self { start: near.as_ptr().cast(), step: 0 }
    }

    /// Asks for address `number`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(crate) fn request(self, number: usize) {
        prefetch(self.start.wrapping_add(number * self.step));
    }
}

/// Eight values.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn load(values: &[f32; LANES]) -> __m256 {
    // SAFETY: a reference to eight floats; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Eight values.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn store(values: &mut [f32; LANES], vector: __m256) {
    // SAFETY: an exclusive reference to eight floats; the store needs no alignment.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) }
}

/// Eight bytes, in the lower half.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn load8(bytes: &[u8; LANES]) -> __m128i {
    // SAFETY: a reference to eight bytes; the load needs no alignment.
    unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) }
}

/// `vector`, which must be in a register here, before what comes later in the program passes through this function.
/// Integer sums may be taken in any order, and where a loop of them is unrolled the compiler chooses one that needs more
/// registers than there are, and spends the time on moving them.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn in_order(mut vector: __m256i) -> __m256i {
    // SAFETY: no instruction at all. It is not `pure`, so that several keep their order.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) vector, options(nomem, nostack, preserves_flags)) };
    vector
}

/// A pointer that is computed here, once for all that is read beside it.
#[expect(clippy::pointers_in_nomem_asm_block, reason = "what it points to stays as it is")]
#[inline(always)]
pub(crate) fn in_register<T>(mut pointer: *const T) -> *const T {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// `value`, which must be in memory here. A loop over parts of a tile adds to sums that it would keep in registers, of
/// which there are too few for them: the compiler would move them to the stack and back.
#[inline(always)]
pub(crate) fn in_memory<T>(value: &mut T) {
    // SAFETY: no instruction at all; what it could do to memory, a holder of the exclusive reference may.
    unsafe { std::arch::asm!("/* {0} */", in(reg) value, options(nostack, preserves_flags)) };
}

/// Sixteen bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn load16_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Eight signed bytes as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn widen_int8(bytes: &[u8; LANES]) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(bytes)))
}

/// A vector of bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Writes a vector of bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn store32(bytes: &mut [u8; 32], vector: __m256i) {
    // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
}

/// Four neighbouring bytes in every lane of 32 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn broadcast_four(bytes: [u8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_ne_bytes(bytes))
}

/// A half, little-endian, in every lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn broadcast_half(bytes: [u8; 2]) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(bytes)))
}

/// The value of a half, little-endian.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn half(bytes: [u8; 2]) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)))))
}

/// At most `N` values, zeros behind them.
#[inline]
pub(crate) fn padded<T: Copy + Default, const N: usize>(values: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all[..values.len()].copy_from_slice(values);
    all
}

/// All `N` values, or fewer with zeros behind them, which are then kept in `end`.
#[inline]
pub(crate) fn whole<'a, T: Copy + Default, const N: usize>(
    values: &'a [T],
    end: &'a mut Option<[T; N]>,
) -> &'a [T; N] {
    match values.try_into() {
        Ok(all) => all,
        Err(_) => end.insert(padded(values)),
    }
}

/// The sum of the eight lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn sum(vector: __m256) -> f32 {
    sum_of_four(_mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps::<1>(vector)))
}

/// The sum of the four lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn sum_of_four(vector: __m128) -> f32 {
    let two = _mm_add_ps(vector, _mm_movehl_ps(vector, vector));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The sums of the lanes of four vectors, in their order.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn sum_each(vectors: [__m256; 4]) -> __m128 {
    let pairs = [_mm256_hadd_ps(vectors[0], vectors[1]), _mm256_hadd_ps(vectors[2], vectors[3])];
    let halves = _mm256_hadd_ps(pairs[0], pairs[1]);
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

/// Calls for a number of rows or tokens known to the compiler: `$call` sees it as the constant `$name`, one of `$number`.
macro_rules! with_count {
    ($count:expr, $name:ident of [$($number:literal)*], $call:expr) => {
        match $count {
            $($number => {
                const $name: usize = $number;
                $call
            })*
            other => unreachable!("{other} at a time"),
        }
    };
}
pub(crate) use with_count;
