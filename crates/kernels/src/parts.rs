//! Work shared out piece by piece: threads take the pieces of a [`Queue`], each once.

use crate::MatrixMut;
use std::{
    array::from_fn,
    iter,
    marker::PhantomData,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What can be cut into pieces that several threads hold at the same time.
///
/// # Safety
/// Pieces with different numbers have no element in common, nothing else reaches their elements, and their count stays.
pub unsafe trait Pieces: Sync {
    /// One piece.
    type Piece;

    /// How many there are.
    fn count(&self) -> usize;

    /// The piece with this number.
    ///
    /// # Safety
    /// The number is below [`count`](Self::count), and no number is asked for twice.
    unsafe fn piece(&self, number: usize) -> Self::Piece;
}

// SAFETY: a pair with another number is of two other pieces.
unsafe impl<A: Pieces, B: Pieces> Pieces for (A, B) {
    type Piece = (A::Piece, B::Piece);

    /// # Panics
    /// If one has more pieces than the other.
    fn count(&self) -> usize {
        assert_eq!(self.0.count(), self.1.count(), "pieces of both");
        self.0.count()
    }

    unsafe fn piece(&self, number: usize) -> Self::Piece {
        // SAFETY: what the caller promises; both have as many pieces.
        unsafe { (self.0.piece(number), self.1.piece(number)) }
    }
}

/// The most runs of a [`Queue`]; more threads than these share them.
const MOST_RUNS: usize = 32;

/// Pieces that threads take one by one.
#[derive(Debug)]
pub struct Queue<'a, P> {
    pieces: P,
    count: usize,
    /// Holds each number below `count` once; without it the pieces come as they lie.
    order: Option<&'a [usize]>,
    runs: [Run; MOST_RUNS],
    used_runs: usize,
    takers: AtomicUsize,
}

/// Places of a queue that lie one after another.
#[derive(Debug, Default)]
struct Run {
    next: AtomicUsize,
    end: usize,
}

impl Run {
    /// A place that nobody has taken yet.
    fn take(&self) -> Option<usize> {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        if place < self.end {
            return Some(place);
        }
        // Not to overflow, however often this is asked.
        self.next.store(self.end, Ordering::Relaxed);
        None
    }
}

impl<'a, P: Pieces> Queue<'a, P> {
    /// The pieces as they lie, the first ones first.
    pub fn new(pieces: P) -> Self {
        Self::with_order(pieces, None, 1)
    }

    /// The pieces as they lie, each of so many threads beginning elsewhere: what one of them takes lies together, until it
    /// helps another with the rest. For pieces that read memory, which is fast from place to place and slow to jump.
    pub fn in_runs(pieces: P, threads: usize) -> Self {
        Self::with_order(pieces, None, threads)
    }

    /// The pieces by ascending `key` of their number, and as they lie where keys are equal. `order`, `[count]`, is
    /// memory for their numbers.
    ///
    /// # Panics
    /// If `order` has another length.
    pub fn sorted<K: Ord>(pieces: P, order: &'a mut [usize], key: impl Fn(usize) -> K) -> Self {
        assert_eq!(order.len(), pieces.count(), "a place for each piece");
        for (number, place) in order.iter_mut().enumerate() {
            *place = number;
        }
        // Whatever the keys are, each number stays there once.
        order.sort_unstable_by_key(|&number| (key(number), number));
        Self::with_order(pieces, Some(order), 1)
    }

    fn with_order(pieces: P, order: Option<&'a [usize]>, threads: usize) -> Self {
        let (count, used_runs) = (pieces.count(), threads.clamp(1, MOST_RUNS));
        let start = |run: usize| count / used_runs * run + (count % used_runs).min(run);
        let runs = from_fn(|run| match run < used_runs {
            true => Run { next: AtomicUsize::new(start(run)), end: start(run + 1) },
            false => Run::default(),
        });
        Self { pieces, count, order, runs, used_runs, takers: AtomicUsize::new(0) }
    }

    /// How many pieces there are, those that were taken counted.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes pieces that nobody has taken yet, until none is left.
    pub fn drain(&self) -> impl Iterator<Item = P::Piece> {
        let first = self.takers.fetch_add(1, Ordering::Relaxed);
        // A run that is empty stays so.
        let runs = (0..self.used_runs).map(move |step| &self.runs[first.wrapping_add(step) % self.used_runs]);
        runs.flat_map(|run| iter::from_fn(|| run.take())).map(|place| {
            let number = self.order.map_or(place, |order| order[place]);
            // SAFETY: each place below `count` is in one run, which gives it once, and has a number below `count` of its
            // own.
            unsafe { self.pieces.piece(number) }
        })
    }
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

/// A matrix in parts by rows and columns; the columns of a piece of rows come one after another.
#[derive(Debug)]
pub struct Parts<'a> {
    matrix: MatrixMut<'a>,
    rows: Cuts<'a>,
    cols: Cuts<'a>,
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
    /// The parts that these cuts make.
    ///
    /// # Panics
    /// If the cuts do not fit the matrix.
    pub fn new(matrix: MatrixMut<'a>, rows: Cuts<'a>, cols: Cuts<'a>) -> Self {
        rows.check(matrix.rows());
        cols.check(matrix.cols());
        Self { matrix, rows, cols }
    }
}

// SAFETY: pieces of a side with different numbers do not overlap, so parts with different numbers have no element in
// common; the matrix was given away for `'a`, and is reached through its parts only.
unsafe impl<'a> Pieces for Parts<'a> {
    type Piece = Part<'a>;

    fn count(&self) -> usize {
        self.rows.count(self.matrix.rows()) * self.cols.count(self.matrix.cols())
    }

    unsafe fn piece(&self, number: usize) -> Part<'a> {
        let across = self.cols.count(self.matrix.cols());
        let row_piece = number / across;
        let rows = self.rows.piece(self.matrix.rows(), row_piece);
        let cols = self.cols.piece(self.matrix.cols(), number % across);
        // SAFETY: no number comes twice, so these elements are given once.
        let out = unsafe { self.matrix.part(rows.clone(), cols.clone()) };
        Part { row_piece, rows, cols, out }
    }
}

/// A slice in chunks. A piece is the number of a chunk and its values.
#[derive(Debug)]
pub struct Chunks<'a, T> {
    first: *mut T,
    length: usize,
    cuts: Cuts<'a>,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]` whose chunks go to different threads, which `T: Send` allows.
unsafe impl<T: Send> Send for Chunks<'_, T> {}
// SAFETY: as above; a shared `Chunks` hands out each chunk once.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    /// The chunks that these cuts make.
    ///
    /// # Panics
    /// If the cuts do not fit the slice.
    pub fn new(values: &'a mut [T], cuts: Cuts<'a>) -> Self {
        cuts.check(values.len());
        Self { first: values.as_mut_ptr(), length: values.len(), cuts, borrowed: PhantomData }
    }
}

// SAFETY: chunks with different numbers do not overlap; the slice was given away for `'a`, and is reached through its
// chunks only.
unsafe impl<'a, T: Send> Pieces for Chunks<'a, T> {
    type Piece = (usize, &'a mut [T]);

    fn count(&self) -> usize {
        self.cuts.count(self.length)
    }

    unsafe fn piece(&self, number: usize) -> (usize, &'a mut [T]) {
        let range = self.cuts.piece(self.length, number);
        // SAFETY: the cuts fit the slice, so the chunk lies in it; no number comes twice, so it is given once.
        (number, unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) })
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
            threads in 0..2 * MOST_RUNS,
        ) {
            let (row_ends, col_ends) = (ends(rows, row_cuts), ends(cols, col_cuts));
            let (row_cuts, col_cuts) = (cuts(rows, &row_ends, row_way), cuts(cols, &col_ends, col_way));
            let mut values = vec![0.0; rows * cols];
            let matrix = MatrixMut::new(&mut values, rows, cols);
            let parts = Queue::in_runs(Parts::new(matrix, row_cuts, col_cuts), threads);
            let mut taken = 0;
            for mut part in parts.drain() {
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
            prop_assert!(parts.drain().next().is_none());
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
        for cuts in [Cuts::Every(4), Cuts::Ends(&[4, 8, 10])] {
            let mut values = [0; 10];
            let chunks = Queue::new(Chunks::new(&mut values, cuts));
            assert_eq!(chunks.count(), 3);
            for (number, chunk) in chunks.drain() {
                chunk.fill(number + 1);
            }
            assert!(chunks.drain().next().is_none());
            assert_eq!(values, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]);
        }
    }

    #[test]
    fn a_sorted_queue_gives_each_piece_once_by_its_key() {
        let (mut values, mut order) = ([0; 10], [9; 4]);
        let chunks = Chunks::new(&mut values, Cuts::Every(3));
        let queue = Queue::sorted(chunks, &mut order, |number| [2, 1, 2, 0][number]);
        let mut numbers = Vec::new();
        for (number, chunk) in queue.drain() {
            chunk.fill(number);
            numbers.push(number);
        }
        assert_eq!(numbers, [3, 1, 0, 2]);
        assert_eq!(values, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
    }

    #[test]
    fn threads_begin_elsewhere_and_help_each_other() {
        let mut values = [0; 10];
        let queue = Queue::in_runs(Chunks::new(&mut values, Cuts::Every(1)), 3);
        let mut threads = [queue.drain(), queue.drain(), queue.drain(), queue.drain()];
        let mut take = |thread: usize| threads[thread].next().map(|(number, _)| number);
        // Runs of 4, 3 and 3 pieces; the fourth thread begins where the first does.
        assert_eq!([take(0), take(1), take(2), take(3)], [Some(0), Some(4), Some(7), Some(1)]);
        assert_eq!([take(1), take(1), take(1), take(1)], [Some(5), Some(6), Some(8), Some(9)]);
        assert_eq!([take(1), take(2), take(0)], [Some(2), Some(3), None]);
    }

    #[test]
    fn pairs_have_one_number() {
        let (mut left, mut right) = ([0; 4], [0; 8]);
        let pairs = (Chunks::new(&mut left, Cuts::Every(2)), Chunks::new(&mut right, Cuts::Every(4)));
        let queue = Queue::new(pairs);
        for ((number, left), (same, right)) in queue.drain() {
            assert_eq!(number, same);
            left.fill(number);
            right.fill(number);
        }
        assert_eq!((left, right), ([0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]));
    }

    #[test]
    #[should_panic(expected = "pieces of both")]
    fn pairs_of_different_counts_are_refused() {
        let (mut left, mut right) = ([0; 4], [0; 4]);
        Queue::new((Chunks::new(&mut left, Cuts::Every(2)), Chunks::new(&mut right, Cuts::Whole)));
    }
}
