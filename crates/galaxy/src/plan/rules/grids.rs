//! Which cores share a tensor.

use crate::{
    hardware::CORE_GRID,
    types::{CoreCoord, CoreRange, CoreRangeSet},
};

/// Cores that can be used.
pub const CORES: u32 = CORE_GRID[0] * CORE_GRID[1];

/// A rectangle of cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rectangle {
    /// Its first row; its first column is 0.
    pub first_row: u32,
    /// Columns.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

impl Rectangle {
    /// So many cores from a row on, as wide as possible: rows of cores are what a collective's and a product's senders
    /// go along. None where they form no rectangle in the grid.
    pub fn of(cores: u32, first_row: u32) -> Option<Self> {
        let rows = CORE_GRID[1].saturating_sub(first_row);
        let fits = |columns: &u32| cores.is_multiple_of(*columns) && cores / columns <= rows;
        let columns = (1..=CORE_GRID[0].min(cores)).rev().find(fits)?;
        Some(Self { first_row, columns, rows: cores / columns })
    }

    /// The cores.
    pub fn cores(self) -> u32 {
        self.columns * self.rows
    }

    /// As TT-NN has it.
    pub fn ranges(self) -> CoreRangeSet {
        let last = CoreCoord::new(self.columns - 1, self.first_row + self.rows - 1);
        CoreRangeSet(vec![CoreRange::new(CoreCoord::new(0, self.first_row), last)])
    }

    /// Columns and rows, as a program config has them.
    pub fn size(self) -> CoreCoord {
        CoreCoord::new(self.columns, self.rows)
    }
}

/// The most cores that hold equally many of a width's tiles, `least` at least if the width has them, and form a
/// rectangle between two rows of the grid. An unequal part would leave a core with padding that every step must carry.
///
/// # Panics
/// If there are no tiles or no rows.
pub fn sharing(tiles: u32, least: u32, rows: [u32; 2]) -> Rectangle {
    let most = ((rows[1] - rows[0]) * CORE_GRID[0]).min((tiles / least).max(1));
    let forms = |cores: u32| {
        let rectangle = Rectangle::of(cores, rows[0])?;
        (tiles.is_multiple_of(cores) && rectangle.first_row + rectangle.rows <= rows[1]).then_some(rectangle)
    };
    (1..=most).rev().find_map(forms).expect("one core is a rectangle")
}

/// The most cores of the whole grid that share a width's tiles.
pub fn sharing_all(tiles: u32, least: u32) -> Rectangle {
    sharing(tiles, least, [0, CORE_GRID[1]])
}

/// Over how many of a grid's rows or columns a prefill's tiles are dealt: as few as are done as early as all of them would
/// be. Each gets the same number but the last, which may get less.
pub fn dealing(tiles: u32, most: u32) -> u32 {
    tiles.div_ceil(tiles.div_ceil(most))
}
