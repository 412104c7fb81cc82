//! Every table against f64 on a sweep over all of f32, and at the values where formulas break.

use crate::testing::{Random, sum_error, tables};

/// Finite values from all of f32: every exponent, both signs, with a prime step so that mantissas vary.
fn sweep() -> impl Iterator<Item = f32> {
    (0..=u32::MAX).step_by(3001).map(f32::from_bits).filter(|x| x.is_finite())
}

/// Values where the exponential neither vanishes nor overflows, densely.
fn dense() -> impl Iterator<Item = f32> {
    (-1_060_000..=900_000).map(|i| i as f32 / 10_000.0)
}

/// How many f32 lie between two values of one sign.
fn distance(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn exp_is_right_to_two_units_in_the_last_place() {
    let inputs: Vec<f32> = sweep().chain(dense()).collect();
    for kernels in tables() {
        let mut outputs = inputs.clone();
        kernels.exp_sum(&mut outputs, 0.0);
        for (x, got) in inputs.iter().zip(outputs) {
            let expected = f64::from(*x).exp() as f32;
            assert!(distance(got, expected) <= 2, "{kernels:?} exp({x}) = {got}, not {expected}");
        }
    }
}

#[test]
fn exp_at_the_edges() {
    for kernels in tables() {
        let mut x = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, -0.0, f32::INFINITY, f32::NAN, f32::MAX, 1.0];
        kernels.exp_sum(&mut x, 0.0);
        assert_eq!(x[..6], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY], "{kernels:?}");
        assert!(
            x[6].is_nan() && x[7] == f32::INFINITY && (x[8] - std::f32::consts::E).abs() < 1e-6,
            "{kernels:?}"
        );
    }
}

#[test]
fn exp_sum_subtracts_and_sums() {
    let mut random = Random(1);
    for length in (0..40).chain([1000]) {
        let x = random.values(length);
        for kernels in tables() {
            let mut out = x.clone();
            let sum = kernels.exp_sum(&mut out, 0.75);
            for (x, got) in x.iter().zip(&out) {
                assert!(
                    distance(*got, f64::from(x - 0.75).exp() as f32) <= 2,
                    "{kernels:?} exp({x} - 0.75) = {got}"
                );
            }
            let expected: f64 = out.iter().copied().map(f64::from).sum();
            assert!(
                (f64::from(sum) - expected).abs() <= sum_error(length, expected),
                "{kernels:?} sum of {length}"
            );
        }
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
