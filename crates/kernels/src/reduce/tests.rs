//! Every table against f64, on every length up to a few vectors and on a long one.

use crate::testing::{Random, sum_error, tables};

fn lengths() -> impl Iterator<Item = usize> {
    (0..100).chain([1000, 7168])
}

#[test]
fn dot_and_sum_of_squares_agree_with_f64() {
    let mut random = Random(1);
    for length in lengths() {
        let (a, b) = (random.values(length), random.values(length));
        let product = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let magnitude: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a * b).abs()).sum();
        for kernels in tables() {
            let error = (f64::from(kernels.dot(&a, &b)) - product(&a, &b)).abs();
            assert!(error <= sum_error(length, magnitude), "{kernels:?} dot of {length}");
            let squares = product(&a, &a);
            let error = (f64::from(kernels.sum_of_squares(&a)) - squares).abs();
            assert!(error <= sum_error(length, squares), "{kernels:?} squares of {length}");
        }
    }
}

#[test]
fn max_finds_the_largest_at_every_place() {
    for kernels in tables() {
        assert_eq!(kernels.max(&[]), f32::NEG_INFINITY);
        for length in 1..100 {
            for place in 0..length {
                let mut x = vec![-2.0; length];
                x[place] = -1.0;
                assert_eq!(kernels.max(&x), -1.0, "{kernels:?} {place} of {length}");
                x[place] = f32::NAN;
                let expected = if length == 1 { f32::NEG_INFINITY } else { -2.0 };
                assert_eq!(kernels.max(&x), expected, "{kernels:?} NaN at {place} of {length}");
            }
        }
    }
}
