//! How much of the weights a decoded token reads. Decoding is bound by memory: this number, times tokens in a second,
//! is the bandwidth that a run achieves.

use crate::{counts::visited_experts, hf::HfConfig, model::ModelWeights, plan::PlannedWeight};
use dsv3_runtime::{Weight, WeightTree};

/// Bytes of weights, block scales included, that one decoded token reads: of the routed experts those that it visits,
/// of the embedding one row, and nothing of the MTP layer.
pub fn decode_bytes(hf: &HfConfig, weights: &ModelWeights<Weight>) -> u64 {
    step_bytes(hf, weights, 1)
}

/// Bytes of weights that a step of `tokens` reads at least: each matrix once, of the routed experts those that so many
/// tokens visit where they choose at random ([`visited_experts`]). Of a device of a mesh it is what that one reads, on
/// average where it holds some of the experts.
pub fn step_bytes(hf: &HfConfig, weights: &ModelWeights<Weight>, tokens: usize) -> u64 {
    step_bytes_by(hf, weights, (tokens, visited_share(hf, tokens)), &Weight::bytes)
}

/// As [`step_bytes`], of weights that are planned.
pub fn planned_step_bytes(hf: &HfConfig, plan: &ModelWeights<PlannedWeight>, tokens: usize) -> u64 {
    planned_step_bytes_of(hf, plan, tokens, visited_share(hf, tokens))
}

/// As [`planned_step_bytes`], where of the experts that are there this share is visited, by whatever tokens.
pub fn planned_step_bytes_of(
    hf: &HfConfig,
    plan: &ModelWeights<PlannedWeight>,
    tokens: usize,
    visited: f64,
) -> u64 {
    step_bytes_by(hf, plan, (tokens, visited), &|weight: &PlannedWeight| weight.bytes)
}

/// The share of a layer's routed experts that so many tokens visit.
fn visited_share(hf: &HfConfig, tokens: usize) -> f64 {
    hf.moe.as_ref().map_or(0.0, |moe| visited_experts(hf, tokens) / moe.routed_experts as f64)
}

fn step_bytes_by<W: Clone>(
    hf: &HfConfig,
    weights: &ModelWeights<W>,
    (tokens, visited): (usize, f64),
    bytes: &dyn Fn(&W) -> u64,
) -> u64 {
    let dense: u64 = weights.mlp_decoder_block.iter().map(|block| tree_bytes(block, bytes)).sum();
    let sparse: u64 = weights
        .moe_decoder_block
        .iter()
        .map(|block| {
            let moe = &block.mlp;
            let around = tree_bytes(&block.mla_norm, bytes)
                + tree_bytes(&block.mla, bytes)
                + tree_bytes(&block.mlp_norm, bytes);
            let routed = (tree_bytes(&moe.experts, bytes) as f64 * visited).round() as u64;
            around + tree_bytes(&moe.gate, bytes) + routed + tree_bytes(&moe.shared_experts, bytes)
        })
        .sum();
    let embedding = tree_bytes(&weights.embedding, bytes) / hf.vocab_size as u64 * tokens as u64;
    let last = tree_bytes(&weights.norm, bytes) + tree_bytes(&weights.lm_head, bytes);
    embedding + dense + sparse + last
}

/// Bytes of all weights of a tree. Cloning a loaded one clones handles, not bytes.
fn tree_bytes<W, T: WeightTree<W> + Clone>(tree: &T, bytes: &dyn Fn(&W) -> u64) -> u64 {
    let mut sum = 0;
    tree.clone().for_each(|_, weight| sum += bytes(&weight));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use dsv3_mesh::{Layout, Rank};
    use dsv3_runtime::{Checkpoint, Module, Prefix, WeightLoader, WeightOutput, WeightPath};
    use std::path::Path;

    #[test]
    fn a_token_of_the_odd_model_reads_what_its_shapes_say() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/odd-fp8");
        let hf = HfConfig::from_file(&dir.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let mut progress = |_: dsv3_runtime::ConvertProgress<'_>| {};
        let mut out = WeightOutput::new(cache.path(), Layout::SINGLE, Rank(0), &mut progress);
        let saved = Model::convert_weights(&hf, &Prefix::root(), &checkpoint, &mut out).unwrap();
        let mut loader = WeightLoader::new(&checkpoint, cache.path());
        let weights = Model::try_map(saved, &mut WeightPath::default(), &mut |_, saved| loader.load(&saved));

        // From the sizes in testdata/odd-fp8/config.json; norms and biases are held in f32.
        let fp8 = |rows: u64, cols: u64| rows * cols + 4 * rows.div_ceil(128) * cols.div_ceil(128);
        let bf16 = |rows: u64, cols: u64| 2 * rows * cols;
        let vector = |length: u64| 4 * length;
        let mlp = |intermediate| 2 * fp8(intermediate, 160) + fp8(160, intermediate);
        let query = fp8(72, 160) + vector(72) + vector(72) + fp8(4 * (24 + 8), 72);
        let key_value = fp8(48 + 8, 160) + vector(48 + 8) + vector(48) + fp8(4 * (24 + 40), 48);
        let attention = query + key_value + fp8(160, 4 * 40) + vector(160);
        let layer = attention + 2 * vector(160);
        let gate = bf16(12, 160) + vector(12);
        let dense = layer + mlp(200);
        let sparse = layer + gate + 3 * mlp(48) + mlp(2 * 48);
        let expected = bf16(1, 160) + dense + 2 * sparse + vector(160) + bf16(300, 160);
        let weights = weights.unwrap();
        assert_eq!(decode_bytes(&hf, &weights), expected);
        // Everything is FP8 there but the gate, the embedding and the head.
        let head = bf16(300, 160) - fp8(300, 160);
        assert_eq!(crate::counts::step_bytes_in(&hf, dsv3_runtime::Format::Fp8, 1), expected - head);
        // Two tokens visit 5.25 of 12 experts, and read two rows of the embedding.
        let more = bf16(1, 160) + 2 * (2.25 * mlp(48) as f64) as u64;
        assert_eq!(step_bytes(&hf, &weights, 2), expected + more);
    }
}
