//! Memory that a task works in. Each thread keeps what it has used, so that steps after the first allocate nothing.

use dsv3_kernels::{LANES, Lanes};
use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<Lanes>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with `lines` lines that hold anything. May be nested.
pub(crate) fn with_lines<R>(lines: usize, f: impl FnOnce(&mut [Lanes]) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(|free| {
        // The smallest that is large enough, or else the largest.
        let fitting = (0..free.len()).filter(|&index| free[index].len() >= lines);
        let best = fitting.min_by_key(|&index| free[index].len());
        let best = best.or_else(|| (0..free.len()).max_by_key(|&index| free[index].len()));
        best.map_or_else(Vec::new, |index| free.swap_remove(index))
    });
    if buffer.len() < lines {
        // Not grown, which would copy what nobody reads.
        buffer = vec![Lanes::ZERO; lines];
    }
    let result = f(&mut buffer[..lines]);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}

/// Values from a row of `cols` to the next in a panel: an odd number of lines, so that a column of a panel spreads over all
/// sets of the first cache.
pub(crate) fn panel_stride(cols: usize) -> usize {
    (cols.div_ceil(LANES) | 1) * LANES
}

/// Cuts the first `lines` lines off what is left of a buffer.
pub(crate) fn take_lines<'a>(rest: &mut &'a mut [Lanes], lines: usize) -> &'a mut [Lanes] {
    let (taken, left) = std::mem::take(rest).split_at_mut(lines);
    *rest = left;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_nest() {
        let first = with_lines(100, |lines| lines.as_ptr() as usize);
        let (outer, inner) = with_lines(10, |outer| {
            (outer.as_ptr() as usize, with_lines(200, |inner| inner.as_ptr() as usize))
        });
        assert_eq!(outer, first);
        assert_ne!(inner, first);
        assert_eq!(with_lines(150, |lines| lines.as_ptr() as usize), inner);
    }
}
