//! Writes a checkpoint as llama.cpp's converter does: experts stacked, `kv_b_proj` cut into transposed keys and values.

use safetensors::SafeTensors;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// ggml's number of bf16.
const BF16: u32 = 30;
const ALIGNMENT: usize = 32;

type Tensor = (Vec<usize>, Vec<u8>);

/// Writes a bf16 checkpoint without compressed queries and with tied embeddings, such as `moonlight-bf16`.
pub fn write_gguf(checkpoint: &Path, file: &Path) {
    let config: Value = serde_json::from_slice(&fs::read(checkpoint.join("config.json")).unwrap()).unwrap();
    let tensors = renamed(checkpoint, &config);
    let values = metadata(&config);
    let mut head = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((values.len() as u64).to_le_bytes());
    head.extend(values.concat());
    let mut data = Vec::new();
    for (name, (shape, bytes)) in &tensors {
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        head.extend(text(name));
        head.extend((shape.len() as u32).to_le_bytes());
        head.extend(shape.iter().rev().flat_map(|&side| (side as u64).to_le_bytes()));
        // Everything is bf16 but the gate's bias.
        let kind = if bytes.len() == shape.iter().product::<usize>() * 2 { BF16 } else { 0 };
        head.extend(kind.to_le_bytes());
        head.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    fs::write(file, [head, data].concat()).unwrap();
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn metadata(config: &Value) -> Vec<Vec<u8>> {
    let integer = |key: &str, value: u64| {
        [text(&format!("deepseek2.{key}")), 4_u32.to_le_bytes().into(), (value as u32).to_le_bytes().into()]
            .concat()
    };
    let float = |key: &str, field: &str| {
        let value = config[field].as_f64().unwrap() as f32;
        [text(&format!("deepseek2.{key}")), 6_u32.to_le_bytes().into(), value.to_le_bytes().into()].concat()
    };
    let size = |field: &str| config[field].as_u64().unwrap();
    let mut values =
        vec![[text("general.architecture"), 8_u32.to_le_bytes().into(), text("deepseek2")].concat()];
    for (key, field) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("vocab_size", "vocab_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.kv_lora_rank", "kv_lora_rank"),
        ("attention.value_length_mla", "v_head_dim"),
        ("rope.dimension_count", "qk_rope_head_dim"),
        ("leading_dense_block_count", "first_k_dense_replace"),
        ("expert_count", "n_routed_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_shared_count", "n_shared_experts"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        values.push(integer(key, size(field)));
    }
    values.push(integer("attention.key_length_mla", size("qk_nope_head_dim") + size("qk_rope_head_dim")));
    values.push(integer("expert_gating_func", 2));
    values.push([text("deepseek2.expert_weights_norm"), 7_u32.to_le_bytes().into(), vec![1]].concat());
    values.push(float("attention.layer_norm_rms_epsilon", "rms_norm_eps"));
    values.push(float("rope.freq_base", "rope_theta"));
    values.push(float("expert_weights_scale", "routed_scaling_factor"));
    values
}

fn renamed(checkpoint: &Path, config: &Value) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    let mut experts = BTreeMap::<String, BTreeMap<usize, Tensor>>::new();
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let shard = fs::read(checkpoint.join(shard)).unwrap();
        for (name, view) in SafeTensors::deserialize(&shard).unwrap().tensors() {
            let tensor = (view.shape().to_vec(), view.data().to_vec());
            let parts: Vec<&str> = name.split('.').collect();
            match parts[..] {
                ["model", "embed_tokens", _] => drop(tensors.insert("token_embd.weight".to_owned(), tensor)),
                ["model", "norm", _] => drop(tensors.insert("output_norm.weight".to_owned(), tensor)),
                ["model", "layers", layer, "mlp", "experts", expert, part, _] => {
                    let name = format!("blk.{layer}.ffn_{}_exps.weight", part.trim_end_matches("_proj"));
                    experts.entry(name).or_default().insert(expert.parse().unwrap(), tensor);
                }
                ["model", "layers", layer, "self_attn", "kv_b_proj", _] => {
                    let [keys, values] = cut(&tensor, config);
                    tensors.insert(format!("blk.{layer}.attn_k_b.weight"), keys);
                    tensors.insert(format!("blk.{layer}.attn_v_b.weight"), values);
                }
                ["model", "layers", layer, ref rest @ ..] => {
                    if let Some(name) = layer_name(&rest.join(".")) {
                        tensors.insert(format!("blk.{layer}.{name}"), tensor);
                    }
                }
                _ => panic!("{name}"),
            }
        }
    }
    for (name, stack) in experts {
        let shape = stack[&0].0.clone();
        let bytes = stack.values().flat_map(|(_, bytes)| bytes.clone()).collect();
        tensors.insert(name, ([vec![stack.len()], shape].concat(), bytes));
    }
    tensors
}

/// For each head its key rows, transposed, and its value rows.
fn cut((shape, bytes): &Tensor, config: &Value) -> [Tensor; 2] {
    let size = |field: &str| config[field].as_u64().unwrap() as usize;
    let (heads, nope, value) = (size("num_attention_heads"), size("qk_nope_head_dim"), size("v_head_dim"));
    let rank = shape[1];
    let element = |row: usize, col: usize| &bytes[(row * rank + col) * 2..][..2];
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for head in 0..heads {
        let first = head * (nope + value);
        for col in 0..rank {
            keys.extend((0..nope).flat_map(|row| element(first + row, col)));
        }
        values.extend(&bytes[(first + nope) * rank * 2..(first + nope + value) * rank * 2]);
    }
    [(vec![heads, rank, nope], keys), (vec![heads, value, rank], values)]
}

fn layer_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "input_layernorm.weight" => "attn_norm.weight",
        "post_attention_layernorm.weight" => "ffn_norm.weight",
        "self_attn.q_proj.weight" => "attn_q.weight",
        "self_attn.kv_a_proj_with_mqa.weight" => "attn_kv_a_mqa.weight",
        "self_attn.kv_a_layernorm.weight" => "attn_kv_a_norm.weight",
        "self_attn.o_proj.weight" => "attn_output.weight",
        "mlp.gate_proj.weight" => "ffn_gate.weight",
        "mlp.up_proj.weight" => "ffn_up.weight",
        "mlp.down_proj.weight" => "ffn_down.weight",
        "mlp.shared_experts.gate_proj.weight" => "ffn_gate_shexp.weight",
        "mlp.shared_experts.up_proj.weight" => "ffn_up_shexp.weight",
        "mlp.shared_experts.down_proj.weight" => "ffn_down_shexp.weight",
        "mlp.gate.weight" => "ffn_gate_inp.weight",
        "mlp.gate.e_score_correction_bias" => "exp_probs_b.bias",
        _ => return None, // rotary_emb.inv_freq
    })
}
