//! Every table does the same operations in the same order, so results are equal bit for bit.

use crate::testing::{Random, tables};

#[test]
fn every_table_gives_the_same_bits() {
    let mut random = Random(1);
    for length in (0..70).chain([1000]) {
        let (x, y, scale) = (random.values(length), random.values(length), random.value());
        let zip = |operation: fn(f32, f32, f32) -> f32| -> Vec<f32> {
            x.iter().zip(&y).map(|(x, y)| operation(*x, *y, scale)).collect()
        };
        for kernels in tables() {
            let mut out = vec![f32::NAN; length];
            kernels.scale_mul(&x, scale, &y, &mut out);
            assert_eq!(out, zip(|x, y, scale| x * scale * y), "{kernels:?} scale_mul");

            let mut out = x.clone();
            kernels.add(&mut out, &y);
            assert_eq!(out, zip(|x, y, _| x + y), "{kernels:?} add");

            let mut out = x.clone();
            kernels.add_scaled(&mut out, scale, &y);
            assert_eq!(out, zip(|x, y, scale| x + scale * y), "{kernels:?} add_scaled");
        }
    }
}
