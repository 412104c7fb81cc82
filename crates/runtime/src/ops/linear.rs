//! Matrix products with a weight.

use super::arithmetic::{Arithmetic, Inputs, Integers};
use crate::{Device, Mode, Tensor, Weight};
use dsv3_kernels::{Cuts, Parts, Queue};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// Weight elements that one task of a decode step reads: 20 microseconds of a core's share of memory, long enough to pay
/// for handing the task to a thread, short enough that threads end together.
const DECODE_TASK_ELEMENTS: usize = 1 << 18;
/// Weight rows that one task of a decode step reads at least: before it reads them it lays out its inputs, in the time that
/// two rows take.
const DECODE_TASK_ROWS: usize = 64;
/// The same for prefill, where rows are short: they stay in a core's second-level cache meanwhile.
const PREFILL_TASK_ELEMENTS: usize = 1 << 19;
/// Each task copies all activations, which lie in memory where they are long, so its rows must be many enough to pay for
/// that: as many as the kernels go through with one copy.
const PREFILL_TASK_ROWS: usize = 528;
/// Tokens from which on a decode step's tasks are cut as those of prefill: so many are copied in all formats.
const MANY_TOKENS: usize = 13;
/// Rows of a task come in multiples of this, so that few of the kernels' tiles, of 6 or 8 rows, are not full.
const ROW_TILE: usize = 8;
/// Tasks of a product for each thread at least, as far as rows make whole tiles: threads are to end together.
const THREAD_TASKS: usize = 2;

/// Config of [`linear`], for this device's part of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// Columns of the weight.
    pub in_features: usize,
    /// Rows of the weight.
    pub out_features: usize,
    /// Weight rows that one task multiplies.
    pub rows_per_task: NonZeroUsize,
    /// How activations are multiplied.
    pub arithmetic: Arithmetic,
}

impl LinearConfig {
    /// The config of a weight `[out, in]` in one mode, in f32.
    pub fn new(mode: Mode, in_features: usize, out_features: usize) -> Self {
        Self::side_by_side(1, mode, in_features, out_features)
    }

    /// The config of weights `[out, in]` of which `count` are multiplied at once: a part takes the same rows of each.
    pub fn side_by_side(count: usize, mode: Mode, in_features: usize, out_features: usize) -> Self {
        let (elements, least) = match (mode, count) {
            (Mode::Prefill, _) => (PREFILL_TASK_ELEMENTS, PREFILL_TASK_ROWS),
            (Mode::Decode, 1) => (DECODE_TASK_ELEMENTS, DECODE_TASK_ROWS),
            // Each of the weights must pay for its own start.
            (Mode::Decode, _) => (2 * DECODE_TASK_ELEMENTS, DECODE_TASK_ROWS),
        };
        let rows = (elements / (count * in_features).max(1)).next_multiple_of(ROW_TILE).max(least);
        let rows_per_task = NonZeroUsize::new(rows).expect("a tile has rows");
        Self { in_features, out_features, rows_per_task, arithmetic: Arithmetic::Float }
    }

    /// Weight rows of a task for so many tokens on a device: fewer than the config has where there would not be enough for
    /// its threads, more where tokens are many.
    pub(super) fn task_rows(&self, tokens: usize, device: &Device) -> usize {
        let share = self.out_features.div_ceil(THREAD_TASKS * device.threads()).next_multiple_of(ROW_TILE);
        let least = if tokens < MANY_TOKENS { 0 } else { PREFILL_TASK_ROWS };
        self.rows_per_task.get().max(least).min(share.max(ROW_TILE))
    }
}

/// `x` times the weight's transpose.
///
/// # Shapes
/// `x` `[tokens, in]`, `w` `[out, in]`; gives `[tokens, out]`.
pub fn linear(x: &Tensor, w: &Weight, config: &LinearConfig, device: &Device) -> Tensor {
    let w = w.matrix();
    assert_eq!(
        [w.rows(), w.cols()],
        [config.out_features, config.in_features],
        "the weight has the shape that its config was made for"
    );
    let integers = Integers::quantize(x, &w, config.arithmetic, device);
    let inputs = Inputs::new(x, integers.as_ref(), config.arithmetic.order());
    let mut out = Tensor::anything(x.rows(), w.rows());
    let cuts = Cuts::Every(config.task_rows(x.rows(), device));
    let parts = Queue::in_runs(Parts::new(out.as_mut(), Cuts::Whole, cuts), device.threads());
    device.for_each(&parts, |part| {
        inputs.matmul(&w.row_range(part.cols), part.out, device.kernels());
    });
    out
}

/// Adds a bias to every row.
///
/// # Shapes
/// `x` `[tokens, out]`, `bias` `[out]`.
pub fn add_bias(x: &mut Tensor, bias: Option<&Weight>, device: &Device) {
    let Some(bias) = bias else { return };
    let width = x.cols();
    device.for_each_row_chunk(x.values_mut(), width, |_, chunk| {
        for row in chunk.chunks_exact_mut(width) {
            device.kernels().add(row, bias.vector());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_tasks_where_there_are_rows() {
        // 671B's gate, latent projection, and down projection of an expert.
        for (rows, cols) in [(256, 7168), (576, 7168), (7168, 2048)] {
            for mode in [Mode::Prefill, Mode::Decode] {
                let config = LinearConfig::new(mode, cols, rows);
                for threads in [1, 2, 7, 24] {
                    let device = Device::single(threads).unwrap();
                    let task = config.task_rows(1, &device);
                    let most = rows.div_ceil(ROW_TILE); // a task is a tile at least
                    assert!(task.is_multiple_of(ROW_TILE) && task <= config.rows_per_task.get());
                    let many = config.task_rows(16, &device);
                    assert!(
                        many >= task.max(PREFILL_TASK_ROWS).min(rows / (THREAD_TASKS * threads)),
                        "many tokens, many rows"
                    );
                    // Tiles are whole, so that a task may have almost one more than its share.
                    let least = (THREAD_TASKS * threads).min(most) / 2;
                    assert!(
                        rows.div_ceil(task) >= least,
                        "{rows} rows by {task}, {threads} threads, {mode:?}"
                    );
                }
            }
        }
    }
}
