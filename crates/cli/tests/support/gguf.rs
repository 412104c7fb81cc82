//! Writes a checkpoint as llama.cpp's converter does: experts stacked, `kv_b_proj` cut into transposed keys and values.

use safetensors::SafeTensors;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// ggml's numbers of types.
const F32: u32 = 0;
const Q4_1: u32 = 3;
const Q5_0: u32 = 6;
const BF16: u32 = 30;
const ALIGNMENT: usize = 32;

type Tensor = (Vec<usize>, Vec<u8>);

/// What becomes of matrices whose rows are multiples of 32: experts, and what is not attention's, may be `q4_1`, the
/// others `q5_0`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Matrices {
    /// Stay in bf16.
    Kept,
    /// The same, `kv_b_proj` whole and, as ik_llama.cpp's converter has them, in halves that do not tell heads apart.
    KeptWhole,
    /// Blocks.
    InBlocks,
    /// F32, the values of these blocks.
    ValuesOfBlocks,
}

/// Writes a bf16 checkpoint without compressed queries and with tied embeddings, such as `moonlight-bf16`.
pub fn write_gguf(checkpoint: &Path, file: &Path) {
    write_gguf_as(checkpoint, file, Matrices::Kept);
}

/// The same, its matrices in another type.
pub fn write_gguf_as(checkpoint: &Path, file: &Path, matrices: Matrices) {
    let config: Value = serde_json::from_slice(&fs::read(checkpoint.join("config.json")).unwrap()).unwrap();
    let tensors = renamed(checkpoint, &config, matrices == Matrices::KeptWhole);
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
        let is_bf16 = bytes.len() == shape.iter().product::<usize>() * 2;
        let is_matrix = shape.len() > 1 && shape[shape.len() - 1].is_multiple_of(32);
        let stay = matches!(matrices, Matrices::Kept | Matrices::KeptWhole);
        let (kind, bytes) = if is_bf16 && is_matrix && !name.contains("ffn_gate_inp") && !stay {
            in_blocks(name, bytes, matrices)
        } else {
            (if is_bf16 { BF16 } else { F32 }, bytes.clone())
        };
        head.extend(kind.to_le_bytes());
        head.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    fs::write(file, [head, data].concat()).unwrap();
}

/// The type and the bytes of a matrix of bf16 that is put into blocks.
fn in_blocks(name: &str, bytes: &[u8], matrices: Matrices) -> (u32, Vec<u8>) {
    let kind = if name.contains("attn") { Q5_0 } else { Q4_1 };
    let (mut blocks, mut values) = (Vec::new(), Vec::new());
    for block in bytes.as_chunks::<64>().0 {
        let block =
            std::array::from_fn(|i| half::bf16::from_le_bytes([block[2 * i], block[2 * i + 1]]).to_f32());
        let (bytes, decoded) = if kind == Q5_0 { q5_0(&block) } else { q4_1(&block) };
        blocks.extend(bytes);
        values.extend(decoded.map(f32::to_le_bytes).concat());
    }
    if matrices == Matrices::InBlocks { (kind, blocks) } else { (F32, values) }
}

/// A block of 5 bits and its values, `d * (bits - 16)`.
fn q5_0(values: &[f32; 32]) -> (Vec<u8>, [f32; 32]) {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let d = half::f16::from_f32(largest / 15.0);
    let scale = d.to_f32();
    let bits = values
        .map(|value| if scale == 0.0 { 16 } else { (value / scale).round().clamp(-16.0, 15.0) as i32 + 16 });
    let fifth = (0..32).fold(0_u32, |fifth, i| fifth | (bits[i] as u32 >> 4) << i);
    let mut block = [d.to_le_bytes().to_vec(), fifth.to_le_bytes().to_vec()].concat();
    block.extend((0..16).map(|i| (bits[i] & 15 | (bits[i + 16] & 15) << 4) as u8));
    (block, bits.map(|bits| scale * (bits - 16) as f32))
}

/// A block of 4 bits and its values, `d * bits + m`.
fn q4_1(values: &[f32; 32]) -> (Vec<u8>, [f32; 32]) {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (d, m) = (half::f16::from_f32((most - least) / 15.0), half::f16::from_f32(least));
    let (scale, minimum) = (d.to_f32(), m.to_f32());
    let bits =
        values.map(
            |value| if scale == 0.0 { 0 } else { ((value - minimum) / scale).round().clamp(0.0, 15.0) as u8 },
        );
    let mut block = [d.to_le_bytes(), m.to_le_bytes()].concat();
    block.extend((0..16).map(|i| bits[i] | bits[i + 16] << 4));
    (block, bits.map(|bits| scale * f32::from(bits) + minimum))
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

fn renamed(checkpoint: &Path, config: &Value, is_whole: bool) -> BTreeMap<String, Tensor> {
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
                    let [mut keys, mut values] = cut(&tensor, config);
                    if is_whole {
                        for (shape, _) in [&mut keys, &mut values] {
                            *shape = vec![shape[0] * shape[1], shape[2]];
                        }
                        tensors.insert(format!("blk.{layer}.attn_kv_b.weight"), tensor);
                    }
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
