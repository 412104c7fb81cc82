//! The routed experts: each an MLP on the tokens that chose it.

use super::arithmetic::{Inputs, Integers};
use super::{LinearConfig, MulConfig, Routing};
use crate::{Device, Tensor, Weight, buffer::Buffer};
use dsv3_kernels::{Cuts, Kernels, LANES, Lanes, MatrixMut, MatrixRef, MatrixView, Part, Parts, Queue};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Config of [`experts`]: the projections of one expert, all experts are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsConfig {
    /// The gate projection.
    pub w1: LinearConfig,
    /// The down projection.
    pub w2: LinearConfig,
    /// The up projection.
    pub w3: LinearConfig,
    /// Between them.
    pub mul_activation: MulConfig,
}

/// The weights of one expert.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWeights<'a> {
    /// `[intermediate, hidden]`.
    pub w1: &'a Weight,
    /// `[hidden, intermediate]`.
    pub w2: &'a Weight,
    /// `[intermediate, hidden]`.
    pub w3: &'a Weight,
}

/// The expert that every token goes to, beside its routed ones.
#[derive(Clone, Copy, Debug)]
pub struct SharedExpert<'a> {
    /// Its weights.
    pub weights: ExpertWeights<'a>,
    /// Its projections.
    pub config: &'a ExpertsConfig,
}

/// The sum over each token's experts of `weight * w2(silu(w1 x) * w3 x)`, and the shared expert, if there is one.
///
/// Two parallel sections: the first over all experts' intermediate rows, the second over hidden rows, where each part
/// adds all experts' contributions in order of expert, the shared one last, so that the sum is the same for any number
/// of threads.
///
/// # Shapes
/// `x` `[tokens, hidden]`; gives `[tokens, hidden]`.
pub fn experts<'a>(
    x: &Tensor,
    routing: &Routing,
    weights: impl Fn(usize) -> ExpertWeights<'a> + Sync,
    shared: Option<SharedExpert<'_>>,
    config: &ExpertsConfig,
    device: &Device,
) -> Tensor {
    let mixture = Mixture { x, dispatch: &Dispatch::new(routing), weights, shared, config, device };
    let (routed, common) = mixture.expand();
    mixture.contract(&routed, &common)
}

/// Which rows each chosen expert computes. Rows lie by expert, those of an expert by token.
struct Dispatch {
    /// The chosen experts, ascending.
    experts: Buffer<usize>,
    /// By chosen expert, the row after its last.
    ends: Buffer<usize>,
    /// By row, the token and the expert's weight for it.
    rows: Buffer<(usize, f32)>,
}

impl Dispatch {
    fn new(routing: &Routing) -> Self {
        let choices = || (0..routing.tokens()).flat_map(|token| routing.held(token).map(move |c| (token, c)));
        // What is taken does not depend on the choices, so that no step takes more than the one before.
        let mut next = Buffer::filled(routing.experts(), 0);
        for (_, &(expert, _)) in choices() {
            next[expert] += 1;
        }
        let mut experts = Buffer::with_capacity(routing.experts());
        let mut ends = Buffer::with_capacity(routing.experts());
        let mut end = 0;
        for (expert, next) in next.iter_mut().enumerate().filter(|(_, rows)| **rows > 0) {
            let start = end;
            end += *next;
            *next = start;
            experts.push(expert);
            ends.push(end);
        }
        let mut rows = Buffer::filled(end, (0, 0.0));
        for (token, &(expert, weight)) in choices() {
            rows[next[expert]] = (token, weight);
            next[expert] += 1;
        }
        Self { experts, ends, rows }
    }

    /// The rows of the chosen expert at this place.
    fn range(&self, place: usize) -> Range<usize> {
        place.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[place]
    }

    /// The most rows that an expert has.
    fn most(&self) -> usize {
        (0..self.experts.len()).map(|place| self.range(place).len()).max().unwrap_or(0)
    }
}

/// What both sections work on.
struct Mixture<'a, F> {
    x: &'a Tensor,
    dispatch: &'a Dispatch,
    weights: F,
    shared: Option<SharedExpert<'a>>,
    config: &'a ExpertsConfig,
    device: &'a Device,
}

impl<'w, F: Fn(usize) -> ExpertWeights<'w> + Sync> Mixture<'_, F> {
    /// The weights of the chosen expert at this place, if there is one.
    fn expert(&self, place: usize) -> Option<ExpertWeights<'w>> {
        self.dispatch.experts.get(place).map(|&expert| (self.weights)(expert))
    }

    /// `silu(w1 x) * w3 x` of the routed experts' rows, and of the shared expert's.
    ///
    /// # Shapes
    /// Gives `[rows, intermediate]` and `[tokens, shared intermediate]`, `[0, 0]` without a shared expert.
    fn expand(&self) -> (Tensor, Tensor) {
        let &Self { x, dispatch, shared, config, device, .. } = self;
        let order = config.w1.arithmetic.order();
        let integers = self.gather_integers();
        // Where there are integers, f32 is for experts of a few rows only, which gather them for themselves.
        let gathered = (x.rows() > 1 && integers.is_none()).then(|| self.gather());
        let common_integers = shared.and_then(|shared| {
            Integers::quantize(x, &shared.weights.w1.matrix(), shared.config.w1.arithmetic, device)
        });
        let mut routed = Tensor::anything(dispatch.rows.len(), config.w1.out_features);
        let common = shared.map(|shared| Tensor::anything(x.rows(), shared.config.w1.out_features));
        let mut common = common.unwrap_or_else(|| Tensor::zeros(0, 0));
        let cut = |config: &ExpertsConfig| Cuts::Every(config.w1.rows_per_task.get());
        let common_cut = shared.map_or(Cuts::Whole, |shared| cut(shared.config));
        let common_parts =
            Queue::in_runs(Parts::new(common.as_mut(), Cuts::Whole, common_cut), device.threads());
        let rows = Cuts::Ends(&dispatch.ends);
        let routed_parts = Queue::in_runs(Parts::new(routed.as_mut(), rows, cut(config)), device.threads());
        let up = self.up_values();
        let few = integers.as_ref().map_or(0, |integers| self.few_rows(integers) * x.cols());
        let pieces = common_parts.count() + routed_parts.count();
        device.section_with(pieces, up.div_ceil(LANES) + few.div_ceil(LANES), |memory| {
            let (up, few) = memory.split_at_mut(up.div_ceil(LANES));
            let (up, few) = (Lanes::flatten_mut(up), Lanes::flatten_mut(few));
            if let Some(shared) = shared {
                let inputs = Inputs::new(x, common_integers.as_ref(), order);
                for part in common_parts.drain() {
                    gate_up(&shared.weights, None, inputs, part, up, device.kernels());
                }
            }
            for part in routed_parts.drain() {
                let weights = self.expert(part.row_piece).expect("a piece of rows is an expert's");
                let next = self.expert(part.row_piece + 1).map(|next| next.w1.matrix());
                let rows = part.rows.clone();
                let inputs = match (&gathered, &integers) {
                    // One token is every row's.
                    _ if x.rows() == 1 => Inputs::new(x, integers.as_ref(), order),
                    (Some(gathered), _) => Inputs::new(gathered, None, order).row_range(rows),
                    (None, Some(integers)) if self.takes(integers, part.row_piece, rows.len()) => {
                        Inputs::integers(integers, order).row_range(rows)
                    }
                    (None, _) => {
                        let few = &mut few[..rows.len() * x.cols()];
                        self.gather_into(rows.start, few);
                        Inputs::floats(MatrixRef::new(few, rows.len(), x.cols()), order)
                    }
                };
                gate_up(&weights, next, inputs, part, up, device.kernels());
            }
        });
        (routed, common)
    }

    /// Values of `w3 x` that a part of [`expand`](Self::expand) has at most, whatever is chosen: a token goes to an
    /// expert once.
    fn up_values(&self) -> usize {
        let cols = |config: &ExpertsConfig| config.w1.rows_per_task.get().min(config.w1.out_features);
        self.x.rows() * self.shared.map_or(0, |shared| cols(shared.config)).max(cols(self.config))
    }

    /// Rows that a part of [`expand`](Self::expand) gathers for itself at most, because its expert does not take
    /// the integers: those of the chosen ones, and those that the first one's weights would not take them for.
    fn few_rows(&self, integers: &Integers) -> usize {
        let &Self { x, dispatch, .. } = self;
        if x.rows() == 1 {
            return 0;
        }
        let chosen = (0..dispatch.experts.len()).map(|place| (place, dispatch.range(place).len()));
        let whatever_is_chosen = (1..=x.rows()).map(|rows| (0, rows));
        let gathers = |&(place, rows): &(usize, usize)| !self.takes(integers, place, rows);
        chosen.chain(whatever_is_chosen).filter(gathers).map(|(_, rows)| rows).max().unwrap_or(0)
    }

    /// Whether both products of the chosen expert at this place take the integers, for so many rows.
    fn takes(&self, integers: &Integers, place: usize, rows: usize) -> bool {
        let ExpertWeights { w1, w3, .. } = self.expert(place).expect("a place of a chosen expert");
        let (order, kernels) = (self.config.w1.arithmetic.order(), self.device.kernels());
        [w1, w3].iter().all(|w| Inputs::integers(integers, order).takes_integers(&w.matrix(), rows, kernels))
    }

    /// Each row's token.
    fn gather(&self) -> Tensor {
        let mut gathered = Tensor::anything(self.dispatch.rows.len(), self.x.cols());
        self.device.for_each_row_chunk(gathered.values_mut(), self.x.cols(), |first, chunk| {
            self.gather_into(first, chunk);
        });
        gathered
    }

    /// The tokens of the rows from `first` on, as many as `out` `[rows, hidden]` has room for.
    fn gather_into(&self, first: usize, out: &mut [f32]) {
        for (out, &(token, _)) in out.chunks_exact_mut(self.x.cols()).zip(&self.dispatch.rows[first..]) {
            out.copy_from_slice(self.x.row(token));
        }
    }

    /// Each row's token in integers, where an expert with the most rows takes them; the one token, too.
    fn gather_integers(&self) -> Option<Integers> {
        let &Self { x, dispatch, config, device, .. } = self;
        let (arithmetic, most) = (config.w1.arithmetic, dispatch.most());
        let ExpertWeights { w1, w3, .. } = self.expert(0)?;
        if !Integers::pay(&w1.matrix(), most, arithmetic, device.kernels()) {
            return None;
        }
        // Larger groups serve both.
        let formats = [w3, w1].map(|w| w.matrix().format());
        let format = formats.into_iter().max_by_key(|format| format.group_cols()).expect("two formats");
        let all = Integers::of(x, format, device);
        if x.rows() == 1 {
            return Some(all);
        }
        let token = |row: usize| dispatch.rows[row].0;
        Some(all.gather(dispatch.rows.len(), token, device))
    }

    /// What the routed experts' down projections take.
    fn routed_integers(&self, routed: &Tensor) -> Option<Integers> {
        let &Self { dispatch, config, device, .. } = self;
        let w2 = self.expert(0)?.w2.matrix();
        let pay = Integers::pay(&w2, dispatch.most(), config.w2.arithmetic, device.kernels());
        pay.then(|| Integers::of(routed, w2.format(), device))
    }

    /// The weighted sum of all experts' down projections.
    fn contract(&self, routed: &Tensor, common: &Tensor) -> Tensor {
        let &Self { x, dispatch, shared, config, device, .. } = self;
        let kernels = device.kernels();
        let integers = self.routed_integers(routed);
        let order = config.w2.arithmetic.order();
        let routed = Inputs::new(routed, integers.as_ref(), order);
        let common_integers = shared.and_then(|shared| {
            Integers::quantize(common, &shared.weights.w2.matrix(), shared.config.w2.arithmetic, device)
        });
        let common = Inputs::new(common, common_integers.as_ref(), order);
        let mut out = Tensor::anything(x.rows(), config.w2.out_features);
        let cols = config.w2.task_rows(x.rows(), device).min(config.w2.out_features);
        let parts = Queue::new(Parts::new(out.as_mut(), Cuts::Whole, Cuts::Every(cols)));
        let lines = (x.rows() * cols).div_ceil(LANES);
        device.for_each_with(&parts, lines, |mut part, memory| {
            part.out.fill(0.0);
            let memory = Lanes::flatten_mut(memory);
            let shared_rows = shared.map(|shared| down_rows(shared.weights, part.cols.clone()));
            let mut next = self.expert(0).map(|next| down_rows(next, part.cols.clone()));
            for place in 0..dispatch.experts.len() {
                let rows = dispatch.range(place);
                let mut down = matrix(memory, rows.len(), part.cols.len());
                let w2 = next.expect("a chosen expert");
                next = self.expert(place + 1).map(|next| down_rows(next, part.cols.clone()));
                let w2 = next.or(shared_rows).map_or(w2, |next| w2.followed_by(&next));
                routed.row_range(rows.clone()).matmul(&w2, down.reborrow(), kernels);
                for (row, &(token, weight)) in dispatch.rows[rows].iter().enumerate() {
                    kernels.add_scaled(part.out.row_mut(token), weight, down.row(row));
                }
            }
            if let Some(shared_rows) = shared_rows {
                let mut down = matrix(memory, x.rows(), part.cols.len());
                common.matmul(&shared_rows, down.reborrow(), kernels);
                for token in 0..x.rows() {
                    kernels.add(part.out.row_mut(token), down.row(token));
                }
            }
        });
        out
    }
}

/// Rows of an expert's down projection.
fn down_rows(weights: ExpertWeights<'_>, rows: Range<usize>) -> MatrixView<'_> {
    weights.w2.matrix().row_range(rows)
}

/// `silu(w1 x) * w3 x`, for some rows of both weights: the part's columns. `memory` holds as many values; `next` is what is
/// read after the last part.
fn gate_up(
    weights: &ExpertWeights<'_>,
    next: Option<MatrixView<'_>>,
    x: Inputs<'_>,
    part: Part<'_>,
    memory: &mut [f32],
    kernels: &Kernels,
) {
    let mut gate = part.out;
    let mut up = matrix(memory, gate.rows(), gate.cols());
    let (w1, w3) = (weights.w1.matrix(), weights.w3.matrix());
    let (gate_rows, up_rows) = (w1.row_range(part.cols.clone()), w3.row_range(part.cols.clone()));
    let behind = w1.row_range(part.cols.end..w1.rows());
    let next = if behind.rows() > 0 { Some(behind) } else { next };
    x.matmul(&gate_rows.followed_by(&up_rows), gate.reborrow(), kernels);
    x.matmul(&next.map_or(up_rows, |next| up_rows.followed_by(&next)), up.reborrow(), kernels);
    for token in 0..gate.rows() {
        kernels.silu_mul(gate.row_mut(token), up.row(token));
    }
}

/// A matrix of anything at the start of some memory.
fn matrix(memory: &mut [f32], rows: usize, cols: usize) -> MatrixMut<'_> {
    MatrixMut::new(&mut memory[..rows * cols], rows, cols)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Mode,
        ops::{Activation, Arithmetic, GateConfig, grouped_top_k},
    };
    use dsv3_kernels::Format;

    /// Everything to expert 0 of two.
    fn routing(tokens: usize, device: &Device) -> Routing {
        let config = GateConfig {
            experts: 2,
            experts_per_token: 1,
            groups: 1,
            topk_groups: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
        };
        let logits = Tensor::from_vec(tokens, 2, [1.0, 0.0].repeat(tokens));
        grouped_top_k(logits, &Weight::Vector([0.0; 2].as_slice().into()), &config, device)
    }

    #[test]
    fn the_projections_of_an_expert_may_lie_in_different_formats() {
        const SIZE: usize = 64;
        let device = Device::single(2).unwrap();
        // Ones, in q8_0 with a scale of 1/64, so that products of 16 bits lose nothing, and in f32.
        let block: Vec<u8> = [0x00, 0x24].into_iter().chain([64; 32]).collect();
        let blocks = block.repeat(SIZE * SIZE / 32);
        let quantised = &Weight::in_memory(Format::Q8_0, [SIZE; 2], blocks);
        let float = &Weight::in_memory(Format::F32, [SIZE; 2], 1.0_f32.to_le_bytes().repeat(SIZE * SIZE));
        // Ones of FP8: activations of q8_0's groups are none for it, but its own are for q8_0.
        let fp8 = &Weight::in_memory(Format::Fp8, [SIZE; 2], vec![0x38; SIZE * SIZE]);
        let linear =
            LinearConfig { arithmetic: Arithmetic::Integer, ..LinearConfig::new(Mode::Prefill, SIZE, SIZE) };
        let mul_activation = MulConfig { input_tensor_a_activation: Activation::Silu };
        let config = ExpertsConfig { w1: linear, w2: linear, w3: linear, mul_activation };
        // Sums of 64 times 1/64, which silu makes 0.731 of, and 64 of these.
        let expected = 64.0 / (1.0 + (-1.0_f32).exp());
        for tokens in [1, 5, 20] {
            let x = Tensor::from_vec(tokens, SIZE, vec![1.0 / 64.0; tokens * SIZE]);
            let projections = [
                (quantised, float, float),
                (float, quantised, quantised),
                (quantised, fp8, fp8),
                (fp8, quantised, float),
            ];
            for (w1, w3, w2) in projections {
                let weights = |_| ExpertWeights { w1, w2, w3 };
                let out = experts(&x, &routing(tokens, &device), weights, None, &config, &device);
                // All activations are their block's largest, so integers of them are exact but for the rounding of a scale.
                let bound = expected * 256.0 * f32::EPSILON;
                assert!(
                    out.values().iter().all(|value| (value - expected).abs() <= bound),
                    "{tokens} tokens"
                );
            }
        }
    }
}
