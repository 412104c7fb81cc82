//! DeepSeek-V3 written down once, to be read: the oracle that every fast module is held to.
//!
//! One rank, no cache, no kernels, no batching: every function takes a whole sequence from position 0, one row a
//! token, and computes what transformers 5.24 (`modeling_deepseek_v3.py`) computes in f32. Sums are made in f64 and
//! rounded once, so that what differs from here is the other side's rounding. Each function runs alone, given the
//! weights of its own part:
//!
//! ```no_run
//! # use dsv3_deepseek::{hf::HfConfig, reference::{self, Scope}};
//! # fn f(hf: &HfConfig, weights: &dyn reference::Weights, x: &dsv3_runtime::Tensor) -> Result<(), dsv3_runtime::Error> {
//! let attention = Scope::root(weights).enter("model.layers.0.self_attn");
//! let output = reference::mla(hf, &attention, x)?;
//! # Ok(()) }
//! ```
//!
//! Order of reading: building blocks, attention, experts, decoder block, whole model, multi-token prediction.

mod model;
mod rope;
#[cfg(test)]
mod tests;
mod weights;

pub use model::{BlockTrace, Model, MtpTrace, Trace, decoder_block, embedding, lm_head, mtp};
pub use rope::{RopeTables, inverse_frequencies, rope_tables, rotate};
pub use weights::{Scope, Weights};

use crate::hf::{HfConfig, LORA_NORM_EPS, MoeConfig};
use dsv3_runtime::{Error, Tensor};

// ---- Building blocks -------------------------------------------------------------------------------------------

/// The scalar product, summed in f64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "a scalar product takes vectors of one length");
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// `a + b`, element by element.
fn add(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()), "a sum takes tensors of one shape");
    let sums = a.values().iter().zip(b.values()).map(|(a, b)| a + b).collect();
    Tensor::from_vec(a.rows(), a.cols(), sums)
}

/// A linear map without bias, `x * weight^T`. Weights: `weight [out, in]`.
///
/// # Shapes
/// `x: [tokens, in]` to `[tokens, out]`
///
/// # Errors
/// If a weight is missing or misshapen, as all functions here.
pub fn linear(weights: &Scope<'_>, out: usize, x: &Tensor) -> Result<Tensor, Error> {
    let weight = weights.matrix("weight", out, x.cols())?;
    let mut y = Tensor::zeros(x.rows(), out);
    for token in 0..x.rows() {
        for (feature, value) in y.row_mut(token).iter_mut().enumerate() {
            *value = dot(weight.row(feature), x.row(token)) as f32;
        }
    }
    Ok(y)
}

/// A linear map with a bias where `bias` says so. Weights: `weight [out, in]`, `bias [out]`.
fn linear_with_bias(weights: &Scope<'_>, out: usize, bias: bool, x: &Tensor) -> Result<Tensor, Error> {
    let mut y = linear(weights, out, x)?;
    if bias {
        let bias = weights.vector("bias", out)?;
        for token in 0..y.rows() {
            y.row_mut(token).iter_mut().zip(&bias).for_each(|(value, bias)| *value += bias);
        }
    }
    Ok(y)
}

/// `x / sqrt(mean(x^2) + eps) * weight`, row by row. Weights: `weight [features]`.
///
/// # Shapes
/// `x: [tokens, features]` to the same
///
/// # Errors
/// As [`linear`].
pub fn rms_norm(weights: &Scope<'_>, eps: f32, x: &Tensor) -> Result<Tensor, Error> {
    let weight = weights.vector("weight", x.cols())?;
    let mut y = x.clone();
    for token in 0..x.rows() {
        let mean_square = dot(x.row(token), x.row(token)) / x.cols() as f64;
        let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
        for (value, &weight) in y.row_mut(token).iter_mut().zip(&weight) {
            *value = (f64::from(*value) * scale * f64::from(weight)) as f32;
        }
    }
    Ok(y)
}

/// `1 / (1 + e^-z)`
fn sigmoid(z: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(z)).exp())
}

/// The gated feed-forward network, `down(silu(gate(x)) * up(x))` with `silu(z) = z * sigmoid(z)`.
/// Weights: `gate_proj`, `up_proj` `[intermediate, hidden]`, `down_proj [hidden, intermediate]`.
///
/// # Shapes
/// `x: [tokens, hidden]` to the same
///
/// # Errors
/// As [`linear`].
pub fn mlp(weights: &Scope<'_>, intermediate_size: usize, x: &Tensor) -> Result<Tensor, Error> {
    let mut gated = linear(&weights.enter("gate_proj"), intermediate_size, x)?; // [tokens, intermediate]
    let up = linear(&weights.enter("up_proj"), intermediate_size, x)?; // [tokens, intermediate]
    for (gate, &up) in gated.values_mut().iter_mut().zip(up.values()) {
        *gate = (f64::from(*gate) * sigmoid(*gate) * f64::from(up)) as f32;
    }
    linear(&weights.enter("down_proj"), x.cols(), &gated)
}

// ---- Multi-head latent attention -------------------------------------------------------------------------------

/// Multi-head latent attention, expanded and causal (`DeepseekV3Attention`; arXiv 2412.19437, section 2.1.1).
///
/// Each token is compressed into a latent and one rotated key; from the latent every head expands its own key and
/// value. Weights: those of `self_attn`.
///
/// # Shapes
/// `x: [tokens, hidden]` to the same
///
/// # Errors
/// As [`linear`].
pub fn mla(hf: &HfConfig, weights: &Scope<'_>, x: &Tensor) -> Result<Tensor, Error> {
    let shape = &hf.attention;
    let (nope, latent_rank) = (shape.qk_nope_head_dim, shape.kv_lora_rank);
    let RopeTables { cos, sin } = rope_tables(hf, x.rows());

    let mut q = query(hf, weights, x)?; // [tokens, heads * (nope + rope)]
    for token in 0..x.rows() {
        for head in q.row_mut(token).chunks_exact_mut(shape.qk_head_dim()) {
            rotate(&mut head[nope..], cos.row(token), sin.row(token)); // the last features of a head carry the position
        }
    }

    let compressed =
        linear_with_bias(&weights.enter("kv_a_proj_with_mqa"), shape.latent_dim(), shape.bias, x)?;
    let mut latent = Tensor::zeros(x.rows(), latent_rank);
    let mut k_rope = Tensor::zeros(x.rows(), shape.qk_rope_head_dim); // one key for all heads
    for token in 0..x.rows() {
        let (left, right) = compressed.row(token).split_at(latent_rank);
        latent.row_mut(token).copy_from_slice(left);
        k_rope.row_mut(token).copy_from_slice(right);
        rotate(k_rope.row_mut(token), cos.row(token), sin.row(token));
    }
    let latent = rms_norm(&weights.enter("kv_a_layernorm"), LORA_NORM_EPS, &latent)?; // not the rotated key
    let kv = linear(&weights.enter("kv_b_proj"), shape.kv_dim(), &latent)?; // [tokens, heads * (nope + v)]

    let attended = attend(hf, &q, &k_rope, &kv); // [tokens, heads * v]
    linear_with_bias(&weights.enter("o_proj"), x.cols(), shape.bias, &attended)
}

/// The queries, through the low-rank pair or through one full projection: `[tokens, heads * (nope + rope)]`.
fn query(hf: &HfConfig, weights: &Scope<'_>, x: &Tensor) -> Result<Tensor, Error> {
    let shape = &hf.attention;
    let Some(rank) = shape.q_lora_rank else { return linear(&weights.enter("q_proj"), shape.q_dim(), x) };
    let compressed = linear_with_bias(&weights.enter("q_a_proj"), rank, shape.bias, x)?;
    let normed = rms_norm(&weights.enter("q_a_layernorm"), LORA_NORM_EPS, &compressed)?;
    linear(&weights.enter("q_b_proj"), shape.q_dim(), &normed)
}

/// Softmax attention of each token over itself and those before it.
///
/// `q: [tokens, heads * (nope + rope)]`, `k_rope: [tokens, rope]`, `kv: [tokens, heads * (nope + v)]` to
/// `[tokens, heads * v]`.
fn attend(hf: &HfConfig, q: &Tensor, k_rope: &Tensor, kv: &Tensor) -> Tensor {
    let shape = &hf.attention;
    let (nope, v_dim) = (shape.qk_nope_head_dim, shape.v_head_dim);
    let scale = f64::from(hf.softmax_scale());
    let mut output = Tensor::zeros(q.rows(), shape.o_dim());
    for token in 0..q.rows() {
        for head in 0..shape.heads {
            let (q_nope, q_rope) =
                q.row(token)[head * shape.qk_head_dim()..][..shape.qk_head_dim()].split_at(nope);
            let key_value =
                |position: usize| kv.row(position)[head * (nope + v_dim)..][..nope + v_dim].split_at(nope);

            let scores = (0..=token).map(|position| {
                let (k_nope, _) = key_value(position);
                scale * (dot(q_nope, k_nope) + dot(q_rope, k_rope.row(position)))
            });
            let probabilities = softmax(scores.collect());

            let mut sums = vec![0.0f64; v_dim];
            for (position, probability) in probabilities.into_iter().enumerate() {
                let (_, value) = key_value(position);
                sums.iter_mut().zip(value).for_each(|(sum, &value)| *sum += probability * f64::from(value));
            }
            let place = &mut output.row_mut(token)[head * v_dim..][..v_dim];
            place.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum as f32);
        }
    }
    output
}

/// `e^score / sum of e^score`, shifted by the largest so that nothing overflows.
fn softmax(scores: Vec<f64>) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = scores.into_iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|exponential| exponential / sum).collect()
}

// ---- Mixture of experts ----------------------------------------------------------------------------------------

/// The experts that one token visits, and the weight of each, in ascending order of expert.
pub type Route = Vec<(usize, f32)>;

/// What a mixture of experts computes.
#[derive(Clone, Debug)]
pub struct MoeTrace {
    /// The gate's decision, one entry a token.
    pub routes: Vec<Route>,
    /// The routed experts' sum, `[tokens, hidden]`.
    pub experts: Tensor,
    /// The shared experts' output, `[tokens, hidden]`; `None` where there are none.
    pub shared_experts: Option<Tensor>,
    /// The sum of both, `[tokens, hidden]`.
    pub output: Tensor,
}

/// Chooses the experts of each token (`DeepseekV3TopkRouter`; "noaux_tc"). Weights: those of `mlp.gate`.
///
/// The correction bias takes part in choosing and never in the weights. A group is as good as its two best experts;
/// experts of the groups that are not kept get -inf, not 0, which a biased score may lie below. Where scores are equal
/// the lower number wins.
///
/// # Shapes
/// `x: [tokens, hidden]` to one route a token, each of `experts_per_token` experts
///
/// # Errors
/// As [`linear`].
pub fn gate(moe: &MoeConfig, weights: &Scope<'_>, x: &Tensor) -> Result<Vec<Route>, Error> {
    let logits = linear(weights, moe.routed_experts, x)?; // [tokens, experts]
    let bias = weights.vector("e_score_correction_bias", moe.routed_experts)?;
    let route = |token: usize| {
        let scores: Vec<f32> = logits.row(token).iter().map(|&logit| sigmoid(logit) as f32).collect();
        let mut biased: Vec<f32> = scores.iter().zip(&bias).map(|(score, bias)| score + bias).collect();

        let group_scores: Vec<f32> = biased
            .chunks_exact(moe.experts_per_group())
            .map(|group| best(group, 2).into_iter().map(|expert| group[expert]).sum())
            .collect();
        let kept = best(&group_scores, moe.topk_groups);
        for (group, scores) in biased.chunks_exact_mut(moe.experts_per_group()).enumerate() {
            if !kept.contains(&group) {
                scores.fill(f32::NEG_INFINITY);
            }
        }

        let mut chosen = best(&biased, moe.experts_per_token);
        chosen.sort_unstable();
        let sum: f64 = chosen.iter().map(|&expert| f64::from(scores[expert])).sum();
        let divisor = if moe.norm_topk_prob { sum + 1e-20 } else { 1.0 };
        let scaling = f64::from(moe.routed_scaling_factor);
        chosen
            .into_iter()
            .map(|expert| (expert, (f64::from(scores[expert]) / divisor * scaling) as f32))
            .collect()
    };
    Ok((0..x.rows()).map(route).collect())
}

/// The places of the `count` largest values, the largest first; of equal ones the first.
fn best(values: &[f32], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|&a, &b| values[b].total_cmp(&values[a])); // stable
    places.truncate(count);
    places
}

/// The weighted sum of each token's experts. Weights: those of `mlp.experts`, one MLP per number.
///
/// # Shapes
/// `x: [tokens, hidden]`, `routes`: one a token, to `[tokens, hidden]`
///
/// # Errors
/// As [`linear`].
pub fn experts(moe: &MoeConfig, weights: &Scope<'_>, x: &Tensor, routes: &[Route]) -> Result<Tensor, Error> {
    assert_eq!(routes.len(), x.rows(), "one route a token");
    let mut output = Tensor::zeros(x.rows(), x.cols());
    for expert in 0..moe.routed_experts {
        let weight =
            |route: &Route| route.iter().find(|(chosen, _)| *chosen == expert).map(|&(_, weight)| weight);
        let visitors: Vec<(usize, f32)> =
            routes.iter().enumerate().filter_map(|(token, route)| Some((token, weight(route)?))).collect();
        if visitors.is_empty() {
            continue;
        }
        let rows = visitors.iter().flat_map(|&(token, _)| x.row(token)).copied().collect();
        let rows = Tensor::from_vec(visitors.len(), x.cols(), rows);
        let computed = mlp(&weights.enter(expert), moe.intermediate_size, &rows)?; // [visitors, hidden]
        for (row, &(token, weight)) in visitors.iter().enumerate() {
            let sums = output.row_mut(token).iter_mut();
            sums.zip(computed.row(row)).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    Ok(output)
}

/// All shared experts, which are one MLP side by side; `None` where there are none. Weights: those of
/// `mlp.shared_experts`.
///
/// # Shapes
/// `x: [tokens, hidden]` to the same
///
/// # Errors
/// As [`linear`].
pub fn shared_experts(moe: &MoeConfig, weights: &Scope<'_>, x: &Tensor) -> Result<Option<Tensor>, Error> {
    match moe.shared_intermediate_size() {
        0 => Ok(None),
        intermediate_size => mlp(weights, intermediate_size, x).map(Some),
    }
}

/// Gate, routed experts and shared experts (`DeepseekV3MoE`). Weights: those of `mlp`.
///
/// # Shapes
/// `x: [tokens, hidden]` to the same
///
/// # Errors
/// As [`linear`].
pub fn moe(moe: &MoeConfig, weights: &Scope<'_>, x: &Tensor) -> Result<MoeTrace, Error> {
    let routes = gate(moe, &weights.enter("gate"), x)?;
    let experts = experts(moe, &weights.enter("experts"), x, &routes)?;
    let shared_experts = shared_experts(moe, &weights.enter("shared_experts"), x)?;
    let output = shared_experts.as_ref().map_or_else(|| experts.clone(), |shared| add(&experts, shared));
    Ok(MoeTrace { routes, experts, shared_experts, output })
}
