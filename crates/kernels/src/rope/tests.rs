//! Every table against a rotation in f64.

use crate::testing::{Random, sum_error, tables};

#[test]
fn pairs_turn_by_their_angles() {
    let mut random = Random(1);
    for pairs in (0..20).chain([32]) {
        let x = random.values(2 * pairs);
        let angles: Vec<f32> = (0..pairs).map(|_| random.value() * 3.0).collect();
        let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
        for kernels in tables() {
            let mut out = x.clone();
            kernels.rope_interleaved(&mut out, &cos, &sin);
            for pair in 0..pairs {
                let [real, imaginary] = [f64::from(x[2 * pair]), f64::from(x[2 * pair + 1])];
                let [cos, sin] = [f64::from(cos[pair]), f64::from(sin[pair])];
                let expected = [real * cos - imaginary * sin, imaginary * cos + real * sin];
                let bound = sum_error(2, real.abs() + imaginary.abs());
                for (got, expected) in out[2 * pair..][..2].iter().zip(expected) {
                    assert!(
                        (f64::from(*got) - expected).abs() <= bound,
                        "{kernels:?} pair {pair} of {pairs}"
                    );
                }
            }
        }
    }
}
