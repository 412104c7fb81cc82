//! How many bytes and operations a step takes, from the configuration alone: the floor that no program gets below on
//! a machine of a given bandwidth and arithmetic rate. A multiply-add is two operations.

use crate::{
    Model,
    hf::{AttentionShape, HfConfig},
};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Format, Module, Prefix, WeightTree,
    ops::{CacheFormat, LatentCache},
};

/// Matrices of one name: those of all layers and experts, which have one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixCount {
    /// Its way in the weight tree without numbers: `moe_decoder_block.mlp.experts.w1`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Matrices in the model.
    pub copies: usize,
    /// Those of them that one token passes through.
    pub active: usize,
}

impl MatrixCount {
    /// Operations of one token.
    pub fn flops(&self) -> u64 {
        2 * (self.rows * self.cols * self.active) as u64
    }

    /// Bytes of one of the matrices where it is asked to be stored in `format`, scales included: the gate stays in
    /// bf16 but in f32, and a row that is no whole number of q4_K's blocks is stored in q8_0, of q8_0's in bf16.
    pub fn bytes(&self, hf: &HfConfig, format: Format) -> u64 {
        let format = match format {
            Format::F32 => Format::F32,
            _ if self.name.ends_with(".gate.weight") => Format::Bf16,
            Format::Q4K if self.cols.is_multiple_of(Format::Q4K.block_cols()) => Format::Q4K,
            Format::Q4K | Format::Q8_0 if self.cols.is_multiple_of(Format::Q8_0.block_cols()) => Format::Q8_0,
            Format::Q4K | Format::Q8_0 => Format::Bf16,
            format => format,
        };
        let scales = match (format, hf.quantization) {
            (Format::Fp8, Some(blocks)) => blocks.grid(self.rows, self.cols).iter().product::<usize>() * 4,
            _ => 0,
        };
        let bytes = format.matrix_bytes(self.rows, self.cols).expect("the row is a whole number of blocks");
        (bytes + scales) as u64
    }
}

/// Every matrix that a token is multiplied with, in the order of the weight tree. The embedding is none of them, and
/// the MTP layer does not run.
pub fn matrices(hf: &HfConfig) -> Vec<MatrixCount> {
    let mut counts: Vec<MatrixCount> = Vec::new();
    for_each_shape(hf, |name, shape| {
        let &[rows, cols] = shape else { return };
        match counts.iter_mut().find(|count| count.name == name) {
            Some(count) => count.copies += 1,
            None => counts.push(MatrixCount { name: name.to_owned(), rows, cols, copies: 1, active: 0 }),
        }
    });
    for count in &mut counts {
        count.active = if is_routed(count) {
            count.copies / hf.moe().routed_experts * hf.moe().experts_per_token
        } else {
            count.copies
        };
    }
    counts
}

/// Bytes of the norms' weights and the biases, which are held in f32.
pub fn vector_bytes(hf: &HfConfig) -> u64 {
    let mut values = 0;
    for_each_shape(hf, |_, shape| {
        if let &[length] = shape {
            values += length;
        }
    });
    (values * size_of::<f32>()) as u64
}

/// Bytes of weights that a step of `tokens` reads at least where all matrices are asked to be stored in `format`: each
/// once, of the routed experts those that so many tokens visit ([`visited_experts`]), and rows of the embedding. What
/// a loaded model reads, whatever its formats, [`step_bytes`](crate::step_bytes) tells.
pub fn step_bytes_in(hf: &HfConfig, format: Format, tokens: usize) -> u64 {
    let more_experts = |count: &MatrixCount| {
        if is_routed(count) { visited_experts(hf, tokens) / hf.moe().experts_per_token as f64 } else { 1.0 }
    };
    let bytes =
        |count: &MatrixCount| (count.bytes(hf, format) * count.active as u64) as f64 * more_experts(count);
    let matrices: u64 = matrices(hf).iter().map(|count| bytes(count).round() as u64).sum();
    let element = if format == Format::F32 { 4 } else { 2 };
    matrices + vector_bytes(hf) + (hf.hidden_size * element * tokens) as u64
}

/// What attention to one cached position takes of one layer, for each of the two forms (DeepSeek-V2 paper, section
/// 2.1.2). Absorbed, the latent itself is key and value of all heads; expanded, each head has a key and a value of its
/// own, which are computed from the latent once a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionCount {
    /// Operations of a token and a position it sees, absorbed: `2 * heads * (2 * kv_lora_rank + rope)`.
    pub absorbed: u64,
    /// Operations of a token and a position it sees, expanded: `2 * heads * (nope + rope + v)`.
    pub expanded: u64,
    /// Operations that expand one position: `2 * heads * (nope + v) * kv_lora_rank`.
    pub expansion: u64,
    /// Values that are cached of a position: `kv_lora_rank + rope`.
    pub cached: u64,
}

impl AttentionCount {
    /// Of one layer of a model.
    pub fn of(shape: &AttentionShape) -> Self {
        let (heads, rank, rope) = (shape.heads, shape.kv_lora_rank, shape.qk_rope_head_dim);
        Self {
            absorbed: 2 * (heads * (2 * rank + rope)) as u64,
            expanded: 2 * (heads * (shape.qk_head_dim() + shape.v_head_dim)) as u64,
            expansion: 2 * (shape.kv_dim() * rank) as u64,
            cached: shape.latent_dim() as u64,
        }
    }

    /// Operations of a chunk of `tokens` behind `start` cached positions, in the form that takes fewer. The own
    /// positions' expansion is left out: `kv_b_proj` is one of the matrices, and either form applies it once a token.
    pub fn flops(&self, start: usize, tokens: usize) -> u64 {
        let pairs = attention_pairs(start, tokens);
        (pairs * self.absorbed).min(pairs * self.expanded + start as u64 * self.expansion)
    }
}

/// Operations of a chunk of one sequence behind `start` cached positions: its tokens through every matrix, but
/// `logit_rows` of them through the head, and the attention of all layers. A decode step is a chunk of one token.
pub fn chunk_flops(hf: &HfConfig, start: usize, tokens: usize, logit_rows: usize) -> u64 {
    let matrices: u64 = matrices(hf)
        .iter()
        .map(|count| count.flops() * if is_head(count) { logit_rows } else { tokens } as u64)
        .sum();
    matrices + hf.num_hidden_layers as u64 * AttentionCount::of(&hf.attention).flops(start, tokens)
}

/// Bytes that the caches of `layers` layers hold of `positions` tokens.
pub fn cached_bytes(hf: &HfConfig, layers: usize, positions: usize, format: CacheFormat) -> u64 {
    let per_token = LatentCache::bytes_per_token(hf.attention.latent_shape(), format) as u64;
    (positions as u64).saturating_mul(layers as u64).saturating_mul(per_token)
}

/// Pairs of a token and a position that it sees, in a chunk of `tokens` behind `start` cached positions.
pub fn attention_pairs(start: usize, tokens: usize) -> u64 {
    let (start, tokens) = (start as u64, tokens as u64);
    tokens * start + tokens * (tokens + 1) / 2
}

/// How many of a layer's routed experts `tokens` visit together, where each chooses at random. Tokens of real texts
/// choose less evenly, and then it is fewer.
pub fn visited_experts(hf: &HfConfig, tokens: usize) -> f64 {
    let Some(moe) = &hf.moe else { return 0.0 };
    let spared = 1.0 - moe.experts_per_token as f64 / moe.routed_experts as f64;
    moe.routed_experts as f64 * (1.0 - spared.powf(tokens as f64))
}

/// Whether it is the language-model head.
fn is_head(count: &MatrixCount) -> bool {
    count.name.starts_with("lm_head.")
}

/// Whether they belong to routed experts.
fn is_routed(count: &MatrixCount) -> bool {
    count.name.contains(".experts.")
}

/// The shape of every weight of the base model but the embedding, with its name.
fn for_each_shape(hf: &HfConfig, mut f: impl FnMut(&str, &[usize])) {
    let specs = Model::weight_specs(hf, &Prefix::root(), Layout::SINGLE);
    specs.for_each(|path, spec| {
        let path = path.to_string();
        let parts: Vec<&str> = path.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
        if !matches!(parts[0], "embedding" | "mtp") {
            f(&parts.join("."), &spec.shape);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(path: &str) -> HfConfig {
        HfConfig::from_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)).unwrap()
    }

    fn odd() -> HfConfig {
        config("odd-fp8/config.json")
    }

    #[test]
    fn the_matrices_of_the_odd_model() {
        let counts = matrices(&odd());
        let of = |name: &str| {
            let count = counts.iter().find(|count| count.name == name).unwrap_or_else(|| panic!("{name}"));
            (count.rows, count.cols, count.copies, count.active)
        };
        // From the sizes in testdata/odd-fp8/config.json: 3 layers, the first dense, 12 experts, 3 a token.
        assert_eq!(of("mlp_decoder_block.mla.wkv_b"), (4 * (24 + 40), 48, 1, 1));
        assert_eq!(of("moe_decoder_block.mla.wq_b"), (4 * (24 + 8), 72, 2, 2));
        assert_eq!(of("moe_decoder_block.mlp.gate.weight"), (12, 160, 2, 2));
        assert_eq!(of("moe_decoder_block.mlp.experts.w2"), (160, 48, 24, 6));
        assert_eq!(of("moe_decoder_block.mlp.shared_experts.w1"), (96, 160, 2, 2));
        assert_eq!(of("lm_head.weight"), (300, 160, 1, 1));
        // 5 of the attention and 3 of the MLP; 5, the gate, 3 routed and 3 shared; the head.
        assert_eq!(counts.len(), 8 + 12 + 1);
    }

    #[test]
    fn bytes_of_a_matrix_fall_back_where_rows_are_no_whole_blocks() {
        let hf = odd();
        let bytes = |cols, format| {
            let count = MatrixCount { name: "w".to_owned(), rows: 130, cols, copies: 1, active: 1 };
            count.bytes(&hf, format)
        };
        assert_eq!(bytes(512, Format::Q4K), 130 * 288);
        assert_eq!(bytes(160, Format::Q4K), 130 * 5 * 34);
        assert_eq!(bytes(48, Format::Q4K), 130 * 48 * 2);
        assert_eq!(bytes(48, Format::Q8_0), 130 * 48 * 2);
        assert_eq!(bytes(160, Format::Fp8), 130 * 160 + 2 * 2 * 4);
        assert_eq!(bytes(160, Format::F32), 130 * 160 * 4);
    }

    #[test]
    fn attention_takes_the_form_with_fewer_operations() {
        let count = AttentionCount::of(&odd().attention);
        let expected = AttentionCount {
            absorbed: 2 * 4 * (48 + 48 + 8),
            expanded: 2 * 4 * (24 + 8 + 40),
            expansion: 2 * 4 * (24 + 40) * 48,
            cached: 56,
        };
        assert_eq!(count, expected);
        // One token after 100: absorbed, to 101 positions. Without anything before: expanded, to 1 + 2 + 3.
        assert_eq!(count.flops(100, 1), 101 * 832);
        assert_eq!(count.flops(0, 3), 6 * 576);
        // Many tokens: the expansion of the positions before them pays.
        assert_eq!(count.flops(10, 1000), (10_000 + 500_500) * 576 + 10 * 24_576);
    }

    #[test]
    fn a_step_of_the_odd_model_takes_what_its_shapes_say() {
        let hf = odd();
        let mlp = |intermediate: u64| 3 * intermediate * 160;
        let attention = 72 * 160 + 128 * 72 + 56 * 160 + 256 * 48 + 160 * 160;
        let layers = 3 * attention + mlp(200) + 2 * (12 * 160 + 3 * mlp(48) + mlp(96));
        let head = 300 * 160;
        assert_eq!(chunk_flops(&hf, 0, 1, 1), 2 * (layers + head) + 3 * 576);
        assert_eq!(chunk_flops(&hf, 100, 1, 1), 2 * (layers + head) + 3 * 101 * 832);
        assert_eq!(chunk_flops(&hf, 0, 3, 1), 2 * (3 * layers + head) + 3 * 6 * 576);
        assert_eq!(cached_bytes(&hf, 3, 10, CacheFormat::F32), 10 * 3 * 56 * 4);
        assert_eq!(cached_bytes(&hf, 3, 10, CacheFormat::Bf16), 10 * 3 * 57 * 2);
    }

    #[test]
    fn the_671b_model_has_its_known_sizes() {
        let hf = config("configs/deepseek-v3-671b.json");
        let parameters: u64 = matrices(&hf).iter().map(|count| count.flops() / 2).sum();
        // 37.6 billion active parameters with the embedding, of which one row is read.
        assert_eq!(parameters / 10_000_000, 3_662);
        let count = AttentionCount::of(&hf.attention);
        assert_eq!((count.absorbed, count.expanded, count.cached), (278_528, 81_920, 576));
    }

    #[test]
    fn many_tokens_visit_all_experts_and_one_visits_its_own() {
        let hf = odd();
        assert!((visited_experts(&hf, 1) - 3.0).abs() < 1e-12);
        assert!((visited_experts(&hf, 2) - (3.0 + 9.0 * 0.25)).abs() < 1e-12);
        assert!(visited_experts(&hf, 1000) > 11.999);
    }
}
