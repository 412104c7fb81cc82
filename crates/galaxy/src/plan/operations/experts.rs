//! The operations of the mixture of experts.

use super::{
    attention_prefill::same_parts,
    chain::{Chain, Tensor, all_of},
    feed_forward,
};
use crate::plan::{
    PlanError,
    modules::{
        experts::ExpertsConfig,
        moe::MoeConfig,
        moe_block::{MoeBlockConfig, Routed},
        moe_gate::{MoeGateConfig, SIDE},
        moe_optimized::MoeOptimizedConfig,
    },
    operators::SliceConfig,
};

/// The MLP part of a block with experts, from a column's part of the normed rows to its part of the residual stream.
pub(super) fn block(chain: &mut Chain, config: &MoeBlockConfig, x: &Tensor) -> Result<Tensor, PlanError> {
    let x = chain.step("revert_tp", &config.revert_tp, &[x]).put()?;
    match &config.moe {
        Routed::Dispatched(moe) => {
            let y = chain.within("moe", |chain| routed(chain, moe, &x))?;
            let shared = shared(chain, config, &x)?;
            add(chain, config, &y, &shared)
        }
        Routed::Optimized(moe) => optimized(chain, config, moe, &x),
    }
}

fn shared(chain: &mut Chain, config: &MoeBlockConfig, x: &Tensor) -> Result<Tensor, PlanError> {
    let x = chain.step("shared_expert_input_reshard", &config.shared_expert_input_reshard, &[x]).put()?;
    let y = chain.within("shared_expert", |chain| feed_forward::mlp(chain, &config.shared_expert, &x))?;
    chain.step("shared_expert_reshard", &config.shared_expert_reshard, &[&y]).put()
}

fn add(
    chain: &mut Chain,
    config: &MoeBlockConfig,
    routed: &Tensor,
    shared: &Tensor,
) -> Result<Tensor, PlanError> {
    let (Some(add), Some(scatter)) = (&config.add_shared_expert, &config.reduce_scatter) else {
        unreachable!("only fused operators do the sums")
    };
    let y = chain.step("add_shared_expert", add, &[routed, shared]).put()?;
    chain.step("reduce_scatter", scatter, &[&y]).put()
}

/// The routed experts on all tokens of a device: a part of the sum over the columns.
fn routed(chain: &mut Chain, config: &MoeConfig, x: &Tensor) -> Result<Tensor, PlanError> {
    let (weights, indices) = chain.within("moe_gate", |chain| gate(chain, &config.moe_gate, x))?;
    let (tokens, at_a_time) = (x.shape()[2], config.dispatch_tokens);
    if tokens == at_a_time {
        return dispatched(chain, config, x, &weights, &indices);
    }
    let of_part = |chain: &mut Chain, from: u32, to: u32| -> Result<Tensor, PlanError> {
        let mut part = |name: &str, x: &Tensor| {
            let width = x.shape()[3];
            chain.slice(name, &config.slice, x, [&[0, 0, from, 0], &[1, 1, to, width]])
        };
        let (x, weights, indices) =
            (part("slice", x)?, part("weights_slice", &weights)?, part("indices_slice", &indices)?);
        dispatched(chain, config, &x, &weights, &indices)
    };
    let parts = tokens / at_a_time;
    let whole = of_part(chain, 0, at_a_time)?;
    let rest = parts * at_a_time;
    let rest =
        (rest < tokens).then(|| chain.within("rest", |chain| of_part(chain, rest, tokens))).transpose()?;
    let all: Vec<&Tensor> = std::iter::repeat_n(&whole, parts as usize).chain(&rest).collect();
    let note = format!("{parts} whole parts, which are as the one in this list");
    chain.step("concat", &config.concat, &all).note(note).put()
}

/// The weights and numbers of each token's experts, by token.
fn gate(chain: &mut Chain, config: &MoeGateConfig, x: &Tensor) -> Result<(Tensor, Tensor), PlanError> {
    let logits = chain.step("gate_proj", &config.gate_proj, &[x]).put()?;
    let (tokens, at_a_time, experts) = (x.shape()[2], config.tokens, logits.shape()[3]);
    let parts = tokens / at_a_time;
    let logits = if parts > 1 {
        let slice = SliceConfig { memory_config: logits.spec.memory_config.clone() };
        chain.slice("slice", &slice, &logits, [&[0, 0, 0, 0], &[1, 1, at_a_time, experts]])?
    } else {
        logits
    };
    let square = chain.reshape("gate_square", "reshape", &logits, &[at_a_time, SIDE, SIDE])?;
    let square = chain.step("gate_reshard", &config.gate_reshard, &[&square]).put()?;
    let buffers =
        [&config.input_indices, &config.output, &config.output_indices].map(|spec| Tensor::new(spec.clone()));
    let inputs = [&square, &buffers[0], &buffers[1], &buffers[2]];
    let bias = Tensor::weight(&config.add_score_correction_bias.input_tensor_b);
    let face = [&[0, 0, 0][..], &[at_a_time, SIDE, SIDE]];
    let bias = chain.slice("bias_slice", &config.bias_slice, &bias, face)?;
    let chosen = chain.step("gate", &config.gate, &inputs).weight(&bias).put_all()?;
    let [weights, indices] = &chosen[..] else { unreachable!("the gate leaves two tensors") };
    let mut row = |name: &str, x: &Tensor| -> Result<Tensor, PlanError> {
        let x = chain.step(&format!("{name}_reshard"), &config.output_reshard, &[x]).put()?;
        let part = [&[0, 0, 0][..], &[at_a_time, 1, CHOSEN]];
        let x = chain.slice(&format!("{name}_slice"), &config.output_slice, &x, part)?;
        let x = chain.reshape(&format!("{name}_by_token"), "reshape", &x, &[1, 1, at_a_time, CHOSEN])?;
        if parts == 1 {
            return Ok(x);
        }
        let all = vec![&x; parts as usize];
        let place = serde_json::json!(x.spec.memory_config);
        let step = chain
            .plain(&format!("{name}_concat"), "concat", &all)
            .with("dim", 2)
            .with("memory_config", place);
        step.note(same_parts(parts)).put()
    };
    Ok((row("weights", weights)?, row("indices", indices)?))
}

/// Experts of a token: what the fused gate chooses.
const CHOSEN: u32 = 8;

/// To the experts along the rows of the mesh, through every expert there, and back.
fn dispatched(
    chain: &mut Chain,
    config: &MoeConfig,
    x: &Tensor,
    weights: &Tensor,
    indices: &Tensor,
) -> Result<Tensor, PlanError> {
    let (tokens, hidden) = (x.shape()[2], x.shape()[3]);
    let mapping = Tensor::new(config.expert_mapping_tensors.clone());
    let x = chain.step("to_rows", &config.to_rows, &[x]).put()?;
    let x = chain.reshape("by_token", "reshape", &x, &[tokens, 1, 1, hidden])?;
    let indices = chain.reshape("indices_by_token", "reshape", indices, &[tokens, 1, 1, CHOSEN])?;
    let sent = chain
        .step("all_to_all_dispatch", &config.all_to_all_dispatch, &[&x, &indices])
        .weight(&mapping)
        .put_all()?;
    let [sent, metadata] = &sent[..] else { unreachable!("a dispatch leaves two tensors") };
    let everyone = sent.shape()[1];
    let y = chain.reshape("sent_rows", "reshape", sent, &[1, 1, everyone, hidden])?;
    let y = chain.step("activations_repeat", &config.activations_repeat, &[&y]).put()?;
    let y = chain.step("to_tiles", &config.to_tiles, &[&y]).put()?;
    let y = chain.within("moe_experts", |chain| experts(chain, &config.moe_experts, &y))?;
    let y = chain.step("experts_to_rows", &config.to_rows, &[&y]).put()?;
    let local = y.shape()[1];
    let y = chain.reshape("by_expert", "reshape", &y, &[local, everyone, 1, hidden])?;
    let combine = chain.step("all_to_all_combine", &config.all_to_all_combine, &[&y, metadata]);
    let y = combine.weight(&mapping).put()?;
    let y = chain.reshape("by_choice", "reshape", &y, &[CHOSEN, 1, tokens, hidden])?;
    let y = chain.step("choice_to_tiles", &config.to_tiles, &[&y]).put()?;
    let weights = chain.step("weights_permute", &config.weights_permute, &[weights]).put()?;
    let weights = chain.step("weights_to_tiles", &config.to_tiles, &[&weights]).put()?;
    let times = &config.mul_experts_output_with_weights;
    let y = chain.step("mul_experts_output_with_weights", times, &[&y, &weights]).put()?;
    chain.step("sum_experts", &config.sum_experts, &[&y]).put()
}

fn experts(chain: &mut Chain, config: &ExpertsConfig, x: &Tensor) -> Result<Tensor, PlanError> {
    let gate = chain.step("w1_experts", &config.w1_experts, &[x]).put()?;
    let up = chain.step("w3_experts", &config.w3_experts, &[x]).put()?;
    let y = chain.step("mul_experts", &config.mul_experts, &[&gate, &up]).put()?;
    chain.step("w2_experts", &config.w2_experts, &[&y]).put()
}

/// The experts by fused operators.
fn optimized(
    chain: &mut Chain,
    block: &MoeBlockConfig,
    config: &MoeOptimizedConfig,
    x: &Tensor,
) -> Result<Tensor, PlanError> {
    let y = chain.within("moe", |chain| fused(chain, config, x))?;
    let shared = shared(chain, block, x)?;
    let y = chain.step("concat", &config.concat, &[&y, &shared]).put()?;
    let parts =
        chain.step("deepseek_moe_fast_reduce_nc", &config.deepseek_moe_fast_reduce_nc, &[&y]).put_all()?;
    let scatter = &config.deepseek_moe_reduce_scatter;
    chain.step("deepseek_moe_reduce_scatter", scatter, &[&all_of(&parts)]).put()
}

fn fused(chain: &mut Chain, config: &MoeOptimizedConfig, x: &Tensor) -> Result<Tensor, PlanError> {
    let (weights, indices) = chain.within("moe_gate", |chain| gate(chain, &config.moe_gate, x))?;
    let (tokens, hidden) = (x.shape()[2], x.shape()[3]);
    let mapping = Tensor::new(config.expert_mapping_tensors.clone());
    let x = chain.step("to_rows", &config.to_rows, &[x]).put()?;
    let x = chain.reshape("by_token", "reshape", &x, &[tokens, 1, 1, hidden])?;
    let mut choice = |name: &str, x: &Tensor| -> Result<Tensor, PlanError> {
        let x = chain.step(&format!("{name}_permute"), &config.choice_permute, &[x]).put()?;
        chain.step(&format!("{name}_reshard"), &config.choice_reshard, &[&x]).put()
    };
    let (indices, scores) = (choice("indices", &indices)?, choice("scores", &weights)?);
    let weights = chain.step("weights_permute", &config.weights_permute, &[&weights]).put()?;
    let weights = chain.step("weights_to_tiles", &config.weights_to_tiles, &[&weights]).put()?;
    let dispatch = &config.all_to_all_dispatch_metadata;
    let sent = chain.step("all_to_all_dispatch_metadata", dispatch, &[&x, &indices, &scores]);
    let sent = sent.weight(&mapping).put_all()?;
    let step =
        chain.step("moe_compute", &config.moe_compute, &[&sent[0], &sent[1], &sent[2]]).weight(&mapping);
    let experts = &config.moe_experts;
    let packed = [&experts.quad_ring_w0_w1_experts, &experts.quad_ring_w2_experts]
        .map(|weight| Tensor::weight(&weight.input_tensor_b));
    let combined = Tensor::named(config.combined.clone(), "optional_output_tensor");
    let outputs = step.weight(&packed[0]).weight(&packed[1]).weight(&combined).put_all()?;
    let y = outputs.last().expect("it leaves what came back last");
    let y = chain.reshape("by_choice", "reshape", y, &[CHOSEN, 1, tokens, hidden])?;
    let tilize = &config.deepseek_moe_post_combine_tilize;
    let y = chain.step("deepseek_moe_post_combine_tilize", tilize, &[&y]).put()?;
    let times = &config.mul_experts_output_with_weights;
    chain.step("mul_experts_output_with_weights", times, &[&y, &weights]).put()
}
