//! What a loop over rows reads, and asks memory for: found once, for the loop has no time to look at the format in each row.

/// The stored bytes of some columns of all rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsBytes<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes from the start of a row to the start of the next.
    pub(super) stride: usize,
    pub(super) length: usize,
}

impl<'a> RowsBytes<'a> {
    /// The bytes of a row.
    #[inline(always)]
    pub(crate) fn row(self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.length]
    }

    /// Bytes from the start of a row to the start of the next.
    pub(crate) fn stride(self) -> usize {
        self.stride
    }
}

/// Addresses to ask memory for while rows are read; they need not be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AheadOfRows<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) ahead: usize,
    pub(super) next: Option<&'a [u8]>,
}

impl AheadOfRows<'_> {
    /// Those for a row.
    #[inline(always)]
    pub(crate) fn row(self, row: usize) -> AheadOfRow {
        let Self { bytes, stride, rows, ahead, next } = self;
        let left = (rows - row) * stride;
        let near = bytes.as_ptr().wrapping_add(row * stride + ahead);
        match next {
            Some(next) => AheadOfRow {
                near,
                turn: left.saturating_sub(ahead),
                far: next.as_ptr().wrapping_add(ahead).wrapping_sub(left),
            },
            None => AheadOfRow { near, turn: usize::MAX, far: near },
        }
    }
}

/// Addresses to ask memory for while a row is read; they need not be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AheadOfRow {
    /// The address for the row's first byte.
    near: *const u8,
    /// The byte from which on another matrix is read.
    turn: usize,
    /// What the first byte's address would be, counted back from that matrix.
    far: *const u8,
}

impl AheadOfRow {
    /// The address for a byte of the row. Who asks for what follows it, too, asks behind the matrix where another one is read
    /// from within that range on: a line or two of each matrix.
    #[inline]
    pub(crate) fn of(self, byte: usize) -> *const u8 {
        if byte < self.turn { self.near } else { self.far }.wrapping_add(byte)
    }
}

#[cfg(test)]
mod tests {
    use crate::{BlockScales, Format, MatrixView};

    #[test]
    fn memory_is_asked_for_what_is_read_next() {
        let bytes = [0; 4 * 6 + 8];
        let view = MatrixView::from_bytes(Format::Bf16, &bytes[..24], 4, 3, None);
        let next = MatrixView::from_bytes(Format::Bf16, &bytes[28..], 1, 2, None);
        let at = |view: &MatrixView<'_>, row, byte| {
            view.ahead_of_rows(8).row(row).of(byte) as usize - bytes.as_ptr() as usize
        };
        // Without a word, what lies behind, even past the end.
        assert_eq!([at(&view, 0, 0), at(&view, 1, 5), at(&view, 3, 5)], [8, 19, 31]);
        let view = view.followed_by(&next);
        // Eight bytes before the end the other begins.
        assert_eq!([at(&view, 0, 5), at(&view, 2, 3), at(&view, 2, 4), at(&view, 3, 1)], [13, 23, 28, 31]);
        let start = |view: &MatrixView<'_>, row| view.start_of_row(row) as usize - bytes.as_ptr() as usize;
        assert_eq!([start(&view, 3), start(&view, 4), start(&view, 5)], [18, 28, 34]);
        let part = view.row_range(0..1);
        assert_eq!(start(&part, 1), 6);
        assert_eq!(start(&view.row_range(2..4), 2), 28, "what is read after the last rows is");
        assert_eq!(at(&part, 0, 5), 13, "what is read after a part is not what is read after all");
    }

    #[test]
    fn one_row_of_each_step() {
        let bytes: Vec<u8> = (0..14).collect();
        let grid: Vec<u8> = [1.0_f32, 2.0, 3.0].into_iter().flat_map(f32::to_le_bytes).collect();
        // Rows 1 to 7 of a matrix of which each four have a scale.
        let scales = BlockScales { bytes: &grid, block_rows: 4, block_cols: 2, grid_cols: 1, first_row: 1 };
        let view = MatrixView::from_bytes(Format::Fp8, &bytes, 7, 2, Some(scales));
        let rows = |view: &MatrixView<'_>| -> Vec<(u8, f32)> {
            let scale = |row| view.row_scales(row).of(view.column_blocks(0..2).next().expect("a block"));
            (0..view.rows()).map(|row| (view.row_bytes(row, 0..2)[0], scale(row))).collect()
        };
        let all = rows(&view);
        assert_eq!(all.iter().map(|row| row.1).collect::<Vec<_>>(), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
        for (first, step) in [(0, 1), (0, 2), (1, 2), (0, 4), (3, 4), (6, 4), (5, 2)] {
            let some: Vec<_> = all[first..].iter().step_by(step).copied().collect();
            assert_eq!(rows(&view.every(first, step)), some, "each {step} from {first}");
        }
    }

    #[test]
    #[should_panic(expected = "3 rows with one scale")]
    fn steps_that_cut_blocks_are_refused() {
        let scales = BlockScales { bytes: &[0; 8], block_rows: 3, block_cols: 1, grid_cols: 1, first_row: 0 };
        MatrixView::from_bytes(Format::Fp8, &[0; 4], 4, 1, Some(scales)).every(0, 2);
    }
}
