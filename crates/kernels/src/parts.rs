//! Work shared out piece by piece: threads take parts of a matrix or a slice, each part once.

use crate::MatrixMut;
use std::{
    marker::PhantomData,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// A matrix in parts that threads take one by one. A part is handed out once, so the parts are disjoint.
#[derive(Debug)]
pub struct Parts<'a> {
    matrix: MatrixMut<'a>,
    rows: Cuts<'a>,
    cols: Cuts<'a>,
    next: AtomicUsize,
}

/// Where a side is cut.
#[derive(Clone, Copy, Debug)]
pub enum Cuts<'a> {
    /// Not at all: one piece.
    Whole,
    /// Into pieces of this length, but for the last.
    Every(usize),
    /// At these ends, ascending, the last one the length of the side; empty pieces are allowed.
    Ends(&'a [usize]),
}

impl Cuts<'_> {
    fn count(self, length: usize) -> usize {
        match self {
            Cuts::Whole => 1,
            Cuts::Every(piece) => length.div_ceil(piece),
            Cuts::Ends(ends) => ends.len(),
        }
    }

    fn piece(self, length: usize, number: usize) -> Range<usize> {
        match self {
            Cuts::Whole => 0..length,
            Cuts::Every(piece) => number * piece..length.min((number + 1) * piece),
            Cuts::Ends(ends) => number.checked_sub(1).map_or(0, |before| ends[before])..ends[number],
        }
    }

    /// Pieces must cover the side without overlap: whoever gets one relies on that.
    fn check(self, length: usize) {
        match self {
            Cuts::Whole => {}
            Cuts::Every(piece) => assert!(piece > 0, "a piece has a length"),
            Cuts::Ends(ends) => {
                assert!(ends.is_sorted(), "the ends of pieces ascend");
                assert_eq!(ends.last().copied().unwrap_or(0), length, "the last piece ends with the side");
            }
        }
    }
}

/// One part: where it lies, and its elements to write.
#[derive(Debug)]
pub struct Part<'a> {
    /// The number of the piece of rows.
    pub row_piece: usize,
    /// Its rows in the whole.
    pub rows: Range<usize>,
    /// Its columns in the whole.
    pub cols: Range<usize>,
    /// Its elements.
    pub out: MatrixMut<'a>,
}

impl<'a> Parts<'a> {
    /// Parts by rows and columns; the columns of a piece of rows come one after another.
    ///
    /// # Panics
    /// If the cuts do not fit the matrix.
    pub fn new(matrix: MatrixMut<'a>, rows: Cuts<'a>, cols: Cuts<'a>) -> Self {
        rows.check(matrix.rows());
        cols.check(matrix.cols());
        Self { matrix, rows, cols, next: AtomicUsize::new(0) }
    }

    /// How many parts there are, those that were taken counted.
    pub fn count(&self) -> usize {
        self.rows.count(self.matrix.rows()) * self.cols.count(self.matrix.cols())
    }

    /// Takes a part that nobody has taken yet.
    pub fn take(&self) -> Option<Part<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.count() {
            // Not to overflow, however often this is asked.
            self.next.store(self.count(), Ordering::Relaxed);
            return None;
        }
        let across = self.cols.count(self.matrix.cols());
        let row_piece = number / across;
        let rows = self.rows.piece(self.matrix.rows(), row_piece);
        let cols = self.cols.piece(self.matrix.cols(), number % across);
        // SAFETY: every number below `count` is given once, and pieces with different numbers have no element in
        // common; `self` is borrowed, so the matrix is not reached otherwise.
        let out = unsafe { self.matrix.part(rows.clone(), cols.clone()) };
        Some(Part { row_piece, rows, cols, out })
    }
}

/// A slice in chunks that threads take one by one.
#[derive(Debug)]
pub struct Chunks<'a, T> {
    first: *mut T,
    length: usize,
    size: usize,
    next: AtomicUsize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]` whose chunks go to different threads, which `T: Send` allows.
unsafe impl<T: Send> Send for Chunks<'_, T> {}
// SAFETY: as above; a shared `Chunks` hands out each chunk once.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    /// Chunks of `size`, but for the last.
    ///
    /// # Panics
    /// If `size` is 0.
    pub fn new(values: &'a mut [T], size: usize) -> Self {
        assert!(size > 0, "a chunk has a length");
        let (first, length) = (values.as_mut_ptr(), values.len());
        Self { first, length, size, next: AtomicUsize::new(0), borrowed: PhantomData }
    }

    /// How many chunks there are, those that were taken counted.
    pub fn count(&self) -> usize {
        self.length.div_ceil(self.size)
    }

    /// Takes a chunk that nobody has taken yet: its number and its values.
    #[allow(clippy::mut_from_ref, reason = "each chunk is handed out once")]
    pub fn take(&self) -> Option<(usize, &mut [T])> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.count() {
            self.next.store(self.count(), Ordering::Relaxed);
            return None;
        }
        let start = number * self.size;
        let length = self.size.min(self.length - start);
        // SAFETY: the chunk lies in the borrowed slice, its number is given once, and chunks do not overlap.
        Some((number, unsafe { std::slice::from_raw_parts_mut(self.first.add(start), length) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cuts(length: usize, ends: &[usize], way: usize) -> Cuts<'_> {
        match way {
            0 => Cuts::Whole,
            1 => Cuts::Every(length / 3 + 1),
            _ => Cuts::Ends(ends),
        }
    }

    fn ends(length: usize, mut cuts: Vec<usize>) -> Vec<usize> {
        cuts.iter_mut().for_each(|cut| *cut %= length + 1);
        cuts.sort_unstable();
        cuts.push(length);
        cuts
    }

    proptest! {
        #[test]
        fn parts_cover_a_matrix_once(
            (rows, cols) in (0..12_usize, 0..12_usize),
            (row_cuts, col_cuts) in (prop::collection::vec(0..99_usize, 0..4), prop::collection::vec(0..99_usize, 0..4)),
            (row_way, col_way) in (0..3_usize, 0..3_usize),
        ) {
            let (row_ends, col_ends) = (ends(rows, row_cuts), ends(cols, col_cuts));
            let (row_cuts, col_cuts) = (cuts(rows, &row_ends, row_way), cuts(cols, &col_ends, col_way));
            let mut values = vec![0.0; rows * cols];
            let parts = Parts::new(MatrixMut::new(&mut values, rows, cols), row_cuts, col_cuts);
            let mut taken = 0;
            while let Some(mut part) = parts.take() {
                taken += 1;
                prop_assert_eq!((part.out.rows(), part.out.cols()), (part.rows.len(), part.cols.len()));
                for (number, row) in part.rows.clone().enumerate() {
                    for (value, col) in part.out.row_mut(number).iter_mut().zip(part.cols.clone()) {
                        prop_assert_eq!(*value, 0.0);
                        *value = (row * cols + col + 1) as f32;
                    }
                }
            }
            prop_assert_eq!(taken, parts.count());
            prop_assert!(parts.take().is_none());
            let expected: Vec<f32> = (1..=rows * cols).map(|number| number as f32).collect();
            prop_assert_eq!(values, expected);
        }
    }

    #[test]
    #[should_panic(expected = "the last piece ends with the side")]
    fn cuts_that_leave_something_out_are_refused() {
        Parts::new(MatrixMut::new(&mut [0.0; 6], 2, 3), Cuts::Whole, Cuts::Ends(&[1, 2]));
    }

    #[test]
    #[should_panic(expected = "the ends of pieces ascend")]
    fn cuts_that_overlap_are_refused() {
        Parts::new(MatrixMut::new(&mut [0.0; 6], 2, 3), Cuts::Whole, Cuts::Ends(&[2, 1, 3]));
    }

    #[test]
    fn chunks_cover_a_slice_once() {
        let mut values = [0; 10];
        let chunks = Chunks::new(&mut values, 4);
        assert_eq!(chunks.count(), 3);
        while let Some((number, chunk)) = chunks.take() {
            chunk.fill(number + 1);
        }
        assert!(chunks.take().is_none());
        assert_eq!(values, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]);
    }
}
