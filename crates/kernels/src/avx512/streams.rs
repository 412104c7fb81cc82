//! A few rows read side by side, as memory gives them fastest.

#![allow(clippy::needless_range_loop, reason = "a stream is an index into several arrays")]

use super::{NEAR, sum_each};
use crate::view::RowsBytes;
use crate::{MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::{ops::Range, ptr};

/// Rows that are read side by side, each in a part of its own: the processor foresees each of these streams, as long as they
/// lie on different pages, and they share inputs.
pub(crate) const STREAMS: usize = 4;

/// Rows cut into `N` parts that are read side by side: a group has a row of each. Of rows that are left over each is a group:
/// too few for a loop of their own.
pub(crate) struct SideBySide<const N: usize> {
    first: usize,
    /// Rows of a part.
    pub(crate) length: usize,
    left_over: usize,
}

impl<const N: usize> SideBySide<N> {
    pub(crate) fn of(rows: Range<usize>) -> Self {
        Self { first: rows.start, length: rows.len() / N, left_over: rows.len() % N }
    }

    pub(crate) fn groups(&self) -> usize {
        self.length + self.left_over
    }

    /// The first row of a group, how far the next ones are, and how many count.
    #[inline]
    pub(crate) fn group(&self, place: usize) -> (usize, usize, usize) {
        match place < self.length {
            true => (self.first + place, self.length, N),
            false => (self.first + self.length * (N - 1) + place, 0, 1),
        }
    }
}

/// A row of each stream.
pub(crate) struct Group<'a> {
    pub(crate) rows: [&'a [u8]; STREAMS],
    /// What to ask memory for while they are read; it need not be mapped.
    pub(crate) ahead: [*const u8; STREAMS],
}

/// `out[t, r] += row_sums(group)[t][r]`, whose lanes are added up, for rows `rows` of `w`, of which `weights` are read.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
pub(crate) fn add_rows<const T: usize>(
    w: &MatrixView<'_>,
    weights: RowsBytes<'_>,
    rows: Range<usize>,
    out: &mut MatrixMut<'_>,
    row_sums: impl Fn(&Group<'_>) -> [[__m512; STREAMS]; T],
) {
    let parts = SideBySide::<STREAMS>::of(rows.clone());
    let rows_near = NEAR.div_ceil(weights.stride().max(1));
    for place in 0..parts.groups() {
        let (first, apart, count) = parts.group(place);
        let mut group = Group { rows: [&[]; STREAMS], ahead: [ptr::null(); STREAMS] };
        for stream in 0..STREAMS {
            let row = first + stream * apart;
            group.rows[stream] = weights.row(row);
            // Behind its last row a stream goes on in the next rows, which are read in as many streams. The last bytes of that
            // row, which follow on what was asked for, are left to the processor.
            group.ahead[stream] = match place + rows_near < parts.length {
                true => w.start_of_row(row).wrapping_add(NEAR),
                false => {
                    w.start_of_row(rows.end + stream * parts.length + (place + rows_near - parts.length))
                }
            };
        }
        for (t, streams) in row_sums(&group).into_iter().enumerate() {
            let sums = sum_each(streams);
            let out = out.row_mut(t);
            for stream in 0..count {
                out[first + stream * apart] += sums[stream];
            }
        }
    }
}
