//! The routed experts: each an MLP on the tokens that chose it.

use super::{Activation, LinearConfig, MulConfig, Routing};
use crate::{Device, Tensor, device::column_tasks};
use dsv3_kernels::{MatrixRef, MatrixView};
use serde::{Deserialize, Serialize};

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
pub struct ExpertMatrices<'a> {
    /// `[intermediate, hidden]`.
    pub w1: MatrixView<'a>,
    /// `[hidden, intermediate]`.
    pub w2: MatrixView<'a>,
    /// `[intermediate, hidden]`.
    pub w3: MatrixView<'a>,
}

/// The tokens of one expert.
struct Group<'a> {
    weights: ExpertMatrices<'a>,
    /// Tokens and the expert's weight for each.
    tokens: Vec<(usize, f32)>,
    /// `[tokens of the expert, hidden]`.
    x: Tensor,
    /// `[tokens of the expert, intermediate]`.
    hidden: Tensor,
}

/// The sum over each token's experts of `weight * w2(silu(w1 x) * w3 x)`.
///
/// Two parallel sections: the first over all experts' intermediate rows, the second over hidden rows, where each task
/// adds all experts' contributions in order of expert, so that the sum is the same for any number of threads.
///
/// # Shapes
/// `x` `[tokens, hidden]`; gives `[tokens, hidden]`.
pub fn experts<'a>(
    x: &Tensor,
    routing: &Routing,
    weights: impl Fn(usize) -> ExpertMatrices<'a>,
    config: &ExpertsConfig,
    device: &Device,
) -> Tensor {
    let mut groups = group_by_expert(x, routing, weights, config, device);
    expand(&mut groups, config, device);
    let mut out = Tensor::zeros(x.rows(), config.w2.out_features);
    let tasks = column_tasks(out.as_mut(), config.w2.rows_per_task.get());
    let most = groups.iter().map(|group| group.tokens.len()).max().unwrap_or(0);
    device.for_each(tasks, |(row, mut out)| {
        let width = out.cols();
        let mut down = Tensor::zeros(most, width);
        for group in &groups {
            let (mut down, _) = down.as_mut().split_rows_at(group.tokens.len());
            let w2 = group.weights.w2.row_range(row..row + width);
            device.kernels().matmul(&w2, group.hidden.as_ref(), down.reborrow());
            for (index, &(token, weight)) in group.tokens.iter().enumerate() {
                device.kernels().add_scaled(out.row_mut(token), weight, down.row(index));
            }
        }
    });
    out
}

/// `silu(w1 x) * w3 x` of every expert's tokens.
fn expand(groups: &mut [Group<'_>], config: &ExpertsConfig, device: &Device) {
    let Activation::Silu = config.mul_activation.input_tensor_a_activation;
    let kernels = device.kernels();
    let tasks = groups
        .iter_mut()
        .flat_map(|Group { weights, x, hidden, .. }| {
            let (weights, x): (_, MatrixRef<'_>) = (*weights, x.as_ref());
            column_tasks(hidden.as_mut(), config.w1.rows_per_task.get())
                .into_iter()
                .map(move |(row, out)| (weights, x, row, out))
        })
        .collect();
    device.for_each(tasks, |(weights, x, row, mut gate)| {
        let rows = row..row + gate.cols();
        let mut up = Tensor::zeros(gate.rows(), gate.cols());
        kernels.matmul_add(&weights.w1.row_range(rows.clone()), x, gate.reborrow());
        kernels.matmul_add(&weights.w3.row_range(rows), x, up.as_mut());
        for token in 0..gate.rows() {
            kernels.silu_mul(gate.row_mut(token), up.row(token));
        }
    });
}

/// Gathers each chosen expert's tokens, in order of expert and token.
fn group_by_expert<'a>(
    x: &Tensor,
    routing: &Routing,
    weights: impl Fn(usize) -> ExpertMatrices<'a>,
    config: &ExpertsConfig,
    device: &Device,
) -> Vec<Group<'a>> {
    let mut chosen: Vec<(usize, usize, f32)> = (0..routing.tokens())
        .flat_map(|token| routing.token(token).iter().map(move |&(expert, weight)| (expert, token, weight)))
        .collect();
    // Stable: the tokens of an expert stay in order.
    chosen.sort_by_key(|&(expert, ..)| expert);
    let mut groups: Vec<_> = chosen
        .chunk_by(|a, b| a.0 == b.0)
        .map(|group| Group {
            weights: weights(group[0].0),
            tokens: group.iter().map(|&(_, token, weight)| (token, weight)).collect(),
            x: Tensor::zeros(group.len(), x.cols()),
            hidden: Tensor::zeros(group.len(), config.w1.out_features),
        })
        .collect();
    device.for_each(groups.iter_mut().collect(), |group: &mut Group<'_>| {
        for (row, &(token, _)) in group.tokens.iter().enumerate() {
            group.x.row_mut(row).copy_from_slice(x.row(token));
        }
    });
    groups
}
