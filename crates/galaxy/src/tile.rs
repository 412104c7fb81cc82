//! The order of elements in tiles.
//!
//! A tile is faces of 16 columns and up to 16 rows, row by row; a face is its rows. A face row, 16 elements that lie side
//! by side in the tensor and in the tile, is what moves.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Columns of a face, and elements that share an exponent in the block formats.
pub const FACE_COLUMNS: usize = 16;

/// The shape of a tile, `[height, width]` in JSON: 32x32 but for a few activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "[u32; 2]", into = "[u32; 2]")]
pub struct Tile {
    height: u32,
    width: u32,
}

/// A shape that no tile has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tile is 1, 2, 4, 8, 16 or 32 high and 16 or 32 wide, got {height}x{width}")]
pub struct TileError {
    height: u32,
    width: u32,
}

/// A row of a face, where it lies in the tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaceRow {
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Tile {
    /// The tile of all weights.
    pub const SQUARE: Self = Self { height: 32, width: 32 };

    /// A tile of another shape.
    ///
    /// # Errors
    /// A shape that TT-NN has no tile of.
    pub fn new(height: u32, width: u32) -> Result<Self, TileError> {
        if matches!(height, 1 | 2 | 4 | 8 | 16 | 32) && matches!(width, 16 | 32) {
            return Ok(Self { height, width });
        }
        Err(TileError { height, width })
    }

    /// Rows.
    pub const fn height(self) -> usize {
        self.height as usize
    }

    /// Columns.
    pub const fn width(self) -> usize {
        self.width as usize
    }

    /// Elements.
    pub const fn elements(self) -> usize {
        self.height() * self.width()
    }

    /// Rows of all faces together.
    pub(crate) fn face_rows(self) -> usize {
        self.elements() / FACE_COLUMNS
    }

    /// The faces in the order in which they are stored: the first row of each, and how many it has.
    pub(crate) fn faces(self) -> impl Iterator<Item = (FaceRow, usize)> {
        let rows = self.height().min(16);
        self.in_order().step_by(rows).map(move |corner| (corner, rows))
    }

    /// The face rows in the order in which they are stored.
    pub(crate) fn in_order(self) -> impl Iterator<Item = FaceRow> {
        // All of these are powers of two.
        let face_height = self.height().min(16);
        let rows = face_height.trailing_zeros();
        let across = (self.width() / FACE_COLUMNS).trailing_zeros();
        (0..self.face_rows()).map(move |index| {
            let face = index >> rows;
            FaceRow {
                row: (face >> across << rows) + (index & (face_height - 1)),
                column: (face & ((1 << across) - 1)) * FACE_COLUMNS,
            }
        })
    }
}

impl TryFrom<[u32; 2]> for Tile {
    type Error = TileError;

    fn try_from([height, width]: [u32; 2]) -> Result<Self, TileError> {
        Self::new(height, width)
    }
}

impl From<Tile> for [u32; 2] {
    fn from(tile: Tile) -> Self {
        [tile.height, tile.width]
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_lie_where_upstream_says() {
        // Element (r, c) of a 32x32 tile lies at 256 (2 (r/16) + c/16) + 16 (r mod 16) + c mod 16.
        for (at, FaceRow { row, column }) in Tile::SQUARE.in_order().enumerate() {
            assert_eq!(at * 16, 256 * (2 * (row / 16) + column / 16) + 16 * (row % 16), "({row}, {column})");
        }
    }

    #[test]
    fn every_face_row_comes_once() {
        for height in [1, 2, 4, 8, 16, 32] {
            for width in [16, 32] {
                let tile = Tile::new(height, width).unwrap();
                let mut rows: Vec<_> = tile.in_order().map(|row| (row.row, row.column)).collect();
                assert_eq!(rows.len(), tile.face_rows());
                rows.sort_unstable();
                rows.dedup();
                assert_eq!(rows.len(), tile.face_rows());
            }
        }
        assert_eq!(Tile::new(3, 32).unwrap_err().to_string().split(", got ").last(), Some("3x32"));
    }
}
