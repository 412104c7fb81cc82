//! A matrix times many tokens, which lie side by side in lanes: blocks of tokens, columns and rows so that a panel of weights
//! stays in the first cache while tokens go by; they and the sums lie in the second. Where tokens are few, the columns of
//! several panels are packed at once, a span, and rows are read to its end before the rows below: memory gives streams faster
//! than pieces.

use super::{RowsAhead, TILE, evenly, write_rows, zeros};
use crate::avx2::with_count;
use crate::{LANES, Lanes, MatrixMut, MatrixView};
use std::{iter, mem::MaybeUninit, ops::Range};

/// Lines of packed tokens that are kept at once, 270 kB: 512 for sixteen tokens, and some more, so that groups lie in different
/// sets of a cache.
const LINES: usize = GROUPS * 528;
/// Parts of them, a batch and the columns of a panel each.
const PARTS: usize = 32;
/// Tokens that use a panel before the next panel.
const TOKENS: usize = GROUPS * LANES;
/// Lanes of tokens.
const GROUPS: usize = 8;
/// Rows whose sums are kept in lanes until all columns have gone by, 270 kB: tokens are packed once for so many.
const ROWS: usize = 528;
/// Rows of a panel that stays in the first cache: two tiles for sixteen tokens, one for eight.
pub(crate) const FEW_ROWS: usize = 2 * TILE;
/// Bytes of a page, in each of which a processor foresees one stream.
const PAGE: usize = 4096;

/// Some columns of a row of weights, as they are multiplied with tokens of type `X`, a batch of `G` times sixteen at once.
pub(crate) trait Row<X: Copy, const G: usize>: Copy {
    /// Columns at most, whole blocks of every format.
    const COLUMNS: usize;
    /// Lines that those of sixteen tokens are packed to.
    const LINES: usize;
    /// Columns that a tile goes through between two requests to memory.
    const STEP: usize;
    /// One without weights.
    const EMPTY: Self;

    /// Fills in a panel: columns `columns` of all rows of `w`. The panel after it is `next`, to ask memory for.
    ///
    /// # Safety
    /// The processor has the features that this is compiled for.
    unsafe fn fill(w: &MatrixView<'_>, columns: Range<usize>, next: RowsAhead, out: &mut [Self]);

    /// Columns `columns` of a batch of tokens, `tokens`, side by side in lanes; zero in lanes without a token.
    ///
    /// # Safety
    /// The processor has the features that this is compiled for.
    unsafe fn pack(
        x: X,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &mut [MaybeUninit<Lanes>],
    ) -> &[Lanes];

    /// Adds the products of `R` rows with a batch of tokens to as many sums: with all of it if `V` is 2, with the first half
    /// of it if `V` is 1. With each [`STEP`](Self::STEP) columns it asks for a step of as many rows `ahead`.
    ///
    /// # Safety
    /// The processor has the features that this is compiled for.
    unsafe fn add_rows<const R: usize, const V: usize>(
        rows: &[Self; R],
        batch: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [[Lanes; G]; R],
    );
}

/// Memory of a product.
struct Memory<P, const N: usize> {
    panel: [MaybeUninit<P>; N],
    tokens: [MaybeUninit<Lanes>; LINES],
    sums: [MaybeUninit<Lanes>; GROUPS * ROWS],
}

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`, with panels of `N` rows. A token's sums are taken in the same order wherever
/// it lies.
///
/// # Safety
/// The processor has the features that `P` is compiled for.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(crate) unsafe fn matmul<X: Copy, P: Row<X, G>, const G: usize, const N: usize>(
    w: &MatrixView<'_>,
    x: X,
    mut out: MatrixMut<'_>,
) {
    let mut memory = Memory::<P, N> {
        panel: [const { MaybeUninit::uninit() }; N],
        tokens: [const { MaybeUninit::uninit() }; LINES],
        sums: [const { MaybeUninit::uninit() }; GROUPS * ROWS],
    };
    let tokens = out.rows();
    for token in (0..tokens).step_by(TOKENS) {
        // What follows the matrix is not read yet where tokens are left, but its first rows again.
        let w = if token + TOKENS < tokens { &w.alone() } else { w };
        let tokens = token..tokens.min(token + TOKENS);
        let (mut block, rest) = out.split_rows_at(tokens.len());
        for row in (0..w.rows()).step_by(ROWS) {
            let w = w.row_range(row..w.rows().min(row + ROWS));
            let (now, after) = block.split_columns_at(w.rows());
            // SAFETY: what the caller promises.
            unsafe { block_products(&w, (x, tokens.clone()), now, &mut memory) };
            block = after;
        }
        out = rest;
    }
}

/// As [`matmul`], of at most [`ROWS`] rows and [`TOKENS`] tokens.
///
/// # Safety
/// As for that.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block_products<X: Copy, P: Row<X, G>, const G: usize, const N: usize>(
    w: &MatrixView<'_>,
    (x, tokens): (X, Range<usize>),
    mut out: MatrixMut<'_>,
    memory: &mut Memory<P, N>,
) {
    let batches = Batches { tokens, most: G * LANES };
    let panel = filled(&mut memory.panel[..w.rows().min(N)], P::EMPTY);
    let (sums, _) = zeros(&mut memory.sums[..batches.count() * w.rows() * G]).as_chunks_mut::<G>();
    const {
        assert!(
            GROUPS * P::LINES <= LINES && GROUPS.div_ceil(G) <= PARTS,
            "a panel's columns of all tokens fit"
        );
    }
    let panels = (LINES / (batches.tokens.len().div_ceil(LANES) * P::LINES)).min(PARTS / batches.count());
    for first in (0..w.cols()).step_by(panels * P::COLUMNS) {
        let span = first..w.cols().min(first + panels * P::COLUMNS);
        // SAFETY: what the caller promises.
        unsafe {
            let packed = pack_span::<X, P, G>(x, &batches, &span, &mut memory.tokens);
            add_span::<X, P, G, N>(w, &span, &batches, &packed, panel, sums);
        }
    }
    let mut places = [0; ROWS];
    rows_of_panels::<N>(w).flat_map(Rows::each).enumerate().for_each(|(place, row)| places[row] = place);
    for batch in 0..batches.count() {
        let sums = &sums[batch * w.rows()..][..w.rows()];
        for group in 0..batches.tokens(batch).len().div_ceil(LANES) {
            let lanes = out.rows().min(LANES);
            let (mut now, rest) = out.split_rows_at(lanes);
            write_rows::<false>(|row| &sums[places[row]][group], &mut now);
            out = rest;
        }
    }
}

/// Tokens that use a panel one batch after the other.
struct Batches {
    /// All of them.
    tokens: Range<usize>,
    /// How many each batch has at most.
    most: usize,
}

impl Batches {
    fn count(&self) -> usize {
        self.tokens.len().div_ceil(self.most)
    }

    fn tokens(&self, batch: usize) -> Range<usize> {
        let first = self.tokens.start + batch * self.most;
        first..self.tokens.end.min(first + self.most)
    }
}

/// Rows of a panel: so many from the first on, each `step` rows after the one before.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    step: usize,
    count: usize,
}

impl Rows {
    fn each(self) -> impl Iterator<Item = usize> {
        (self.first..).step_by(self.step).take(self.count)
    }
}

/// The rows of each panel, at most `N`, all of them once. As long as there are enough, those of a panel begin a page apart, or
/// as far as blocks of scales allow: several streams in a page are none to the processor, which then foresees nothing. Steps
/// are powers of two, since those divide blocks, and can be halved for the rows that are left.
fn rows_of_panels<const N: usize>(w: &MatrixView<'_>) -> impl Iterator<Item = Rows> {
    let row_bytes = w.format().bytes(w.row_stride()).max(1);
    let a_page = PAGE.div_ceil(row_bytes).next_power_of_two().min(w.largest_step());
    let (mut end, rows) = (0, w.rows());
    let groups = iter::from_fn(move || {
        let (first, left) = (end, rows - end);
        let step = a_page.min(1 << (left / N).max(1).ilog2());
        end += left.min(N * step);
        (left > 0).then_some((first..end, step))
    });
    groups.flat_map(|(group, step)| {
        (0..step).map(move |turn| Rows { first: group.start + turn, step, count: group.len() / step })
    })
}

/// The columns of each panel.
fn columns_of_panels(span: &Range<usize>, columns: usize) -> impl Iterator<Item = Range<usize>> {
    span.clone().step_by(columns).map(move |first| first..span.end.min(first + columns))
}

/// Columns `span` of all batches, for each panel one after the other.
///
/// # Safety
/// As for [`matmul`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_span<'m, X: Copy, P: Row<X, G>, const G: usize>(
    x: X,
    batches: &Batches,
    span: &Range<usize>,
    memory: &'m mut [MaybeUninit<Lanes>],
) -> [&'m [Lanes]; PARTS] {
    let mut packed: [&[Lanes]; PARTS] = [&[]; _];
    let mut free = memory;
    for (columns, packed) in columns_of_panels(span, P::COLUMNS).zip(packed.chunks_mut(batches.count())) {
        for (batch, packed) in packed.iter_mut().enumerate() {
            let tokens = batches.tokens(batch);
            let (now, rest) = free.split_at_mut(tokens.len().div_ceil(LANES) * P::LINES);
            // SAFETY: what the caller promises.
            *packed = unsafe { P::pack(x, tokens, columns.clone(), now) };
            free = rest;
        }
    }
    packed
}

/// Adds the products of columns `span` of all rows, panel by panel, with what they are `packed` to of all batches.
///
/// # Safety
/// As for [`matmul`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_span<X: Copy, P: Row<X, G>, const G: usize, const N: usize>(
    w: &MatrixView<'_>,
    span: &Range<usize>,
    batches: &Batches,
    packed: &[&[Lanes]],
    panel: &mut [P],
    sums: &mut [[Lanes; G]],
) {
    let mut panels = rows_of_panels::<N>(w).peekable();
    let Some(&top) = panels.peek() else { return };
    let mut done = 0;
    while let Some(rows) = panels.next() {
        let panel = &mut panel[..rows.count];
        let part = w.every(rows.first, rows.step).row_range(0..rows.count);
        for (columns, packed) in columns_of_panels(span, P::COLUMNS).zip(packed.chunks(batches.count())) {
            let (next, column) = match (columns.end < span.end, panels.peek()) {
                (true, _) => (rows, columns.end),
                (false, Some(&below)) => (below, span.start),
                (false, None) if span.end < w.cols() => (top, span.end),
                // Of what is read after the matrix, which is taken to be one like it.
                (false, None) => (Rows { first: w.rows(), ..top }, 0),
            };
            let next = RowsAhead::at(w, (next.first, column), P::COLUMNS).every(next.step);
            // SAFETY: what the caller promises, here and below.
            unsafe { P::fill(&part, columns, next, panel) };
            for (batch, packed) in packed.iter().enumerate() {
                // The first batch asks for the next panel.
                let next = (batch == 0).then(|| next.in_steps(P::COLUMNS / P::STEP));
                let sums = &mut sums[batch * w.rows() + done..][..part.rows()];
                // SAFETY: as above.
                unsafe {
                    match batches.tokens(batch).len() <= G * LANES / 2 {
                        true => add_batch::<X, P, 1, G>(panel, packed, next, sums),
                        false => add_batch::<X, P, 2, G>(panel, packed, next, sums),
                    }
                }
            }
        }
        done += part.rows();
    }
}

/// Adds the products of a panel with a batch of tokens, of which `V` halves hold any.
///
/// # Safety
/// As for [`matmul`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_batch<X: Copy, P: Row<X, G>, const V: usize, const G: usize>(
    panel: &[P],
    batch: &[Lanes],
    next: Option<RowsAhead>,
    sums: &mut [[Lanes; G]],
) {
    let mut first = 0;
    // Half as many tokens and as many rows again keep as many sums.
    while V == 1 && panel.len() - first >= FEW_ROWS {
        let rows = first..first + FEW_ROWS;
        // SAFETY: what the caller promises.
        unsafe { add_tile::<X, P, FEW_ROWS, 1, G>(panel, rows, batch, next, sums) };
        first += FEW_ROWS;
    }
    for rows in evenly(panel.len() - first, TILE) {
        let rows = first + rows.start..first + rows.end;
        // SAFETY: as above.
        with_count!(rows.len(), R of [1 2 3 4 5 6], unsafe {
            add_tile::<X, P, R, V, G>(panel, rows, batch, next, sums);
        });
    }
}

/// Adds the products of `R` rows, `rows`, of a panel.
///
/// # Safety
/// As for [`matmul`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_tile<X: Copy, P: Row<X, G>, const R: usize, const V: usize, const G: usize>(
    panel: &[P],
    rows: Range<usize>,
    batch: &[Lanes],
    next: Option<RowsAhead>,
    sums: &mut [[Lanes; G]],
) {
    let next = next.map(|next| next.below(rows.start));
    let sums = (&mut sums[rows.clone()]).try_into().expect("as many sums as rows of the tile");
    let rows = (&panel[rows]).try_into().expect("rows of the tile");
    // SAFETY: what the caller promises.
    unsafe { P::add_rows::<R, V>(rows, batch, next, sums) }
}

/// `value` everywhere.
fn filled<T: Copy>(memory: &mut [MaybeUninit<T>], value: T) -> &mut [T] {
    for place in &mut *memory {
        place.write(value);
    }
    // SAFETY: everything has been written.
    unsafe { memory.assume_init_mut() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockScales, Format};

    /// The rows of each panel of FP8.
    fn panels<const N: usize>(rows: usize, cols: usize, block_rows: usize) -> Vec<Vec<usize>> {
        let (bytes, grid) = (vec![0; rows * cols], vec![0; 4 * rows.div_ceil(block_rows)]);
        let scales = BlockScales { bytes: &grid, block_rows, block_cols: cols, grid_cols: 1, first_row: 0 };
        let w = MatrixView::from_bytes(Format::Fp8, &bytes, rows, cols, Some(scales));
        rows_of_panels::<N>(&w).map(|rows| rows.each().collect()).collect()
    }

    #[test]
    fn steps_divide_blocks_and_are_halved_for_the_rest() {
        let steps = |panels: Vec<Vec<usize>>| -> Vec<usize> {
            panels.iter().map(|panel| panel.get(1).map_or(0, |second| second - panel[0])).collect()
        };
        // A page has eight rows.
        assert_eq!(steps(panels::<2>(16 + 8 + 3, 512, 128)), [[8; 8].as_slice(), &[4; 4], &[1, 0]].concat());
        assert_eq!(steps(panels::<2>(16, 512, 12)), [4; 8]);
        assert_eq!(steps(panels::<2>(4, 512, 3)), [1; 2]);
        assert_eq!(panels::<2>(5, 2048, 128), [vec![0, 2], vec![1, 3], vec![4]]);
    }

    #[test]
    fn each_row_is_in_one_panel_with_rows_a_page_apart() {
        for (rows, cols) in
            [(1, 7), (12, 64), (400, 64), (512, 512), (100, 2048), (528, 1536), (5, 5000), (0, 9)]
        {
            let bytes = vec![0; 2 * rows * cols];
            let w = MatrixView::from_bytes(Format::Bf16, &bytes, rows, cols, None);
            let panels: Vec<Vec<_>> = rows_of_panels::<12>(&w).map(|rows| rows.each().collect()).collect();
            let mut all = panels.concat();
            all.sort_unstable();
            assert_eq!(all, (0..rows).collect::<Vec<_>>(), "{rows} x {cols}");
            let apart = |panel: &[usize]| panel.windows(2).all(|pair| (pair[1] - pair[0]) * 2 * cols >= PAGE);
            let on_pages = panels.iter().filter(|panel| apart(panel)).count() * 12;
            // Fewer rows than a panel on pages of their own has are left over.
            let group = 12 * PAGE.div_ceil(2 * cols).next_power_of_two();
            assert!(on_pages >= rows / group * group, "{on_pages} of {rows} x {cols}");
            assert!(panels.iter().all(|panel| (1..=12).contains(&panel.len())));
        }
    }
}
