//! How the numbers of a shard lie in its bytes: rows or tiles, padded with zeros.
//!
//! The bytes do not depend on the memory config: TT-NN deals them to banks and cores when it sends them to a device.

use crate::{
    block_float::{BlockFloat, Rounding},
    tile::{FACE_COLUMNS, Tile},
    types::DataType,
};
use half::bf16;

#[cfg(test)]
mod tests;

/// How the elements of a shard follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Row by row, each padded to a multiple of so many elements: 1, or the columns of a sharded memory config's part.
    Rows {
        /// Elements.
        multiple: u32,
    },
    /// Tile by tile.
    Tiles(Tile),
}

/// A shape that no shard can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// A tensor needs bytes.
    #[error("a shard of shape {0:?} has no elements")]
    Empty(Vec<u32>),
    /// More bytes than this machine can address.
    #[error("a shard of shape {0:?} has more bytes than this machine can address")]
    TooLarge(Vec<u32>),
    /// Block floats lie in tiles only.
    #[error("{0} lies in tiles only, not in rows")]
    NeedsTiles(DataType),
    /// Rows that are padded to multiples of 0.
    #[error("rows cannot be padded to a multiple of 0 elements")]
    ZeroMultiple,
}

/// The bytes of a shard: a stack of matrices, padded.
///
/// A **band** is what can be packed by itself: as many rows as a tile is high, or one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLayout {
    data_type: DataType,
    order: Order,
    matrices: usize,
    rows: usize,
    columns: usize,
    padded_columns: usize,
    bands: usize,
    band_bytes: usize,
}

impl DataType {
    /// The block format, if it is one.
    pub fn block_float(self) -> Option<BlockFloat> {
        match self {
            Self::Bfloat8B => Some(BlockFloat::Eight),
            Self::Bfloat4B => Some(BlockFloat::Four),
            _ => None,
        }
    }

    /// Bytes of an element; none for block floats.
    pub fn element_bytes(self) -> Option<usize> {
        match self {
            Self::Float32 | Self::Uint32 | Self::Int32 => Some(4),
            Self::Bfloat16 | Self::Uint16 => Some(2),
            Self::Uint8 => Some(1),
            Self::Bfloat8B | Self::Bfloat4B => None,
        }
    }

    /// Whether its elements are integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Uint32 | Self::Uint8 | Self::Uint16 | Self::Int32)
    }
}

impl ShardLayout {
    /// Of a shard with a shape: the last two dimensions are rows and columns, the others count matrices.
    ///
    /// # Errors
    /// A shape without elements, or with too many; block floats in rows.
    pub fn new(shape: &[u32], data_type: DataType, order: Order) -> Result<Self, ShardError> {
        let too_large = || ShardError::TooLarge(shape.to_vec());
        if shape.contains(&0) {
            return Err(ShardError::Empty(shape.to_vec()));
        }
        let side = |from_last: usize| match shape.len().checked_sub(from_last) {
            Some(at) => shape[at] as usize,
            None => 1,
        };
        let (rows, columns) = (side(2), side(1));
        let stack = &shape[..shape.len().saturating_sub(2)];
        let matrices = stack.iter().try_fold(1_usize, |product, &side| product.checked_mul(side as usize));
        let matrices = matrices.ok_or_else(too_large)?;
        let (band_rows, multiple) = match order {
            Order::Rows { multiple: 0 } => return Err(ShardError::ZeroMultiple),
            Order::Rows { multiple } => (1, multiple as usize),
            Order::Tiles(tile) => (tile.height(), tile.width()),
        };
        let padded_columns = columns.checked_next_multiple_of(multiple).ok_or_else(too_large)?;
        let band_bytes = match (order, data_type.block_float(), data_type.element_bytes()) {
            (Order::Tiles(tile), Some(format), _) => {
                (padded_columns / tile.width()).checked_mul(format.tile_bytes(tile))
            }
            (Order::Rows { .. }, Some(_), _) => return Err(ShardError::NeedsTiles(data_type)),
            (_, None, bytes) => {
                let bytes = bytes.expect("what is no block float has a size");
                band_rows.checked_mul(bytes).and_then(|bytes| bytes.checked_mul(padded_columns))
            }
        };
        let band_bytes = band_bytes.ok_or_else(too_large)?;
        let bands = rows.div_ceil(band_rows);
        // Also that all sizes below fit.
        let bytes = matrices.checked_mul(bands).and_then(|bands| bands.checked_mul(band_bytes));
        let elements = matrices.checked_mul(rows).and_then(|rows| rows.checked_mul(columns));
        let fits = |count: Option<usize>| count.is_some_and(|count| isize::try_from(count).is_ok());
        if !fits(bytes) || !fits(elements.and_then(|count| count.checked_mul(4))) {
            return Err(too_large());
        }
        Ok(Self { data_type, order, matrices, rows, columns, padded_columns, bands, band_bytes })
    }

    /// Bytes of the shard.
    pub fn bytes(&self) -> usize {
        self.matrices * self.bands * self.band_bytes
    }

    /// Elements of the shard, without padding.
    pub fn elements(&self) -> usize {
        self.matrices * self.rows * self.columns
    }

    /// Bytes of a band.
    pub fn band_bytes(&self) -> usize {
        self.band_bytes
    }

    /// Bands of the shard. They follow one another, those of a matrix from its first row on.
    pub fn bands(&self) -> usize {
        self.matrices * self.bands
    }

    /// The elements of a band: a range of those of the shard, row by row. The last band of a matrix may have fewer rows.
    ///
    /// # Panics
    /// If there is no such band.
    pub fn band_elements(&self, band: usize) -> std::ops::Range<usize> {
        assert!(band < self.bands(), "band {band} of {}", self.bands());
        let (matrix, band) = (band / self.bands, band % self.bands);
        let first = band * self.band_rows();
        let last = self.rows.min(first + self.band_rows());
        let row = |row: usize| (matrix * self.rows + row) * self.columns;
        row(first)..row(last)
    }

    /// The layout of one matrix with some of the columns, whose bands are parts of this one's bands where the columns start
    /// and end with tiles.
    ///
    /// # Panics
    /// If there are none, or more than this one has.
    pub fn of_columns(&self, columns: usize) -> Self {
        assert!((1..=self.columns).contains(&columns), "{columns} of {} columns", self.columns);
        let shape = [self.rows, columns].map(|side| side as u32);
        Self::new(&shape, self.data_type, self.order).expect("less than what fits")
    }

    /// Matrices of the shard.
    pub fn matrices(&self) -> usize {
        self.matrices
    }

    /// Bands of a matrix.
    pub fn matrix_bands(&self) -> usize {
        self.bands
    }

    /// Rows of a matrix, without padding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a matrix, without padding.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Tiles of a band; 1 in rows.
    pub fn band_tiles(&self) -> usize {
        match self.order {
            Order::Rows { .. } => 1,
            Order::Tiles(tile) => self.padded_columns / tile.width(),
        }
    }

    /// Rows of a band: those of a tile, or 1.
    pub fn band_rows(&self) -> usize {
        match self.order {
            Order::Rows { .. } => 1,
            Order::Tiles(tile) => tile.height(),
        }
    }

    /// Packs all values of a shard.
    ///
    /// # Panics
    /// If `values` is not as long as the shard, or the data type is one of integers.
    pub fn pack(&self, values: &[f32], rounding: Rounding) -> Vec<u8> {
        assert_eq!(values.len(), self.elements(), "values of a shard");
        let mut bytes = vec![0; self.bytes()];
        let mut scratch = Vec::new();
        for (band, out) in bytes.chunks_exact_mut(self.band_bytes).enumerate() {
            self.pack_band(&values[self.band_elements(band)], rounding, out, &mut scratch);
        }
        bytes
    }

    /// Packs the values of a band, whole rows of them: as many as it has in a shard, or fewer, and the rest is zeros.
    /// `scratch` is memory that is used again for each band.
    ///
    /// # Panics
    /// If these are more rows than a band has, or not whole ones; if `out` is not [`band_bytes`](Self::band_bytes) long;
    /// if the data type is one of integers.
    pub fn pack_band(&self, values: &[f32], rounding: Rounding, out: &mut [u8], scratch: &mut Vec<f32>) {
        self.check_band(values.len(), out.len());
        match (self.order, self.data_type.block_float()) {
            (Order::Tiles(tile), Some(format)) => {
                let padded = self.padded(values, scratch);
                let tiles = out.chunks_exact_mut(format.tile_bytes(tile));
                for (column, bytes) in (0..).step_by(tile.width()).zip(tiles) {
                    format.pack_tile(tile, &padded[column..], self.padded_columns, rounding, bytes);
                }
            }
            _ => match self.data_type {
                DataType::Float32 => self.move_band(values, out, f32::to_le_bytes),
                DataType::Bfloat16 => {
                    self.move_band(values, out, |value| bf16::from_f32(value).to_le_bytes());
                }
                integer => panic!("{integer} is packed with pack_integers"),
            },
        }
    }

    /// Packs all values of a shard of integers, each as the lower bits of a `u32`.
    ///
    /// # Panics
    /// If `values` is not as long as the shard, or the data type is not one of integers.
    pub fn pack_integers(&self, values: &[u32]) -> Vec<u8> {
        assert_eq!(values.len(), self.elements(), "values of a shard");
        let mut bytes = vec![0; self.bytes()];
        for (band, out) in bytes.chunks_exact_mut(self.band_bytes).enumerate() {
            let values = &values[self.band_elements(band)];
            match self.data_type {
                DataType::Uint32 | DataType::Int32 => self.move_band(values, out, u32::to_le_bytes),
                DataType::Uint16 => self.move_band(values, out, |value| (value as u16).to_le_bytes()),
                DataType::Uint8 => self.move_band(values, out, |value| [value as u8]),
                other => panic!("{other} is packed with pack"),
            }
        }
        bytes
    }

    /// All values of a shard, without the padding. Block floats become what they stand for.
    ///
    /// # Panics
    /// If `bytes` is not as long as the shard, or the data type is one of integers.
    pub fn unpack(&self, bytes: &[u8]) -> Vec<f32> {
        assert_eq!(bytes.len(), self.bytes(), "bytes of a shard");
        let mut values = vec![0.0; self.elements()];
        let mut scratch = Vec::new();
        for (band, bytes) in bytes.chunks_exact(self.band_bytes).enumerate() {
            let values = &mut values[self.band_elements(band)];
            match (self.order, self.data_type.block_float()) {
                (Order::Tiles(tile), Some(format)) => {
                    scratch.resize(tile.height() * self.padded_columns, 0.0);
                    for (index, bytes) in bytes.chunks_exact(format.tile_bytes(tile)).enumerate() {
                        let column = index * tile.width();
                        format.unpack_tile(tile, bytes, &mut scratch[column..], self.padded_columns);
                    }
                    let rows = values.chunks_exact_mut(self.columns);
                    for (row, padded) in rows.zip(scratch.chunks_exact(self.padded_columns)) {
                        row.copy_from_slice(&padded[..self.columns]);
                    }
                }
                _ => match self.data_type {
                    DataType::Float32 => self.move_back(bytes, values, f32::from_le_bytes),
                    DataType::Bfloat16 => {
                        self.move_back(bytes, values, |two| bf16::from_le_bytes(two).to_f32());
                    }
                    integer => panic!("{integer} is unpacked with unpack_integers"),
                },
            }
        }
        values
    }

    /// All values of a shard of integers, without the padding, each as the lower bits of a `u32`.
    ///
    /// # Panics
    /// If `bytes` is not as long as the shard, or the data type is not one of integers.
    pub fn unpack_integers(&self, bytes: &[u8]) -> Vec<u32> {
        assert_eq!(bytes.len(), self.bytes(), "bytes of a shard");
        let mut values = vec![0; self.elements()];
        for (band, bytes) in bytes.chunks_exact(self.band_bytes).enumerate() {
            let values = &mut values[self.band_elements(band)];
            match self.data_type {
                DataType::Uint32 | DataType::Int32 => self.move_back(bytes, values, u32::from_le_bytes),
                DataType::Uint16 => self.move_back(bytes, values, |two| u32::from(u16::from_le_bytes(two))),
                DataType::Uint8 => self.move_back(bytes, values, |[byte]| u32::from(byte)),
                other => panic!("{other} is unpacked with unpack"),
            }
        }
        values
    }

    fn check_band(&self, values: usize, bytes: usize) {
        let rows = values / self.columns;
        assert!(values.is_multiple_of(self.columns) && rows <= self.band_rows(), "{values} values of a band");
        assert_eq!(bytes, self.band_bytes, "bytes of a band");
    }

    /// The rows of a band with their padding.
    fn padded<'s>(&self, values: &'s [f32], scratch: &'s mut Vec<f32>) -> &'s [f32] {
        if values.len() == self.band_rows() * self.padded_columns {
            return values;
        }
        scratch.clear();
        scratch.resize(self.band_rows() * self.padded_columns, 0.0);
        for (padded, row) in
            scratch.chunks_exact_mut(self.padded_columns).zip(values.chunks_exact(self.columns))
        {
            padded[..self.columns].copy_from_slice(row);
        }
        scratch
    }

    /// Where in a band each run of elements lies that stays together: its row and column, in the order of the bytes, and
    /// how many there are with their padding.
    fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (tile, length) = match self.order {
            Order::Rows { .. } => (None, self.padded_columns),
            Order::Tiles(tile) => (Some(tile), FACE_COLUMNS),
        };
        let corners = (0..self.padded_columns).step_by(tile.map_or(length, Tile::width));
        corners.flat_map(move |corner| {
            let in_tile = tile.into_iter().flat_map(Tile::in_order).map(|at| (at.row, at.column));
            let in_row = tile.is_none().then_some((0, 0));
            in_row.into_iter().chain(in_tile).map(move |(row, column)| (row, corner + column, length))
        })
    }

    /// Writes the elements of a band in order, zeros where there are none.
    fn move_band<T: Copy, const N: usize>(
        &self,
        values: &[T],
        out: &mut [u8],
        to_bytes: impl Fn(T) -> [u8; N],
    ) {
        let mut out = out.as_chunks_mut::<N>().0;
        for (row, column, length) in self.runs() {
            let (run, rest) = out.split_at_mut(length);
            out = rest;
            let present = self.present(values.len(), row, column, length);
            let (run, padding) = run.split_at_mut(present.len());
            for (bytes, value) in run.iter_mut().zip(&values[present]) {
                *bytes = to_bytes(*value);
            }
            padding.fill([0; N]);
        }
    }

    /// Reads the elements of a band, without the padding.
    fn move_back<T, const N: usize>(&self, bytes: &[u8], values: &mut [T], of_bytes: impl Fn([u8; N]) -> T) {
        let mut bytes = bytes.as_chunks::<N>().0;
        for (row, column, length) in self.runs() {
            let (run, rest) = bytes.split_at(length);
            bytes = rest;
            let present = self.present(values.len(), row, column, length);
            for (value, bytes) in values[present].iter_mut().zip(run) {
                *value = of_bytes(*bytes);
            }
        }
    }

    /// The elements of a run that are no padding, as a range of the band's.
    fn present(&self, values: usize, row: usize, column: usize, length: usize) -> std::ops::Range<usize> {
        let start = row * self.columns + column;
        if column >= self.columns || start >= values {
            return 0..0;
        }
        start..start + length.min(self.columns - column)
    }
}
