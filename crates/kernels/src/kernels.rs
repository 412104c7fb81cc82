//! The table: one function for each operation, one table for each instruction set ([`tables`]), and the safe door to them.

mod tables;
#[cfg(test)]
mod tests;

use crate::matmul_integer::Few;
use crate::{
    AttentionState, Format, IntegerMut, IntegerRef, Isa, KeyValues, LANES, Lanes, MatrixMut, MatrixRef,
    MatrixView, Queries,
};
use crate::{BLOCK_FLOATS, BlockElement, BlockRounding};
use std::{fmt, sync::OnceLock};

/// Magnitudes below this can be stored in every format: 63 times the largest half.
pub const QUANTIZE_LIMIT: f32 = 63.0 * 65504.0;

/// In which order a product of several tokens adds up, and so in which bits it ends. Orders differ in speed only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// The fastest for as many tokens.
    #[default]
    Fastest,
    /// The one for few tokens, however many there are: a token's result does not depend on the others.
    Few,
    /// The one for many tokens, however few there are: a token's result does not depend on the others.
    Many,
}

impl Order {
    /// Whether a product of `tokens` takes the way for few tokens, which is the fastest up to `most`.
    pub(crate) fn is_few(self, tokens: usize, most: usize) -> bool {
        match self {
            Order::Fastest => tokens <= most,
            Order::Few => true,
            Order::Many => false,
        }
    }
}

/// The table that is used where none is named.
static BEST: OnceLock<&Kernels> = OnceLock::new();

/// The kernels of one instruction set. A table in hand is the proof that this machine has its instructions, and
/// its methods check the lengths, so they are safe to call.
///
/// SAFETY of calling any pointer: the table's ISA is available, and the arguments have passed the checks of the
/// method of the same name.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    matmul: unsafe fn(Order, &MatrixView<'_>, MatrixRef<'_>, MatrixMut<'_>),
    few: Few,
    quantize: unsafe fn(MatrixRef<'_>, IntegerMut<'_>),
    matmul_integer: unsafe fn(Order, &MatrixView<'_>, IntegerRef<'_>, MatrixMut<'_>),
    matmul_transposed: unsafe fn(Order, &MatrixView<'_>, MatrixRef<'_>, MatrixMut<'_>),
    dequantize: unsafe fn(&MatrixView<'_>, MatrixMut<'_>),
    quantize_row: unsafe fn(Format, &[f32], &mut [u8]),
    pack_block_floats: PackBlockFloats,
    sum_of_squares: unsafe fn(&[f32]) -> f32,
    scale_mul: unsafe fn(&[f32], f32, &[f32], &mut [f32]),
    add: unsafe fn(&mut [f32], &[f32]),
    add_scaled: unsafe fn(&mut [f32], f32, &[f32]),
    silu_mul: unsafe fn(&mut [f32], &[f32]),
    sigmoid: unsafe fn(&mut [f32]),
    rope_interleaved: unsafe fn(&mut [f32], &[f32], &[f32]),
    xor_words: unsafe fn(&[u8]) -> u64,
    fma_rounds: unsafe fn(usize) -> f32,
    int8_rounds: unsafe fn(usize) -> u32,
    pack_lanes: unsafe fn(MatrixRef<'_>, f32, &mut [Lanes]),
    matmul_lanes: unsafe fn(MatrixRef<'_>, &[Lanes], MatrixMut<'_>),
    attend: unsafe fn(&KeyValues<'_>, &Queries<'_>, AttentionState<'_>),
    merge_attention: unsafe fn(&mut AttentionState<'_>, &AttentionState<'_>),
    finish_attention: unsafe fn(&AttentionState<'_>, MatrixMut<'_>),
}

/// How; values, their stride; exponents and elements.
type PackBlockFloats = unsafe fn((BlockElement, BlockRounding), &[f32], usize, &mut [u8], &mut [u8]);

impl Kernels {
    /// The table of an instruction set, if this machine has it.
    pub fn for_isa(isa: Isa) -> Option<&'static Kernels> {
        let table = match isa {
            Isa::Scalar => &tables::SCALAR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &tables::AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Halves => &tables::AVX2_HALVES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &tables::AVX512,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx2Halves | Isa::Avx512 => return None,
        };
        #[cfg(target_arch = "x86_64")]
        crate::avx2::meet_processor();
        isa.is_available().then_some(table)
    }

    /// The tables that this machine can use, in the order of [`Isa::ALL`].
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        Isa::ALL.into_iter().filter_map(Kernels::for_isa)
    }

    /// The table of [`Isa::best`], or of the one that was [chosen](Self::choose).
    pub fn best() -> &'static Kernels {
        BEST.get_or_init(|| Kernels::for_isa(Isa::best()).expect("an available instruction set"))
    }

    /// Lets [`best`](Self::best) be the table of `isa`: where a machine is to give the same bits as one with less, or to
    /// be compared with itself.
    ///
    /// # Errors
    /// If this machine has no such instructions, or the best table has been asked for before and is another: gives what it is.
    pub fn choose(isa: Isa) -> Result<(), Isa> {
        let table = Kernels::for_isa(isa).ok_or_else(Isa::best)?;
        let best = BEST.get_or_init(|| table).isa();
        if best == isa { Ok(()) } else { Err(best) }
    }

    /// The instruction set that this table uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `out[t, r] = sum over c of x[t, c] * w[r, c]`: a linear layer.
    ///
    /// # Shapes
    /// w [rows, cols], x [tokens, cols], out [tokens, rows].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn matmul(&self, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
        self.matmul_in(Order::Fastest, w, x, out);
    }

    /// [`matmul`](Self::matmul) in an order.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn matmul_in(&self, order: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
        assert_eq!(x.cols(), w.cols(), "columns of x and of w");
        assert_eq!(out.cols(), w.rows(), "columns of out and rows of w");
        assert_eq!(out.rows(), x.rows(), "rows of out and of x");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.matmul)(order, w, x, out) }
    }

    /// Whether `tokens` rows of activations are to be multiplied with `w` by
    /// [`matmul_integer`](Self::matmul_integer); where not, [`matmul`](Self::matmul) is the way: the format
    /// has no integer product, or it is not faster for as few tokens.
    pub fn takes_integers(&self, w: &MatrixView<'_>, tokens: usize) -> bool {
        self.few.takes_integers(w, tokens)
    }

    /// [`takes_integers`](Self::takes_integers) for products in an order.
    pub fn takes_integers_in(&self, order: Order, w: &MatrixView<'_>, tokens: usize) -> bool {
        match order {
            Order::Fastest => self.takes_integers(w, tokens),
            Order::Few => self.takes_integers(w, 1),
            Order::Many => self.takes_integers(w, usize::MAX),
        }
    }

    /// `x` as integers: in each [group](Format::group_cols) of columns of a row the largest magnitude becomes 127, and the
    /// rest is rounded to the nearest step. A group with a value that is not finite makes the products of its row NaN; one
    /// with none above 2^-100 is zero.
    ///
    /// # Shapes
    /// x [tokens, cols], out [tokens, cols].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn quantize(&self, x: MatrixRef<'_>, out: IntegerMut<'_>) {
        assert_eq!([out.rows(), out.cols()], [x.rows(), x.cols()], "shapes of out and of x");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.quantize)(x, out) }
    }

    /// `out[t, r] = sum over c of x[t, c] * w[r, c]`, in integers within [groups](Format::group_cols) of columns. What the
    /// result lacks in accuracy against [`matmul`](Self::matmul): half a step of `x` times the weights; of FP8, times `x`,
    /// half of a step of the group's, which is a 64th of its largest magnitude at most, or a 32nd of the scale where that is
    /// more; and of FP8 and `q8_0`, on AVX2, less than 128 steps of a product for 32 columns, because sums have 16 bits
    /// (but for the few tokens of `q8_0` that [`Isa::Avx2Halves`] multiplies exactly).
    ///
    /// # Shapes
    /// w [rows, cols], x [tokens, cols], out [tokens, rows].
    ///
    /// # Panics
    /// If the shapes disagree, `w` never [takes integers](Self::takes_integers), or these do not [serve](IntegerRef::serve)
    /// its format.
    pub fn matmul_integer(&self, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
        self.matmul_integer_in(Order::Fastest, w, x, out);
    }

    /// [`matmul_integer`](Self::matmul_integer) in an order.
    ///
    /// # Panics
    /// As for that.
    pub fn matmul_integer_in(&self, order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
        assert_eq!(x.cols(), w.cols(), "columns of x and of w");
        assert_eq!(out.cols(), w.rows(), "columns of out and rows of w");
        assert_eq!(out.rows(), x.rows(), "rows of out and of x");
        assert!(self.takes_integers(w, usize::MAX), "{w:?} has no integer product");
        assert!(x.serve(w.format()), "activations are in other groups than {} takes", w.format());
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.matmul_integer)(order, w, x, out) }
    }

    /// `out[t, c] = sum over r of x[t, r] * w[r, c]`: absorbs W_uk into the query.
    ///
    /// # Shapes
    /// w [rows, cols], x [tokens, rows], out [tokens, cols].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn matmul_transposed(&self, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
        self.matmul_transposed_in(Order::Fastest, w, x, out);
    }

    /// [`matmul_transposed`](Self::matmul_transposed) in an order.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn matmul_transposed_in(
        &self,
        order: Order,
        w: &MatrixView<'_>,
        x: MatrixRef<'_>,
        out: MatrixMut<'_>,
    ) {
        assert_eq!(x.cols(), w.rows(), "columns of x and rows of w");
        assert_eq!(out.cols(), w.cols(), "columns of out and of w");
        assert_eq!(out.rows(), x.rows(), "rows of out and of x");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.matmul_transposed)(order, w, x, out) }
    }

    /// `w` as f32. Exact for F32, BF16 and q8_0; rounded once for FP8 and q4_K.
    ///
    /// # Shapes
    /// w and out `[rows, cols]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn dequantize(&self, w: &MatrixView<'_>, out: MatrixMut<'_>) {
        assert_eq!((out.rows(), out.cols()), (w.rows(), w.cols()), "rows and columns of out and of w");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.dequantize)(w, out) }
    }

    /// [`dequantize`](Self::dequantize) of row `row` of `w`, into `out`, `[cols]`.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `cols` long.
    pub fn dequantize_row(&self, w: &MatrixView<'_>, row: usize, out: &mut [f32]) {
        self.dequantize(&w.row_range(row..row + 1), MatrixMut::new(out, 1, w.cols()));
    }

    /// `row` as it is stored in `format`: f32 as it is, bf16 to the nearest, q8_0 as ggml quantises it, q4_K by our own
    /// search for the least squared error. Every instruction set writes the same bytes. Values must be finite, and of a
    /// magnitude that the formats' halves can scale: below [`QUANTIZE_LIMIT`].
    ///
    /// # Panics
    /// If the format is FP8, whose scales belong to blocks of rows, if the row is no whole number of the format's blocks,
    /// or if `out` is not as long as the row takes.
    pub fn quantize_row(&self, format: Format, row: &[f32], out: &mut [u8]) {
        assert_ne!(format, Format::Fp8, "a row is not quantised to FP8");
        assert_eq!(Some(out.len()), format.matrix_bytes(1, row.len()), "bytes of {} in {format}", row.len());
        // SAFETY: a table is handed out only where its ISA is available; the lengths agree.
        unsafe { (self.quantize_row)(format, row, out) }
    }

    /// Blocks of 16 values that share an exponent, for Tenstorrent's chips: an exponent and 16 elements for each of
    /// `exponents`. A block lies in a row; the rows are `stride` values apart. Every instruction set writes the same bytes.
    ///
    /// # Panics
    /// If `values` ends before the last block does, or `elements` is not as long as all blocks' elements.
    pub fn pack_block_floats(
        &self,
        how: (BlockElement, BlockRounding),
        values: &[f32],
        stride: usize,
        exponents: &mut [u8],
        elements: &mut [u8],
    ) {
        let blocks = exponents.len();
        assert_eq!(elements.len(), blocks * how.0.block_bytes(), "bytes of {blocks} blocks");
        let last =
            blocks.saturating_sub(1).checked_mul(stride).and_then(|start| start.checked_add(BLOCK_FLOATS));
        assert!(
            blocks == 0 || last.is_some_and(|end| end <= values.len()),
            "{blocks} blocks, {stride} apart, of {} values",
            values.len()
        );
        // SAFETY: a table is handed out only where its ISA is available; the blocks lie within the slices.
        unsafe { (self.pack_block_floats)(how, values, stride, exponents, elements) }
    }

    /// `sum of x[i]^2`: the first half of RMSNorm.
    pub fn sum_of_squares(&self, x: &[f32]) -> f32 {
        // SAFETY: a table is handed out only where its ISA is available.
        unsafe { (self.sum_of_squares)(x) }
    }

    /// `out[i] = x[i] * scale * weight[i]`: the second half of RMSNorm.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scale_mul(&self, x: &[f32], scale: f32, weight: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), weight.len(), "lengths of x and weight");
        assert_eq!(x.len(), out.len(), "lengths of x and out");
        // SAFETY: a table is handed out only where its ISA is available; the lengths are equal.
        unsafe { (self.scale_mul)(x, scale, weight, out) }
    }

    /// `x[i] += y[i]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "lengths of x and y");
        // SAFETY: a table is handed out only where its ISA is available; the lengths are equal.
        unsafe { (self.add)(x, y) }
    }

    /// `x[i] += scale * y[i]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_scaled(&self, x: &mut [f32], scale: f32, y: &[f32]) {
        assert_eq!(x.len(), y.len(), "lengths of x and y");
        // SAFETY: a table is handed out only where its ISA is available; the lengths are equal.
        unsafe { (self.add_scaled)(x, scale, y) }
    }

    /// `gate[i] = silu(gate[i]) * up[i]`, where `silu(x) = x / (1 + exp(-x))`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "lengths of gate and up");
        // SAFETY: a table is handed out only where its ISA is available; the lengths are equal.
        unsafe { (self.silu_mul)(gate, up) }
    }

    /// `x[i] = 1 / (1 + exp(-x[i]))`.
    pub fn sigmoid(&self, x: &mut [f32]) {
        // SAFETY: a table is handed out only where its ISA is available.
        unsafe { (self.sigmoid)(x) }
    }

    /// Rotates the pairs `(x[2i], x[2i + 1])` by the angles whose cosines and sines are given, `[pairs]` each.
    ///
    /// # Panics
    /// If `x` does not have one pair for each cosine and each sine.
    pub fn rope_interleaved(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert_eq!(x.len(), 2 * cos.len(), "length of x and pairs of cos");
        assert_eq!(x.len(), 2 * sin.len(), "length of x and pairs of sin");
        // SAFETY: a table is handed out only where its ISA is available; the lengths agree.
        unsafe { (self.rope_interleaved)(x, cos, sin) }
    }

    /// The exclusive or of all 64-bit words, little-endian; a last part of a word is filled up with zeros. It reads
    /// bytes as fast as they come: what is left to a kernel that must read them.
    pub fn xor_words(&self, bytes: &[u8]) -> u64 {
        // SAFETY: a table is handed out only where its ISA is available.
        unsafe { (self.xor_words)(bytes) }
    }

    /// `rounds` multiply-adds of f32 in each of [`FMA_OPERATIONS`](Self::FMA_OPERATIONS) / 2 lanes, in registers; the
    /// sum of all lanes, each of which counts the rounds.
    pub fn fma_rounds(&self, rounds: usize) -> f32 {
        // SAFETY: a table is handed out only where its ISA is available.
        unsafe { (self.fma_rounds)(rounds) }
    }

    /// `rounds` products of four bytes each, added up to 32 bits, in each of
    /// [`INT8_OPERATIONS`](Self::INT8_OPERATIONS) / 8 lanes, in registers; the sum of all lanes.
    pub fn int8_rounds(&self, rounds: usize) -> u32 {
        // SAFETY: a table is handed out only where its ISA is available.
        unsafe { (self.int8_rounds)(rounds) }
    }

    /// Operations of a round of [`fma_rounds`](Self::fma_rounds): a multiply-add is two.
    pub const FMA_OPERATIONS: usize = 2 * crate::ceiling::FMA_CHAINS * crate::ceiling::LANES;
    /// Operations of a round of [`int8_rounds`](Self::int8_rounds): a multiply-add of bytes is two.
    pub const INT8_OPERATIONS: usize = 8 * crate::ceiling::INT8_CHAINS * crate::ceiling::LANES;

    /// `out[c][lane] = x[lane, c] * factor`: rows side by side, one lane each; zero in lanes that x has no row for.
    ///
    /// # Shapes
    /// x `[at most LANES, cols]`, out `[cols]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn pack_lanes(&self, x: MatrixRef<'_>, factor: f32, out: &mut [Lanes]) {
        assert!(x.rows() <= LANES, "{} rows for {LANES} lanes", x.rows());
        assert_eq!(x.cols(), out.len(), "columns of x and lines of out");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.pack_lanes)(x, factor, out) }
    }

    /// `out[t, lane] = sum over c of x[t, c] * w[c][lane]`, for as many lanes as out has columns.
    ///
    /// # Shapes
    /// x `[tokens, features]`, w `[features]`, out `[tokens, at most LANES]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn matmul_lanes(&self, x: MatrixRef<'_>, w: &[Lanes], out: MatrixMut<'_>) {
        assert_eq!(x.cols(), w.len(), "columns of x and lines of w");
        assert_eq!(x.rows(), out.rows(), "rows of x and of out");
        assert!(out.cols() <= LANES, "{} columns of {LANES} lanes", out.cols());
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.matmul_lanes)(x, w, out) }
    }

    /// Takes a block of keys and values into the attention of a strip of queries. Scores are products of keys and
    /// queries; queries carry the scale.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn attend(&self, block: &KeyValues<'_>, queries: &Queries<'_>, state: AttentionState<'_>) {
        assert_eq!(block.keys.rows(), block.values.rows(), "a value for each key");
        assert_eq!(block.keys.shares_halves(), block.values.shares_halves(), "keys and values stored alike");
        assert_eq!(block.keys.cols(), queries.features.len(), "features of keys and queries");
        assert_eq!(block.values.cols(), state.sums.len(), "a sum for each feature of the values");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.attend)(block, queries, state) }
    }

    /// Takes what `other`, of the same queries, has seen into `state`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn merge_attention(&self, state: &mut AttentionState<'_>, other: &AttentionState<'_>) {
        assert_eq!(state.sums.len(), other.sums.len(), "features of the values of both");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.merge_attention)(state, other) }
    }

    /// The attention of each query as a row: `out[lane, c] = sums[c][lane] / sum[lane]`.
    ///
    /// # Shapes
    /// out [at most LANES, v].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn finish_attention(&self, state: &AttentionState<'_>, out: MatrixMut<'_>) {
        assert!(out.rows() <= LANES, "{} rows of {LANES} lanes", out.rows());
        assert_eq!(out.cols(), state.sums.len(), "columns of out and features of the values");
        // SAFETY: a table is handed out only where its ISA is available; the shapes agree.
        unsafe { (self.finish_attention)(state, out) }
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}
