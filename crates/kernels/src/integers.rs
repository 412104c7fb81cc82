//! Activations as integers: blocks of 32 columns of a row, a scale each. What integer products of quantised weights
//! take on their other side.

use std::ops::Range;

/// Columns of a row that share a scale: the block of ggml's `q8_0` and the group of its `q4_K`.
pub(crate) const BLOCK: usize = 32;

/// How wide the integers are. Which one a product takes is what
/// [`Kernels::integer_width`](crate::Kernels::integer_width) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntegerWidth {
    /// -127 to 127.
    Int8,
    /// -8191 to 8191: 32 products with weights of up to 7168 add up to less than 2^31.
    Int16,
}

impl IntegerWidth {
    /// The largest magnitude. The largest value of a block becomes it, so a step is that value divided by it.
    pub const fn limit(self) -> i16 {
        match self {
            IntegerWidth::Int8 => 127,
            IntegerWidth::Int16 => 8191,
        }
    }
}

/// The integers of a matrix, in blocks, row-major; the last block of a row has zeros behind its columns.
#[derive(Debug)]
pub(crate) enum BlocksMut<'a> {
    Int8(&'a mut [[i8; BLOCK]]),
    Int16(&'a mut [[i16; BLOCK]]),
}

#[derive(Clone, Copy, Debug)]
enum Blocks<'a> {
    Int8(&'a [[i8; BLOCK]]),
    Int16(&'a [[i16; BLOCK]]),
}

/// Owns activations `[rows, cols]` as integers; usually a row is a token. Made to be used again: its memory only
/// grows.
#[derive(Debug)]
pub struct IntegerMatrix {
    width: IntegerWidth,
    rows: usize,
    cols: usize,
    /// Blocks of the width; the other is empty.
    int8: Vec<[i8; BLOCK]>,
    int16: Vec<[i16; BLOCK]>,
    /// By block.
    scales: Vec<f32>,
    /// By block.
    sums: Vec<f32>,
}

impl Default for IntegerMatrix {
    /// Without rows or memory.
    fn default() -> Self {
        Self {
            width: IntegerWidth::Int8,
            rows: 0,
            cols: 0,
            int8: Vec::new(),
            int16: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
        }
    }
}

impl IntegerMatrix {
    /// Takes another shape and gives it to write: what it holds from before has no meaning. Allocates only where it
    /// never was as large.
    ///
    /// # Panics
    /// If the matrix is larger than memory.
    pub fn reshape(&mut self, width: IntegerWidth, rows: usize, cols: usize) -> IntegerMut<'_> {
        let blocks = rows.checked_mul(cols.div_ceil(BLOCK)).expect("a matrix in memory");
        (self.width, self.rows, self.cols) = (width, rows, cols);
        let (int8, int16) = match width {
            IntegerWidth::Int8 => (blocks, 0),
            IntegerWidth::Int16 => (0, blocks),
        };
        self.int8.resize(int8, [0; BLOCK]);
        self.int16.resize(int16, [0; BLOCK]);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(blocks, 0.0);
        self.as_mut()
    }

    /// To read.
    pub fn as_ref(&self) -> IntegerRef<'_> {
        let blocks = match self.width {
            IntegerWidth::Int8 => Blocks::Int8(&self.int8),
            IntegerWidth::Int16 => Blocks::Int16(&self.int16),
        };
        IntegerRef { blocks, scales: &self.scales, sums: &self.sums, rows: self.rows, cols: self.cols }
    }

    /// To write.
    pub fn as_mut(&mut self) -> IntegerMut<'_> {
        let blocks = match self.width {
            IntegerWidth::Int8 => BlocksMut::Int8(&mut self.int8),
            IntegerWidth::Int16 => BlocksMut::Int16(&mut self.int16),
        };
        IntegerMut {
            blocks,
            scales: &mut self.scales,
            sums: &mut self.sums,
            rows: self.rows,
            cols: self.cols,
        }
    }
}

/// Activations `[rows, cols]` as integers, to read. The value of an element is its integer times its block's scale.
#[derive(Clone, Copy, Debug)]
pub struct IntegerRef<'a> {
    blocks: Blocks<'a>,
    scales: &'a [f32],
    sums: &'a [f32],
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

    /// How wide the integers are.
    pub fn width(&self) -> IntegerWidth {
        match self.blocks {
            Blocks::Int8(_) => IntegerWidth::Int8,
            Blocks::Int16(_) => IntegerWidth::Int16,
        }
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If the range ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> IntegerRef<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let per_row = self.cols.div_ceil(BLOCK);
        let part = range.start * per_row..range.end * per_row;
        let blocks = match self.blocks {
            Blocks::Int8(blocks) => Blocks::Int8(&blocks[part.clone()]),
            Blocks::Int16(blocks) => Blocks::Int16(&blocks[part.clone()]),
        };
        let (scales, sums) = (&self.scales[part.clone()], &self.sums[part]);
        IntegerRef { blocks, scales, sums, rows: range.len(), cols: self.cols }
    }

    /// The blocks of a row of [`IntegerWidth::Int8`].
    ///
    /// # Panics
    /// If there is no such row, or the integers are wider.
    pub(crate) fn int8(&self, row: usize) -> &'a [[i8; BLOCK]] {
        let Blocks::Int8(blocks) = self.blocks else { panic!("8 bits are asked for, of 16") };
        &blocks[self.blocks_of(row)]
    }

    /// The blocks of a row of [`IntegerWidth::Int16`].
    ///
    /// # Panics
    /// If there is no such row, or the integers are not as wide.
    pub(crate) fn int16(&self, row: usize) -> &'a [[i16; BLOCK]] {
        let Blocks::Int16(blocks) = self.blocks else { panic!("16 bits are asked for, of 8") };
        &blocks[self.blocks_of(row)]
    }

    /// The scales of the blocks of a row.
    pub(crate) fn scales(&self, row: usize) -> &'a [f32] {
        &self.scales[self.blocks_of(row)]
    }

    /// The sums of the blocks of a row: of their integers, times their scale.
    pub(crate) fn sums(&self, row: usize) -> &'a [f32] {
        &self.sums[self.blocks_of(row)]
    }

    fn blocks_of(&self, row: usize) -> Range<usize> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let per_row = self.cols.div_ceil(BLOCK);
        row * per_row..(row + 1) * per_row
    }
}

/// Activations `[rows, cols]` as integers, to write; [`Kernels::quantize`](crate::Kernels::quantize) does. Can be
/// split into rows that threads write at the same time.
#[derive(Debug)]
pub struct IntegerMut<'a> {
    blocks: BlocksMut<'a>,
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    rows: usize,
    cols: usize,
}

/// A row of [`IntegerMut`].
#[derive(Debug)]
pub(crate) struct IntegerRowMut<'a> {
    pub(crate) blocks: BlocksMut<'a>,
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums: &'a mut [f32],
}

impl IntegerMut<'_> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows `..row` and rows `row..`.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn split_rows_at(self, row: usize) -> (Self, Self) {
        assert!(row <= self.rows, "row {row} of {}", self.rows);
        let at = row * self.cols.div_ceil(BLOCK);
        let (upper, lower) = match self.blocks {
            BlocksMut::Int8(blocks) => {
                let (upper, lower) = blocks.split_at_mut(at);
                (BlocksMut::Int8(upper), BlocksMut::Int8(lower))
            }
            BlocksMut::Int16(blocks) => {
                let (upper, lower) = blocks.split_at_mut(at);
                (BlocksMut::Int16(upper), BlocksMut::Int16(lower))
            }
        };
        let (scales, scales_below) = self.scales.split_at_mut(at);
        let (sums, sums_below) = self.sums.split_at_mut(at);
        (
            IntegerMut { blocks: upper, scales, sums, rows: row, cols: self.cols },
            IntegerMut {
                blocks: lower,
                scales: scales_below,
                sums: sums_below,
                rows: self.rows - row,
                cols: self.cols,
            },
        )
    }

    /// Copies a row of other activations into row `row`.
    ///
    /// # Panics
    /// If one of the rows does not exist, or columns or widths differ.
    pub fn copy_row(&mut self, row: usize, from: IntegerRef<'_>, from_row: usize) {
        assert_eq!(self.cols, from.cols, "columns of both");
        let to = self.row_mut(row);
        match to.blocks {
            BlocksMut::Int8(blocks) => blocks.copy_from_slice(from.int8(from_row)),
            BlocksMut::Int16(blocks) => blocks.copy_from_slice(from.int16(from_row)),
        }
        to.scales.copy_from_slice(from.scales(from_row));
        to.sums.copy_from_slice(from.sums(from_row));
    }

    /// One row to write.
    pub(crate) fn row_mut(&mut self, row: usize) -> IntegerRowMut<'_> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let per_row = self.cols.div_ceil(BLOCK);
        let part = row * per_row..(row + 1) * per_row;
        let blocks = match &mut self.blocks {
            BlocksMut::Int8(blocks) => BlocksMut::Int8(&mut blocks[part.clone()]),
            BlocksMut::Int16(blocks) => BlocksMut::Int16(&mut blocks[part.clone()]),
        };
        IntegerRowMut { blocks, scales: &mut self.scales[part.clone()], sums: &mut self.sums[part] }
    }
}
