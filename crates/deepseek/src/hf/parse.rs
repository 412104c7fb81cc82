//! From the text of a `config.json` to [`HfConfig`], field by field.

use super::{AttentionShape, ConfigError, Fp8Blocks, HfConfig, MoeConfig, RopeConfig, Yarn, fields::Fields};
use dsv3_runtime::TokenId;
use serde_json::{Value, json};
use std::{fs::File, io::Read, ops::Bound, path::Path};

/// The longest text that is taken for a configuration. The longest known ones, with lists of modules that are not
/// quantised, have some hundred kilobytes.
const LONGEST_FILE: u64 = 16 << 20;

/// Bounds far above every model and far below overflow: products of three of them still fit into 64 bits.
const LAYERS: usize = 4096;
const HEADS: usize = 1 << 14;
const HEAD_DIM: usize = 1 << 16;
const WIDTH: usize = 1 << 20;
const EXPERTS: usize = 1 << 14;
const SHARED_EXPERTS: usize = 1 << 10;
const VOCABULARY: usize = 1 << 24;
/// Positions up to here are exact in f32, in which transformers computes the angles.
const POSITIONS: usize = 1 << 24;
/// More weights than any address space holds today.
const PARAMETERS: u64 = 1 << 48;
/// More tensors than any checkpoint has: DeepSeek-V3 has 46 thousand weights, Kimi-K2 70 thousand. Weights are listed
/// from the configuration before a checkpoint is asked for any of them.
const TENSORS: usize = 1 << 20;

/// Reads a file, unless it is too long to be a configuration.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let io = |source| ConfigError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(io)?.take(LONGEST_FILE + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > LONGEST_FILE {
        let message = format!("expected a configuration of at most {LONGEST_FILE} bytes, got a longer file");
        return Err(ConfigError::Syntax { path: path.to_owned(), message });
    }
    Ok(text)
}

/// Parses and validates a configuration.
pub(super) fn config(path: &Path, text: &str) -> Result<HfConfig, ConfigError> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })?;
    let top = Fields::top(path, &value)?;
    refuse_other_architectures(&top)?;

    let num_hidden_layers = top.int("num_hidden_layers", 1..=LAYERS)?;
    let first_k_dense_replace = top.int("first_k_dense_replace", 0..=LAYERS)?.min(num_hidden_layers);
    let vocab_size = top.int("vocab_size", 1..=VOCABULARY)?;
    let mtp_layers = mtp_layers(&top)?;
    let has_experts = first_k_dense_replace < num_hidden_layers || mtp_layers > 0;
    let config = HfConfig {
        hidden_size: top.int("hidden_size", 1..=WIDTH)?,
        num_hidden_layers,
        first_k_dense_replace,
        intermediate_size: top.int("intermediate_size", 1..=WIDTH)?,
        vocab_size,
        max_position_embeddings: top.int("max_position_embeddings", 1..=POSITIONS)?,
        rms_norm_eps: top.number_or("rms_norm_eps", 1e-30..=1.0, 1e-6)? as f32,
        attention: attention(&top)?,
        moe: has_experts.then(|| moe(&top)).transpose()?,
        rope: rope(&top)?,
        tie_word_embeddings: top.flag_or("tie_word_embeddings", false)?,
        mtp_layers,
        quantization: quantization(&top)?,
        bos_token_id: token_ids(&top, "bos_token_id", vocab_size)?.first().copied(),
        eos_token_ids: token_ids(&top, "eos_token_id", vocab_size)?,
    };
    match parameters(&config) {
        _ if tensors(&config) > TENSORS => {
            Err(top.error("num_hidden_layers", format!("a model of at most {TENSORS} tensors")))
        }
        Some(count) if count <= PARAMETERS => Ok(config),
        _ => Err(top.error("num_hidden_layers", format!("a model of at most {PARAMETERS} weights"))),
    }
}

/// Everything that makes it another model, or one that needs what is not written here.
fn refuse_other_architectures(top: &Fields<'_>) -> Result<(), ConfigError> {
    const ARCHITECTURE: &str = "DeepseekV3ForCausalLM";
    match top.given("model_type").and_then(Value::as_str) {
        Some("deepseek_v3" | "kimi_k2") => {}
        _ => return Err(top.error("model_type", "\"deepseek_v3\" or \"kimi_k2\"")),
    }
    if let Some(architectures) = top.given("architectures") {
        let supported =
            architectures.as_array().is_some_and(|names| names.iter().any(|name| name == ARCHITECTURE));
        if !supported {
            return Err(top.error("architectures", format!("[\"{ARCHITECTURE}\"]")));
        }
    }
    if top.given("index_topk").is_some() {
        return Err(
            top.error("index_topk", "nothing (the sparse attention of DeepSeek-V3.2 is not supported)")
        );
    }
    top.only("hidden_act", &json!("silu"))?;
    top.only("scoring_func", &json!("sigmoid"))?;
    top.only("topk_method", &json!("noaux_tc"))?;
    top.only("moe_layer_freq", &json!(1))?;
    top.only("rope_interleave", &json!(true))
}

fn attention(top: &Fields<'_>) -> Result<AttentionShape, ConfigError> {
    let heads = top.int("num_attention_heads", 1..=HEADS)?;
    // Every head has its own key and value, expanded from the latent: transformers' code breaks on any other number.
    top.only("num_key_value_heads", &json!(heads))?;
    if !top.contains("q_lora_rank") {
        return Err(top.error("q_lora_rank", "an integer, or null where the query has one full projection"));
    }
    let q_lora_rank = match top.given("q_lora_rank") {
        None => None,
        Some(_) => Some(top.int("q_lora_rank", 1..=WIDTH)?),
    };
    let qk_rope_head_dim = top.int("qk_rope_head_dim", 2..=HEAD_DIM)?;
    if qk_rope_head_dim % 2 != 0 {
        return Err(top.error("qk_rope_head_dim", "an even number (features are rotated in pairs)"));
    }
    Ok(AttentionShape {
        heads,
        q_lora_rank,
        kv_lora_rank: top.int("kv_lora_rank", 1..=WIDTH)?,
        qk_nope_head_dim: top.int("qk_nope_head_dim", 1..=HEAD_DIM)?,
        qk_rope_head_dim,
        v_head_dim: top.int("v_head_dim", 1..=HEAD_DIM)?,
        bias: top.flag_or("attention_bias", false)?,
    })
}

fn moe(top: &Fields<'_>) -> Result<MoeConfig, ConfigError> {
    let routed_experts = top.int("n_routed_experts", 2..=EXPERTS)?;
    let groups = top.int("n_group", 1..=routed_experts)?;
    // A group is judged by its two best experts.
    if !routed_experts.is_multiple_of(groups) || routed_experts / groups < 2 {
        let expected =
            format!("a divisor of n_routed_experts ({routed_experts}) with 2 experts a group or more");
        return Err(top.error("n_group", expected));
    }
    let topk_groups = top.int("topk_group", 1..=groups)?;
    Ok(MoeConfig {
        routed_experts,
        experts_per_token: top.int("num_experts_per_tok", 1..=topk_groups * (routed_experts / groups))?,
        groups,
        topk_groups,
        shared_experts: shared_experts(top)?,
        intermediate_size: top.int("moe_intermediate_size", 1..=WIDTH)?,
        norm_topk_prob: top.flag_or("norm_topk_prob", true)?,
        routed_scaling_factor: top.number("routed_scaling_factor", 0.0..=1e6)? as f32,
    })
}

/// Null and 0 are no shared expert; absent would be transformers' default, and a dimension is never defaulted.
fn shared_experts(top: &Fields<'_>) -> Result<usize, ConfigError> {
    if top.contains("n_shared_experts") {
        top.int_or("n_shared_experts", 0..=SHARED_EXPERTS, 0)
    } else {
        Err(top.error("n_shared_experts", "an integer, or null where there is no shared expert"))
    }
}

/// Both spellings: `rope_scaling` with `rope_theta` beside it, and transformers 5's `rope_parameters` with both
/// inside. As there, `rope_scaling` wins, and a theta inside wins over one beside.
fn rope(top: &Fields<'_>) -> Result<RopeConfig, ConfigError> {
    const THETA: (Bound<f64>, Bound<f64>) = (Bound::Excluded(1.0), Bound::Included(1e12));
    let parameters = match top.object("rope_scaling")? {
        None => top.object("rope_parameters")?,
        given => given,
    };
    top.only("partial_rotary_factor", &json!(1.0))?;
    let theta = top.number_or("rope_theta", THETA, 10_000.0)?;
    let Some(parameters) = parameters else { return Ok(RopeConfig { theta, scaling: None }) };
    let theta = parameters.number_or("rope_theta", THETA, theta)?;
    parameters.only("partial_rotary_factor", &json!(1.0))?;

    let type_field = if parameters.contains("rope_type") { "rope_type" } else { "type" };
    let scaling = match parameters.given(type_field).map(|value| value.as_str()) {
        None | Some(Some("default")) => None,
        Some(Some("yarn")) => Some(yarn(&parameters)?),
        Some(_) => return Err(parameters.error(type_field, "\"yarn\" or \"default\"")),
    };
    Ok(RopeConfig { theta, scaling })
}

fn yarn(parameters: &Fields<'_>) -> Result<Yarn, ConfigError> {
    /// As transformers: absent, null and 0 stand for the default.
    fn beta(parameters: &Fields<'_>, field: &str, default: f64) -> Result<f64, ConfigError> {
        let value = parameters.number_or(field, 0.0..=1e6, default)?;
        Ok(if value == 0.0 { default } else { value })
    }
    for field in ["attention_factor", "truncate"] {
        if parameters.given(field).is_some() {
            return Err(parameters.error(field, "nothing (not supported)"));
        }
    }
    let beta_fast = beta(parameters, "beta_fast", 32.0)?;
    let beta_slow = beta(parameters, "beta_slow", 1.0)?;
    if beta_fast < beta_slow {
        return Err(parameters.error("beta_fast", format!("a number not below beta_slow ({beta_slow})")));
    }
    Ok(Yarn {
        factor: parameters.number("factor", 1.0..=1e6)?,
        original_max_position_embeddings: parameters
            .int("original_max_position_embeddings", 1..=POSITIONS)?,
        beta_fast,
        beta_slow,
        mscale: parameters.number_or("mscale", 0.0..=1e3, 0.0)?,
        mscale_all_dim: parameters.number_or("mscale_all_dim", 0.0..=1e3, 0.0)?,
    })
}

/// DeepSeek's spelling, or transformers 5's.
fn mtp_layers(top: &Fields<'_>) -> Result<usize, ConfigError> {
    const DEEPSEEK: &str = "num_nextn_predict_layers";
    let field = if top.contains(DEEPSEEK) { DEEPSEEK } else { "num_mtp_layers" };
    top.int_or(field, 0..=1, 0)
}

fn quantization(top: &Fields<'_>) -> Result<Option<Fp8Blocks>, ConfigError> {
    const BLOCK_SIZE: &str = "weight_block_size";
    let Some(quantization) = top.object("quantization_config")? else { return Ok(None) };
    if quantization.given("quant_method") != Some(&json!("fp8")) {
        return Err(quantization.error("quant_method", "\"fp8\""));
    }
    quantization.only("fmt", &json!("e4m3"))?;
    let sizes: Option<Vec<usize>> =
        quantization.given(BLOCK_SIZE).and_then(Value::as_array).and_then(|sizes| {
            let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
            sizes.iter().map(|value| size(value).filter(|size| (1..=WIDTH).contains(size))).collect()
        });
    match sizes.as_deref() {
        Some(&[rows, cols]) => Ok(Some(Fp8Blocks { rows, cols })),
        _ => Err(quantization.error(BLOCK_SIZE, format!("[rows, columns], each from 1 to {WIDTH}"))),
    }
}

/// One id, a list of them, or none.
fn token_ids(top: &Fields<'_>, field: &str, vocab_size: usize) -> Result<Vec<TokenId>, ConfigError> {
    let values = match top.given(field) {
        None => &[],
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let id = |value: &Value| {
        let id = value.as_u64().filter(|&id| id < vocab_size as u64)?;
        u32::try_from(id).ok().map(TokenId)
    };
    let ids: Option<Vec<_>> = values.iter().map(id).collect();
    ids.ok_or_else(|| top.error(field, format!("token ids below vocab_size ({vocab_size})")))
}

/// A bound on the number of weights: a layer has some twenty beside its experts'.
fn tensors(config: &HfConfig) -> usize {
    let experts = config.moe.as_ref().map_or(0, |moe| 3 * moe.routed_experts);
    (config.num_hidden_layers + config.mtp_layers) * (experts + 20)
}

/// See [`HfConfig::parameters`]; `None` where the number does not fit.
pub(super) fn parameters(config: &HfConfig) -> Option<u64> {
    /// Weights of a matrix; the bounds above keep it from overflowing.
    fn matrix(rows: usize, cols: usize) -> u64 {
        rows as u64 * cols as u64
    }
    let (hidden, shape) = (config.hidden_size, &config.attention);
    let bias = |rows: usize| if shape.bias { rows as u64 } else { 0 };
    let mlp = |intermediate: usize| 3 * matrix(intermediate, hidden);

    let query = match shape.q_lora_rank {
        Some(rank) => matrix(rank, hidden) + bias(rank) + rank as u64 + matrix(shape.q_dim(), rank),
        None => matrix(shape.q_dim(), hidden),
    };
    let key_value = matrix(shape.latent_dim(), hidden)
        + bias(shape.latent_dim())
        + shape.kv_lora_rank as u64
        + matrix(shape.kv_dim(), shape.kv_lora_rank);
    let output = matrix(hidden, shape.o_dim()) + bias(hidden);
    let around = query + key_value + output + 2 * hidden as u64;
    let dense = around + mlp(config.intermediate_size);
    let sparse = config.moe.as_ref().map_or(Some(0), |moe| {
        let experts = mlp(moe.intermediate_size).checked_mul(moe.routed_experts as u64)?;
        let gate = matrix(moe.routed_experts, hidden) + moe.routed_experts as u64;
        experts.checked_add(around + gate)?.checked_add(mlp(moe.shared_intermediate_size()))
    })?;

    let vocabulary = matrix(config.vocab_size, hidden) * if config.tie_word_embeddings { 1 } else { 2 };
    let sparse_layers = config.num_hidden_layers - config.first_k_dense_replace + config.mtp_layers;
    let projection = matrix(hidden, 2 * hidden) + 3 * hidden as u64;
    dense
        .checked_mul(config.first_k_dense_replace as u64)?
        .checked_add(sparse.checked_mul(sparse_layers as u64)?)?
        .checked_add(projection * config.mtp_layers as u64)?
        .checked_add(vocabulary + hidden as u64)
}
