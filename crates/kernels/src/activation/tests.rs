//! Every table against f64 on a sweep over all of f32, and at the values where formulas break.

#[cfg(target_arch = "x86_64")]
use crate::Isa;
use crate::testing::tables;

/// Finite values from all of f32: every exponent, both signs, with a prime step so that mantissas vary.
fn sweep() -> impl Iterator<Item = f32> {
    (0..=u32::MAX).step_by(3001).map(f32::from_bits).filter(|x| x.is_finite())
}

/// Values where the exponential neither vanishes nor overflows, densely.
fn dense() -> impl Iterator<Item = f32> {
    (-1_060_000..=900_000).map(|i| i as f32 / 10_000.0)
}

/// How many f32 lie between two values of one sign.
#[cfg(target_arch = "x86_64")]
fn distance(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

/// The exponentials that kernels share, of each instruction set that this machine has.
#[cfg(target_arch = "x86_64")]
fn exponentials(x: &[f32]) -> Vec<(Isa, Vec<f32>)> {
    use crate::activation::{avx2::exp8, avx512::exp16};
    use crate::{Lanes, avx2, avx512};

    #[target_feature(enable = "avx2,fma,f16c")]
    fn by_eight(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks(8).zip(out.chunks_mut(8)) {
            let mut results = [0.0; 8];
            avx2::store(&mut results, exp8(avx2::load(&avx2::padded(x))));
            out.copy_from_slice(&results[..out.len()]);
        }
    }

    #[target_feature(enable = "avx512f")]
    fn by_sixteen(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks(16).zip(out.chunks_mut(16)) {
            let mut results = Lanes(avx2::padded(x));
            let values = avx512::load(&results);
            avx512::store(&mut results, exp16(values));
            out.copy_from_slice(&results.0[..out.len()]);
        }
    }

    type Exponential = unsafe fn(&[f32], &mut [f32]);
    let all: [(Isa, Exponential); 2] = [(Isa::Avx2, by_eight), (Isa::Avx512, by_sixteen)];
    let here = all.into_iter().filter(|(isa, _)| isa.is_available());
    let results = here.map(|(isa, exp)| {
        let mut out = vec![0.0; x.len()];
        // SAFETY: the instructions are available.
        unsafe { exp(x, &mut out) };
        (isa, out)
    });
    results.collect()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn exp_is_right_to_two_units_in_the_last_place() {
    let inputs: Vec<f32> = sweep().chain(dense()).collect();
    for (isa, results) in exponentials(&inputs) {
        for (x, got) in inputs.iter().zip(results) {
            let expected = f64::from(*x).exp() as f32;
            assert!(distance(got, expected) <= 2, "{isa}: exp({x}) = {got}, not {expected}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn exp_at_the_edges() {
    let x = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, -0.0, f32::INFINITY, f32::NAN, f32::MAX, 1.0];
    for (isa, x) in exponentials(&x) {
        assert_eq!(x[..6], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY], "{isa}");
        assert!(x[6].is_nan() && x[7] == f32::INFINITY && (x[8] - std::f32::consts::E).abs() < 1e-6, "{isa}");
    }
}

/// Relative error of `1 / (1 + exp(-x))`: two units of the exponential, a sum, a quotient; then, for silu, up to two
/// products.
const RELATIVE: f64 = 4.0 * f32::EPSILON as f64;
/// Where exp(-x) overflows the quotient is 0 instead of at most exp(-88.7).
const ABSOLUTE: f64 = f32::MIN_POSITIVE as f64;

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

#[test]
fn sigmoid_agrees_with_f64() {
    let inputs: Vec<f32> = sweep().chain(dense()).collect();
    for kernels in tables() {
        let mut outputs = inputs.clone();
        kernels.sigmoid(&mut outputs);
        for (x, got) in inputs.iter().zip(outputs) {
            let expected = sigmoid(*x);
            let bound = RELATIVE * expected + ABSOLUTE;
            assert!(
                (f64::from(got) - expected).abs() <= bound,
                "{kernels:?} sigmoid({x}) = {got}, not {expected}"
            );
        }
        let mut edges = [f32::NEG_INFINITY, f32::INFINITY, 0.0, f32::NAN];
        kernels.sigmoid(&mut edges);
        assert_eq!(edges[..3], [0.0, 1.0, 0.5], "{kernels:?}");
        assert!(edges[3].is_nan(), "{kernels:?}");
    }
}

#[test]
fn silu_agrees_with_f64() {
    let inputs: Vec<f32> = sweep().chain(dense()).collect();
    let up: Vec<f32> = (0..inputs.len()).map(|i| [0.5, -1.25, 1.0][i % 3]).collect();
    for kernels in tables() {
        let mut outputs = inputs.clone();
        kernels.silu_mul(&mut outputs, &up);
        for ((x, up), got) in inputs.iter().zip(&up).zip(outputs) {
            let factor = f64::from(*x) * f64::from(*up);
            let expected = factor * sigmoid(*x);
            let bound = RELATIVE * expected.abs() + ABSOLUTE * factor.abs().max(1.0);
            let overflows = got.is_infinite() && expected.abs() > f64::from(f32::MAX);
            let close = (f64::from(got) - expected).abs() <= bound;
            assert!(close || overflows, "{kernels:?} silu({x}) * {up} = {got}, not {expected}");
        }
        for length in 0..40 {
            let (mut gate, mut longer) = (inputs[..length].to_vec(), inputs[..length + 8].to_vec());
            kernels.silu_mul(&mut gate, &up[..length]);
            kernels.silu_mul(&mut longer, &up[..length + 8]);
            assert_eq!(gate, longer[..length], "{kernels:?}: results depend on the length {length}");
        }
    }
}
