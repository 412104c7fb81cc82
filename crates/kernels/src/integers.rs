//! Activations as integers: blocks of 32 columns of a row, of which one or some, a group, share a scale. What integer products
//! of quantised weights take on their other side.

use crate::{Chunks, Cuts, Format, LANES, Lanes, MatrixRef, Pieces};
use std::ops::Range;

/// Columns of a row that lie together: the block of ggml's `q8_0` and the group of its `q4_K`.
pub(crate) const BLOCK: usize = 32;

/// The largest magnitude. The largest value of a group becomes it, so a step is that value divided by it.
pub(crate) const LIMIT: i8 = 127;

/// Where the parts of a row lie, in lines: its integers in blocks, the last one with zeros behind its columns; the scales
/// of the blocks; and their sums. Each part begins with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    blocks: usize,
    /// Columns that share a scale, whole blocks.
    group: usize,
    /// Lines of the integers.
    integers: usize,
    /// Lines of the scales, and of the sums.
    factors: usize,
}

impl Layout {
    const fn new(cols: usize, group: usize) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let integers = blocks.div_ceil(size_of::<Lanes>() / size_of::<[i8; BLOCK]>());
        Self { blocks, group, integers, factors: blocks.div_ceil(LANES) }
    }

    /// Lines of a whole row.
    #[inline]
    const fn row(self) -> usize {
        self.integers + 2 * self.factors
    }

    /// Lines of all rows.
    fn rows(self, rows: usize) -> usize {
        rows.checked_mul(self.row()).expect("a matrix in memory")
    }
}

/// Owns activations `[rows, cols]` as integers; usually a row is a token.
#[derive(Debug)]
pub struct IntegerMatrix {
    rows: usize,
    cols: usize,
    group: usize,
    /// Row after row.
    lines: Vec<Lanes>,
}

impl Default for IntegerMatrix {
    /// Without rows or memory.
    fn default() -> Self {
        Self::in_memory(Vec::new())
    }
}

impl IntegerMatrix {
    /// Lines of memory that a matrix takes.
    ///
    /// # Panics
    /// If it is larger than memory.
    pub fn lines(rows: usize, cols: usize) -> usize {
        Layout::new(cols, BLOCK).rows(rows)
    }

    /// Without rows, but with memory for those to come, whatever it holds.
    pub fn in_memory(lines: Vec<Lanes>) -> Self {
        Self { rows: 0, cols: 0, group: BLOCK, lines }
    }

    /// The memory, for another use.
    pub fn into_memory(self) -> Vec<Lanes> {
        self.lines
    }

    /// Takes another shape, for products with weights in `format`, and gives it to write: what it holds from before has no
    /// meaning. Allocates only where the memory is too small.
    ///
    /// # Panics
    /// If the matrix is larger than memory.
    pub fn reshape(&mut self, rows: usize, cols: usize, format: Format) -> IntegerMut<'_> {
        (self.rows, self.cols, self.group) = (rows, cols, format.group_cols());
        self.lines.resize(Self::lines(rows, cols), Lanes::ZERO);
        self.as_mut()
    }

    /// To read.
    pub fn as_ref(&self) -> IntegerRef<'_> {
        let layout = Layout::new(self.cols, self.group);
        IntegerRef { layout, lines: &self.lines, rows: self.rows, cols: self.cols }
    }

    /// To write.
    pub fn as_mut(&mut self) -> IntegerMut<'_> {
        let layout = Layout::new(self.cols, self.group);
        IntegerMut { layout, lines: &mut self.lines, rows: self.rows, cols: self.cols }
    }
}

/// Activations `[rows, cols]` as integers, to read. The value of an element is its integer times its block's scale.
#[derive(Clone, Copy, Debug)]
pub struct IntegerRef<'a> {
    layout: Layout,
    /// `[rows, layout.row()]`.
    lines: &'a [Lanes],
    rows: usize,
    cols: usize,
}

impl<'a> IntegerRef<'a> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether products with weights in `format` take them: as many columns share a scale, or whole times as many.
    pub fn serve(&self, format: Format) -> bool {
        self.layout.group.is_multiple_of(format.group_cols())
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If the range ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> IntegerRef<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let row = self.layout.row();
        IntegerRef { lines: &self.lines[range.start * row..range.end * row], rows: range.len(), ..*self }
    }

    /// The blocks of a row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline]
    pub(crate) fn blocks(&self, row: usize) -> &'a [[i8; BLOCK]] {
        &Lanes::int8(self.lines(row, 0, self.layout.integers))[..self.layout.blocks]
    }

    /// The columns of all blocks in fours, each the bits of an f32: `[rows, 8 * blocks]`.
    pub(crate) fn all_fours(&self) -> MatrixRef<'a> {
        self.part(0, self.layout.blocks * BLOCK / size_of::<f32>())
    }

    /// The scales of all blocks: `[rows, blocks]`.
    pub(crate) fn all_scales(&self) -> MatrixRef<'a> {
        self.part(self.layout.integers, self.layout.blocks)
    }

    /// The sums of all blocks: `[rows, blocks]`.
    pub(crate) fn all_sums(&self) -> MatrixRef<'a> {
        self.part(self.layout.integers + self.layout.factors, self.layout.blocks)
    }

    /// `cols` values from line `first` of each row on.
    fn part(&self, first: usize, cols: usize) -> MatrixRef<'a> {
        let lines = &self.lines[first.min(self.lines.len())..];
        MatrixRef::strided(Lanes::flatten(lines), self.rows, cols, self.layout.row() * LANES)
    }

    /// The scales of the blocks of a row.
    #[inline]
    pub(crate) fn scales(&self, row: usize) -> &'a [f32] {
        let lines = self.lines(row, self.layout.integers, self.layout.factors);
        &Lanes::flatten(lines)[..self.layout.blocks]
    }

    /// The sums of the blocks of a row: of their integers, times their scale.
    #[inline]
    pub(crate) fn sums(&self, row: usize) -> &'a [f32] {
        let lines = self.lines(row, self.layout.integers + self.layout.factors, self.layout.factors);
        &Lanes::flatten(lines)[..self.layout.blocks]
    }

    /// Some lines of a row.
    #[inline]
    fn lines(&self, row: usize, first: usize, count: usize) -> &'a [Lanes] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.lines[row * self.layout.row() + first..][..count]
    }
}

/// Activations `[rows, cols]` as integers, to write; [`Kernels::quantize`](crate::Kernels::quantize) does.
#[derive(Debug)]
pub struct IntegerMut<'a> {
    layout: Layout,
    /// `[rows, layout.row()]`.
    lines: &'a mut [Lanes],
    rows: usize,
    cols: usize,
}

/// A row of [`IntegerMut`].
#[derive(Debug)]
pub(crate) struct IntegerRowMut<'a> {
    pub(crate) blocks: &'a mut [[i8; BLOCK]],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums: &'a mut [f32],
}

impl<'a> IntegerMut<'a> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Columns that share a scale, whole blocks.
    pub(crate) fn group(&self) -> usize {
        self.layout.group
    }

    /// Rows `..row` and rows `row..`.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn split_rows_at(self, row: usize) -> (Self, Self) {
        assert!(row <= self.rows, "row {row} of {}", self.rows);
        let (upper, lower) = self.lines.split_at_mut(row * self.layout.row());
        (
            IntegerMut { lines: upper, rows: row, ..self },
            IntegerMut { lines: lower, rows: self.rows - row, ..self },
        )
    }

    /// Ranges of `rows` rows, but for the last, for threads to write at the same time.
    ///
    /// # Panics
    /// If `rows` is 0.
    pub fn row_chunks(self, rows: usize) -> IntegerChunks<'a> {
        // A row of no columns takes no line, and has nothing to write.
        let cuts = Cuts::Every(rows * self.layout.row().max(1));
        IntegerChunks { chunks: Chunks::new(self.lines, cuts), rows, layout: self.layout, cols: self.cols }
    }

    /// Copies a row of other activations into row `row`.
    ///
    /// # Panics
    /// If one of the rows does not exist, or columns or their groups differ.
    pub fn copy_row(&mut self, row: usize, from: IntegerRef<'_>, from_row: usize) {
        assert_eq!((self.cols, self.layout), (from.cols, from.layout), "columns and their groups, of both");
        self.lines_mut(row).copy_from_slice(from.lines(from_row, 0, from.layout.row()));
    }

    /// One row to write.
    pub(crate) fn row_mut(&mut self, row: usize) -> IntegerRowMut<'_> {
        let layout = self.layout;
        let (integers, factors) = self.lines_mut(row).split_at_mut(layout.integers);
        let (scales, sums) = factors.split_at_mut(layout.factors);
        IntegerRowMut {
            blocks: &mut Lanes::int8_mut(integers)[..layout.blocks],
            scales: &mut Lanes::flatten_mut(scales)[..layout.blocks],
            sums: &mut Lanes::flatten_mut(sums)[..layout.blocks],
        }
    }

    fn lines_mut(&mut self, row: usize) -> &mut [Lanes] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &mut self.lines[row * self.layout.row()..][..self.layout.row()]
    }
}

/// Ranges of rows of [`IntegerMut`]. A piece is the number of its first row and the rows.
#[derive(Debug)]
pub struct IntegerChunks<'a> {
    chunks: Chunks<'a, Lanes>,
    rows: usize,
    layout: Layout,
    cols: usize,
}

// SAFETY: pieces lie in chunks of a slice, which keep the promises.
unsafe impl<'a> Pieces for IntegerChunks<'a> {
    type Piece = (usize, IntegerMut<'a>);

    fn count(&self) -> usize {
        self.chunks.count()
    }

    unsafe fn piece(&self, number: usize) -> (usize, IntegerMut<'a>) {
        // SAFETY: what the caller promises.
        let (_, lines) = unsafe { self.chunks.piece(number) };
        let rows = lines.len() / self.layout.row();
        (number * self.rows, IntegerMut { layout: self.layout, lines, rows, cols: self.cols })
    }
}

/// Lines as memory for integers.
impl Lanes {
    #[inline]
    pub(crate) fn int8(lines: &[Self]) -> &[[i8; BLOCK]] {
        let blocks = size_of_val(lines) / size_of::<[i8; BLOCK]>();
        // SAFETY: the slice is that many blocks long and aligned for them, and initialised f32 are initialised bytes,
        // which mean some integers; the result borrows it.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), blocks) }
    }

    #[inline]
    pub(crate) fn int8_mut(lines: &mut [Self]) -> &mut [[i8; BLOCK]] {
        let blocks = size_of_val(lines) / size_of::<[i8; BLOCK]>();
        // SAFETY: as for `int8`, borrowed exclusively; any integers that are written are f32, too.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), blocks) }
    }
}
