//! Every table against f64, on every length up to a few vectors and on a long one.

use crate::testing::{Random, sum_error, tables};

fn lengths() -> impl Iterator<Item = usize> {
    (0..100).chain([1000, 7168])
}

#[test]
fn sums_of_squares_agree_with_f64() {
    let mut random = Random(1);
    for length in lengths() {
        let x = random.values(length);
        let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        for kernels in tables() {
            let error = (f64::from(kernels.sum_of_squares(&x)) - squares).abs();
            assert!(error <= sum_error(length, squares), "{kernels:?} squares of {length}");
        }
    }
}
