//! In what arithmetic a matrix product is done, and activations as the product takes them.

use crate::{Device, Tensor, buffer::Buffer, device::rows_per_task};
use dsv3_kernels::{
    Format, IntegerMatrix, IntegerMut, IntegerRef, Kernels, MatrixMut, MatrixRef, MatrixView, Order, Queue,
};
use serde::{Deserialize, Serialize};
use std::{mem, ops::Range};

/// The arithmetic of a matrix product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// Activations in f32, always: weights are taken for what they are.
    #[default]
    Float,
    /// Activations in integers of 8 bits wherever the weight's format has an integer product that is faster for as many
    /// tokens: q4_K always, q8_0 and FP8 from a few on. One scale for [as many columns](Format::group_cols) as the format's own
    /// activations have: for 32 as in ggml, for 128 of FP8. Elsewhere as `Float`.
    Integer,
    /// As `Float`, but a token's result does not depend on the tokens beside it: in the order of few tokens.
    FloatFew,
    /// As `FloatFew`, in the order of many tokens.
    FloatMany,
    /// As `Integer`, but a token's result does not depend on the tokens beside it: as for few tokens.
    IntegerFew,
    /// As `IntegerFew`, as for many tokens.
    IntegerMany,
}

impl Arithmetic {
    /// In which order products add up.
    pub fn order(self) -> Order {
        match self {
            Self::Float | Self::Integer => Order::Fastest,
            Self::FloatFew | Self::IntegerFew => Order::Few,
            Self::FloatMany | Self::IntegerMany => Order::Many,
        }
    }

    /// Whether activations are integers where that is faster.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Integer | Self::IntegerFew | Self::IntegerMany)
    }

    /// The same arithmetic in an order.
    #[must_use]
    pub fn in_order(self, order: Order) -> Self {
        match (self.is_integer(), order) {
            (false, Order::Fastest) => Self::Float,
            (false, Order::Few) => Self::FloatFew,
            (false, Order::Many) => Self::FloatMany,
            (true, Order::Fastest) => Self::Integer,
            (true, Order::Few) => Self::IntegerFew,
            (true, Order::Many) => Self::IntegerMany,
        }
    }
}

/// Activations as integers, whose memory goes back to the free list.
#[derive(Debug)]
pub(crate) struct Integers {
    matrix: IntegerMatrix,
    /// That of the weights that they are for.
    format: Format,
}

impl Integers {
    /// `x` as the product with `w` takes it; none where that is f32.
    pub(crate) fn quantize(
        x: &Tensor,
        w: &MatrixView<'_>,
        arithmetic: Arithmetic,
        device: &Device,
    ) -> Option<Self> {
        Self::pay(w, x.rows(), arithmetic, device.kernels()).then(|| Self::of(x, w.format(), device))
    }

    /// `x` as integers, as products with weights in `format` take it.
    pub(crate) fn of(x: &Tensor, format: Format, device: &Device) -> Self {
        Self::fill([x.rows(), x.cols()], format, device, |row, out| {
            device.kernels().quantize(x.as_ref().row_range(row..row + out.rows()), out);
        })
    }

    /// Whether a product of `tokens` rows with `w` takes integers.
    pub(crate) fn pay(w: &MatrixView<'_>, tokens: usize, arithmetic: Arithmetic, kernels: &Kernels) -> bool {
        arithmetic.is_integer() && kernels.takes_integers_in(arithmetic.order(), w, tokens)
    }

    /// These with `rows` rows, of which row `r` is row `source(r)` of these.
    pub(crate) fn gather(
        &self,
        rows: usize,
        source: impl Fn(usize) -> usize + Sync,
        device: &Device,
    ) -> Self {
        let from = self.as_ref();
        Self::fill([rows, from.cols()], self.format, device, |first, mut out| {
            for row in 0..out.rows() {
                out.copy_row(row, from, source(first + row));
            }
        })
    }

    /// A matrix of which `f` fills in ranges of rows; it gets the number of the first.
    fn fill(
        [rows, cols]: [usize; 2],
        format: Format,
        device: &Device,
        f: impl Fn(usize, IntegerMut<'_>) + Sync,
    ) -> Self {
        let memory = Buffer::anything(IntegerMatrix::lines(rows, cols));
        let mut matrix = IntegerMatrix::in_memory(memory.into_vec());
        let chunks = matrix.reshape(rows, cols, format).row_chunks(rows_per_task(cols));
        device.for_each(&Queue::new(chunks), |(first, out)| f(first, out));
        Self { matrix, format }
    }

    /// To read.
    pub(crate) fn as_ref(&self) -> IntegerRef<'_> {
        self.matrix.as_ref()
    }
}

impl Drop for Integers {
    fn drop(&mut self) {
        drop(Buffer::from_vec(mem::take(&mut self.matrix).into_memory()));
    }
}

/// Activations to multiply: as they are, as integers, or both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    float: Option<MatrixRef<'a>>,
    integer: Option<IntegerRef<'a>>,
    order: Order,
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(float: &'a Tensor, integer: Option<&'a Integers>, order: Order) -> Self {
        Self { float: Some(float.as_ref()), integer: integer.map(Integers::as_ref), order }
    }

    /// For products in f32 only.
    pub(crate) fn floats(float: MatrixRef<'a>, order: Order) -> Self {
        Self { float: Some(float), integer: None, order }
    }

    /// For products in integers only.
    pub(crate) fn integers(integers: &'a Integers, order: Order) -> Self {
        Self { float: None, integer: Some(integers.as_ref()), order }
    }

    /// Some of the rows.
    pub(crate) fn row_range(&self, rows: Range<usize>) -> Self {
        Self {
            float: self.float.map(|float| float.row_range(rows.clone())),
            integer: self.integer.map(|integer| integer.row_range(rows)),
            order: self.order,
        }
    }

    /// Whether a product of `rows` of the rows with `w` takes the integers.
    pub(crate) fn takes_integers(&self, w: &MatrixView<'_>, rows: usize, kernels: &Kernels) -> bool {
        kernels.takes_integers_in(self.order, w, rows)
            && self.integer.is_some_and(|integer| integer.serve(w.format()))
    }

    /// `out = x w^T`, in integers where there are those that the product takes.
    ///
    /// # Shapes
    /// x `[tokens, cols]`, w `[rows, cols]`, out `[tokens, rows]`.
    ///
    /// # Panics
    /// If there are only integers, and the product takes none.
    pub(crate) fn matmul(&self, w: &MatrixView<'_>, out: MatrixMut<'_>, kernels: &Kernels) {
        let takes_integers = self.takes_integers(w, out.rows(), kernels);
        match (self.integer, self.float) {
            (Some(x), _) if takes_integers => kernels.matmul_integer_in(self.order, w, x, out),
            (_, Some(x)) => kernels.matmul_in(self.order, w, x, out),
            (_, None) => {
                panic!("a product of {} with {} rows in f32, which are not there", w.format(), out.rows())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsv3_kernels::{Format, Isa};
    use dsv3_mesh::Mesh;

    #[test]
    fn integers_are_taken_where_the_format_has_them() {
        for kernels in Kernels::available() {
            check_integers_of(&Device::new(Mesh::single(), kernels, 2).unwrap());
        }
    }

    fn check_integers_of(device: &Device) {
        // Of q8_0: a scale of 1/64, then 64s, so that products of 16 bits lose nothing; of f32, ones.
        let block: Vec<u8> = [0x00, 0x24].into_iter().chain([64; 32]).collect();
        let bytes = block.repeat(3 * 1000);
        let blocks = MatrixView::from_bytes(Format::Q8_0, &bytes, 3, 32_000, None);
        let ones = vec![1.0; 3 * 32_000];
        let floats = MatrixView::f32(&ones, 3, 32_000);
        // One token is multiplied in f32 but by the table for vectors in halves.
        let one = device.kernels().isa() == Isa::Avx2Halves;
        // More values than one task quantises.
        for (rows, arithmetic, expected) in
            [(20, Arithmetic::Integer, true), (20, Arithmetic::Float, false), (1, Arithmetic::Integer, one)]
        {
            let x = Tensor::from_vec(rows, 32_000, vec![0.5; rows * 32_000]);
            let integers = Integers::quantize(&x, &blocks, arithmetic, device);
            assert_eq!(integers.is_some(), expected);
            assert!(Integers::quantize(&x, &floats, arithmetic, device).is_none());
            let gathered = integers.as_ref().map(|all| all.gather(rows, |row| rows - 1 - row, device));
            for w in [blocks, floats] {
                let mut out = Tensor::from_vec(rows, 3, vec![f32::NAN; rows * 3]);
                let inputs = Inputs::new(&x, gathered.as_ref(), arithmetic.order());
                inputs.matmul(&w, out.as_mut(), device.kernels());
                // Half is the largest value of each block, so it is exact but for the rounding of its scale.
                let bound = 16_000.0 * 32_000.0 * f32::EPSILON;
                assert!(
                    out.values().iter().all(|value| (value - 16_000.0).abs() <= bound),
                    "{:?}",
                    out.values()
                );
            }
        }
    }

    #[test]
    fn an_arithmetic_is_written_as_it_is_called() {
        assert_eq!(serde_json::to_value(Arithmetic::Integer).unwrap(), "integer");
        assert_eq!(serde_json::to_value(Arithmetic::Float.in_order(Order::Few)).unwrap(), "float_few");
        assert_eq!(serde_json::to_value(Arithmetic::default()).unwrap(), "float");
    }
}
