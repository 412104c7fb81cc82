//! GGUF files of the architecture `deepseek2`, as llama.cpp's converter writes them: the names of their tensors in a
//! checkpoint of Hugging Face, and the config.json that their metadata stands for.
//!
//! The converter stacks the experts of a layer, and cuts `kv_b_proj` in two: `attn_k_b`, for each head its key rows
//! transposed, and `attn_v_b`, for each head its value rows. Older files have `attn_kv_b`, the whole. It reorders
//! nothing else.

use dsv3_runtime::{Checkpoint, Error, Gguf, GgufName, GgufValue, Part, TensorInfo};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The architecture's name in GGUF files.
const ARCHITECTURE: &str = "deepseek2";
/// `expert_gating_func` of sigmoid scores.
const SIGMOID: u64 = 2;

/// The text of the config.json that the metadata stands for. What is missing there is missing here, and is named when
/// the text is parsed.
///
/// # Errors
/// A file of another architecture.
pub fn config_json(gguf: &Gguf) -> Result<String, Error> {
    let metadata = gguf.metadata();
    let architecture = metadata.get("general.architecture").and_then(GgufValue::as_str);
    if architecture != Some(ARCHITECTURE) {
        let message = format!(
            "general.architecture: expected {ARCHITECTURE}, got {}",
            architecture.unwrap_or("nothing")
        );
        return Err(Error::Format { path: gguf.path().to_owned(), message });
    }
    let mut config = json!({
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_act": "silu",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 0,
        "attention_bias": false,
        "tie_word_embeddings": !gguf.tensors().iter().any(|tensor| tensor.name == "output.weight"),
    });
    let fields = config.as_object_mut().expect("made as one above");
    let source = Source { metadata };
    source.dimensions(fields);
    source.experts(fields);
    source.rope(fields);
    for (field, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        let id = metadata.get(&format!("tokenizer.ggml.{key}_token_id"));
        fields.insert(field.to_owned(), json_of(id));
    }
    Ok(config.to_string())
}

/// The metadata of the architecture.
struct Source<'a> {
    metadata: &'a BTreeMap<String, GgufValue>,
}

impl Source<'_> {
    fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(&format!("{ARCHITECTURE}.{key}"))
    }

    fn integer(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    fn copy(&self, fields: &mut Map<String, Value>, names: &[(&str, &str)]) {
        for &(field, key) in names {
            fields.insert(field.to_owned(), json_of(self.get(key)));
        }
    }

    fn dimensions(&self, fields: &mut Map<String, Value>) {
        self.copy(
            fields,
            &[
                ("hidden_size", "embedding_length"),
                ("num_hidden_layers", "block_count"),
                ("intermediate_size", "feed_forward_length"),
                ("max_position_embeddings", "context_length"),
                ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
                ("num_attention_heads", "attention.head_count"),
                ("num_key_value_heads", "attention.head_count"),
                ("q_lora_rank", "attention.q_lora_rank"),
                ("kv_lora_rank", "attention.kv_lora_rank"),
                ("qk_rope_head_dim", "rope.dimension_count"),
            ],
        );
        // Files that keep `kv_b_proj` whole give a head's sizes under the plain names.
        let either = |key: &str| self.integer(&format!("{key}_mla")).or_else(|| self.integer(key));
        let rope = self.integer("rope.dimension_count");
        let nope = either("attention.key_length").zip(rope).and_then(|(all, rope)| all.checked_sub(rope));
        fields.insert("qk_nope_head_dim".to_owned(), json!(nope));
        fields.insert("v_head_dim".to_owned(), json!(either("attention.value_length")));
        let tokens = self.metadata.get("tokenizer.ggml.tokens").and_then(GgufValue::as_list);
        let vocabulary = self.integer("vocab_size").or_else(|| tokens.map(|tokens| tokens.len() as u64));
        fields.insert("vocab_size".to_owned(), json!(vocabulary));
    }

    fn experts(&self, fields: &mut Map<String, Value>) {
        self.copy(
            fields,
            &[
                ("first_k_dense_replace", "leading_dense_block_count"),
                ("n_routed_experts", "expert_count"),
                ("num_experts_per_tok", "expert_used_count"),
                ("n_shared_experts", "expert_shared_count"),
                ("moe_intermediate_size", "expert_feed_forward_length"),
            ],
        );
        // What is not in the file is what leaves the function alone.
        let or = |key: &str, default: Value| self.get(key).map_or(default, |value| json_of(Some(value)));
        fields.insert("n_group".to_owned(), or("expert_group_count", json!(1)));
        fields.insert("topk_group".to_owned(), or("expert_group_used_count", json!(1)));
        fields.insert("routed_scaling_factor".to_owned(), or("expert_weights_scale", json!(1.0)));
        fields.insert("norm_topk_prob".to_owned(), or("expert_weights_norm", json!(false)));
        let scoring = if self.integer("expert_gating_func") == Some(SIGMOID) { "sigmoid" } else { "softmax" };
        fields.insert("scoring_func".to_owned(), json!(scoring));
    }

    /// The file has one mscale, and llama.cpp takes it for both.
    fn rope(&self, fields: &mut Map<String, Value>) {
        fields.insert("rope_theta".to_owned(), json_of(self.get("rope.freq_base")));
        if self.get("rope.scaling.type").and_then(GgufValue::as_str) != Some("yarn") {
            return;
        }
        let mut scaling = Map::new();
        self.copy(
            &mut scaling,
            &[
                ("type", "rope.scaling.type"),
                ("factor", "rope.scaling.factor"),
                ("original_max_position_embeddings", "rope.scaling.original_context_length"),
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ],
        );
        scaling.retain(|_, value| !value.is_null());
        if let Some(GgufValue::Float(multiplier)) = self.get("rope.scaling.yarn_log_multiplier") {
            // A tenth of the mscale; rounded to undo the product in single precision.
            let mscale = (multiplier * 10.0 * 1e6).round() / 1e6;
            scaling.insert("mscale".to_owned(), json!(mscale));
            scaling.insert("mscale_all_dim".to_owned(), json!(mscale));
        }
        fields.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
}

fn json_of(value: Option<&GgufValue>) -> Value {
    match value {
        Some(GgufValue::Integer(value)) => i64::try_from(*value).map_or(Value::Null, Value::from),
        Some(GgufValue::Float(value)) => json!(value),
        Some(GgufValue::Bool(value)) => json!(value),
        Some(GgufValue::Text(text)) => json!(text),
        Some(GgufValue::List(_)) | None => Value::Null,
    }
}

/// The file as a checkpoint with the names of Hugging Face.
///
/// # Errors
/// Tensors that are not as many as the stacks need, or that have the same name.
pub fn checkpoint(gguf: Gguf) -> Result<Checkpoint, Error> {
    let mut joins = BTreeMap::new();
    let layer_of = |name: &str, tensor: &TensorInfo| -> Option<String> {
        Some(tensor.name.strip_prefix("blk.")?.strip_suffix(name)?.to_owned())
    };
    // ik_llama.cpp's converter writes the halves, too, and does not tell their heads apart: they are not read.
    let whole: BTreeSet<String> =
        gguf.tensors().iter().filter_map(|tensor| layer_of(".attn_kv_b.weight", tensor)).collect();
    let is_left_out = |tensor: &TensorInfo| {
        let mut halves = [".attn_k_b.weight", ".attn_v_b.weight"].into_iter();
        halves.any(|name| layer_of(name, tensor).is_some_and(|layer| whole.contains(&layer)))
    };
    let halves = gguf.tensors().iter().filter(|tensor| !is_left_out(tensor));
    let key_parts: Vec<(String, usize)> = halves.filter_map(split_keys).collect();
    for (layer, heads) in key_parts {
        let at = format!("model.layers.{layer}.self_attn");
        let part = |kind: &str, head: usize| Part {
            tensor: format!("{at}.{kind}.{head}.weight"),
            is_transposed: kind == "k_b",
        };
        let parts = (0..heads).flat_map(|head| [part("k_b", head), part("v_b", head)]).collect();
        joins.insert(format!("{at}.kv_b_proj.weight"), parts);
    }
    let rename = |tensor: &TensorInfo| if is_left_out(tensor) { GgufName::Ignored } else { rename(tensor) };
    gguf.into_checkpoint(rename, joins)
}

/// Slices of a stack at most: there is one for each expert or head, and these are far fewer.
const MOST_SLICES: usize = 1 << 16;

/// The layer of an `attn_k_b`, and its heads.
fn split_keys(tensor: &TensorInfo) -> Option<(String, usize)> {
    let layer = tensor.name.strip_prefix("blk.")?.strip_suffix(".attn_k_b.weight")?;
    let heads = tensor.shape.first().copied().filter(|&heads| heads <= MOST_SLICES)?;
    Some((layer.to_owned(), heads))
}

fn rename(tensor: &TensorInfo) -> GgufName {
    let whole = |name: &str| GgufName::Whole(name.to_owned());
    match &tensor.name[..] {
        "token_embd.weight" => return whole("model.embed_tokens.weight"),
        "output_norm.weight" => return whole("model.norm.weight"),
        "output.weight" => return whole("lm_head.weight"),
        _ => {}
    }
    let layer_and_name = tensor.name.strip_prefix("blk.").and_then(|name| name.split_once('.'));
    let Some((layer, name)) = layer_and_name else { return GgufName::Ignored };
    let at = format!("model.layers.{layer}");
    let count = tensor.shape.first().copied().unwrap_or(0);
    let stack = |prefix: &str, suffix: &str| {
        // More are refused later. One in a type that is not known has no length, and its first slice tells of it.
        let count = count.min(if tensor.length == 0 { 1 } else { MOST_SLICES });
        GgufName::Stacked((0..count).map(|index| format!("{at}.{prefix}.{index}{suffix}.weight")).collect())
    };
    let part = match name {
        "attn_k_b.weight" => return stack("self_attn.k_b", ""),
        "attn_v_b.weight" => return stack("self_attn.v_b", ""),
        "ffn_gate_exps.weight" => return stack("mlp.experts", ".gate_proj"),
        "ffn_up_exps.weight" => return stack("mlp.experts", ".up_proj"),
        "ffn_down_exps.weight" => return stack("mlp.experts", ".down_proj"),
        "attn_norm.weight" => "input_layernorm.weight",
        "ffn_norm.weight" => "post_attention_layernorm.weight",
        "attn_q.weight" => "self_attn.q_proj.weight",
        "attn_q_a.weight" => "self_attn.q_a_proj.weight",
        "attn_q_a_norm.weight" => "self_attn.q_a_layernorm.weight",
        "attn_q_b.weight" => "self_attn.q_b_proj.weight",
        "attn_kv_a_mqa.weight" => "self_attn.kv_a_proj_with_mqa.weight",
        "attn_kv_a_norm.weight" => "self_attn.kv_a_layernorm.weight",
        "attn_kv_b.weight" => "self_attn.kv_b_proj.weight",
        "attn_output.weight" => "self_attn.o_proj.weight",
        "ffn_gate.weight" => "mlp.gate_proj.weight",
        "ffn_up.weight" => "mlp.up_proj.weight",
        "ffn_down.weight" => "mlp.down_proj.weight",
        "ffn_gate_shexp.weight" => "mlp.shared_experts.gate_proj.weight",
        "ffn_up_shexp.weight" => "mlp.shared_experts.up_proj.weight",
        "ffn_down_shexp.weight" => "mlp.shared_experts.down_proj.weight",
        "ffn_gate_inp.weight" => "mlp.gate.weight",
        "exp_probs_b.bias" => "mlp.gate.e_score_correction_bias",
        _ => return GgufName::Ignored,
    };
    GgufName::Whole(format!("{at}.{part}"))
}
