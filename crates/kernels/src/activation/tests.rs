//! Every table against f64 on a sweep over all of f32, and at the values where formulas break.

use crate::testing::tables;
#[cfg(target_arch = "x86_64")]
use crate::{
    Isa,
    activation::avx2::exp8,
    avx2::{LANES, load, padded, store},
};

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

/// The exponential that the AVX2 kernels share; none where the machine lacks them.
#[cfg(target_arch = "x86_64")]
fn exp(x: &[f32]) -> Option<Vec<f32>> {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn exp(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let mut results = [0.0; LANES];
            store(&mut results, exp8(load(&padded(x))));
            out.copy_from_slice(&results[..out.len()]);
        }
    }

    let mut out = vec![0.0; x.len()];
    // SAFETY: the instructions are available.
    Isa::Avx2.is_available().then(|| unsafe { exp(x, &mut out) })?;
    Some(out)
}

#[cfg(target_arch = "x86_64")]
#[test]
fn exp_is_right_to_two_units_in_the_last_place() {
    let inputs: Vec<f32> = sweep().chain(dense()).collect();
    for (x, got) in inputs.iter().zip(exp(&inputs).unwrap_or_default()) {
        let expected = f64::from(*x).exp() as f32;
        assert!(distance(got, expected) <= 2, "exp({x}) = {got}, not {expected}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn exp_at_the_edges() {
    let x = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, -0.0, f32::INFINITY, f32::NAN, f32::MAX, 1.0];
    let Some(x) = exp(&x) else { return };
    assert_eq!(x[..6], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY]);
    assert!(x[6].is_nan() && x[7] == f32::INFINITY && (x[8] - std::f32::consts::E).abs() < 1e-6);
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
