//! The tables that there are, and what their methods refuse.

use super::*;

#[test]
fn the_best_table_is_used_where_none_is_chosen() {
    let isas: Vec<Isa> = Kernels::available().map(Kernels::isa).collect();
    assert_eq!(isas.first(), Some(&Isa::Scalar));
    let best = Isa::best();
    let possible = match isas.last() {
        // The processor says which of the two.
        Some(Isa::Avx2Halves) => vec![Isa::Avx2, Isa::Avx2Halves],
        last => Vec::from_iter(last.copied()),
    };
    assert!(possible.contains(&best), "{best}, not one of {possible:?}");
    assert_eq!(Kernels::best().isa(), best);
    assert_eq!(Kernels::choose(best), Ok(()));
    if best != Isa::Scalar {
        assert_eq!(Kernels::choose(Isa::Scalar), Err(best), "the best is in use");
    }
    for isa in Isa::ALL {
        assert_eq!(Kernels::for_isa(isa).map(Kernels::isa), isa.is_available().then_some(isa));
    }
}

/// Shapes of w, x and out, as `[rows, cols]`.
fn matmul(w: [usize; 2], x: [usize; 2], out: [usize; 2]) {
    let (w_values, x_values, mut out_values) = ([0.0; 64], [0.0; 64], [0.0; 64]);
    let w = MatrixView::f32(&w_values[..w[0] * w[1]], w[0], w[1]);
    let x = MatrixRef::new(&x_values[..x[0] * x[1]], x[0], x[1]);
    let out_values = &mut out_values[..out[0] * out[1]];
    Kernels::best().matmul(&w, x, MatrixMut::new(out_values, out[0], out[1]));
}

#[test]
#[should_panic(expected = "columns of x and of w")]
fn inputs_must_agree() {
    matmul([3, 4], [2, 5], [2, 3]);
}

#[test]
#[should_panic(expected = "columns of out and rows of w")]
fn outputs_must_agree() {
    matmul([3, 4], [2, 4], [2, 4]);
}

#[test]
#[should_panic(expected = "rows of out and of x")]
fn tokens_must_agree() {
    matmul([3, 4], [2, 4], [3, 3]);
}

#[test]
#[should_panic(expected = "columns of x and rows of w")]
fn inputs_of_the_transposed_must_agree() {
    let w = MatrixView::f32(&[0.0; 12], 3, 4);
    let mut out = [0.0; 4];
    Kernels::best().matmul_transposed(&w, MatrixRef::new(&[0.0; 4], 1, 4), MatrixMut::new(&mut out, 1, 4));
}

#[test]
#[should_panic(expected = "lengths of x and y")]
fn lengths_must_agree() {
    Kernels::best().add(&mut [0.0; 3], &[0.0; 4]);
}

#[test]
#[should_panic(expected = "rows 3..4 of 3")]
fn a_row_must_exist() {
    Kernels::best().dequantize_row(&MatrixView::f32(&[0.0; 12], 3, 4), 3, &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "pairs of sin")]
fn every_pair_has_an_angle() {
    Kernels::best().rope_interleaved(&mut [0.0; 4], &[0.0; 2], &[0.0; 3]);
}
