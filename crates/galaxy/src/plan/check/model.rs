//! Whether operations are those of the model. What each must be given follows from config.json and the mesh alone: sizes are
//! derived here a second time, and not taken from the planner, whose errors are to be found.

use super::{Refusal, arguments::Call, equal, must};
use crate::hardware::TILE;
use dsv3_deepseek::{
    HfConfig,
    hf::{AttentionShape, LORA_NORM_EPS, MoeConfig},
};
use dsv3_mesh::{Axis, MeshShape};

/// What operations must be given.
#[derive(Clone, Debug)]
pub struct ModelRules {
    hf: HfConfig,
    mesh: MeshShape,
}

/// The attention in prefill and decode, by the operators' names.
const ATTENTION: [&str; 3] = ["flash_mla_decode", "flash_mla_prefill", "chunked_flash_mla_prefill"];

impl ModelRules {
    /// Those of a model on a mesh.
    pub fn new(hf: &HfConfig, mesh: MeshShape) -> Self {
        Self { hf: hf.clone(), mesh }
    }

    /// Refuses an operation whose weight, cache or numbers are not the model's.
    pub(super) fn check(&self, name: &str, call: &Call) -> Result<(), Refusal> {
        if let (Some(weight), Some(shape)) = (call.weights.first(), self.weight(name, &call.op)) {
            let got = weight.shape.iter().map(|&side| side as usize);
            let expected = format!("{shape:?}, as the model has it");
            let what = match call.op.as_str() {
                "linear" => "shape of input_tensor_b",
                "all_to_all_dispatch" | "all_to_all_combine" => "shape of expert_mapping_tensor",
                _ => "shape of weight",
            };
            must(got.eq(shape), what, expected, format_args!("{:?}", weight.shape))?;
        }
        let (what, cache) = match call.op.as_str() {
            "paged_update_cache" | "paged_fill_cache" => ("width of cache_tensor", call.inputs.first()),
            "flash_mla_decode" | "chunked_flash_mla_prefill" => {
                ("width of input_tensor_k", call.inputs.get(1))
            }
            _ => ("", None),
        };
        if let Some(width) = cache.and_then(|cache| cache.shape.last()) {
            let shape = &self.hf.attention;
            equal(what, &(shape.kv_lora_rank + shape.qk_rope_head_dim), &(*width as usize))?;
        }
        self.check_numbers(name, call)
    }

    /// Numbers in an operator's config that are the model's.
    fn check_numbers(&self, name: &str, call: &Call) -> Result<(), Refusal> {
        let number = |field: &str, expected: f32| {
            let got = call.config.get(field).and_then(serde_json::Value::as_f64);
            let is_so = got.is_some_and(|got| (got as f32).to_bits() == expected.to_bits());
            must(is_so, field, format_args!("{expected}, as the model has it"), format_args!("{got:?}"))
        };
        match call.op.as_str() {
            op if ATTENTION.contains(&op) => {
                number("scale", self.hf.softmax_scale())?;
                number("head_dim_v", self.hf.attention.kv_lora_rank as f32)
            }
            "rms_norm" => number("epsilon", LORA_NORM_EPS),
            "rms_norm_post_all_gather" => number("epsilon", self.hf.rms_norm_eps),
            "deepseek_moe_gate" => match &self.hf.moe {
                Some(moe) => number("scaling_factor", moe.routed_scaling_factor),
                None => Err(Refusal::new("op", "a model with experts", name)),
            },
            _ => Ok(()),
        }
    }

    /// The shape of an operation's first weight on each device. Names are upstream's.
    fn weight(&self, name: &str, op: &str) -> Option<Vec<usize>> {
        let mut path = name.rsplit('.');
        let (operation, module) = (path.next()?, path.next().unwrap_or_default());
        let hidden = self.hf.hidden_size;
        let of_columns = |size: usize| size / self.mesh.size(Axis::Columns);
        let sticks = |width: usize| Some(vec![1, 1, width / TILE as usize, TILE as usize]);
        let shape = match operation {
            "q_norm" => return sticks(self.hf.attention.q_lora_rank?),
            "kv_norm" => return sticks(self.hf.attention.kv_lora_rank),
            _ if op == "rms_norm_post_all_gather" => return sticks(of_columns(hidden)),
            "w1" | "w3" => vec![1, hidden, of_columns(self.mlp_width(module)?)],
            "w2" => vec![1, of_columns(self.mlp_width(module)?), hidden],
            "eh_proj" => vec![1, 1, of_columns(hidden), 2 * hidden],
            "linear" if module.starts_with("lm_head") => vec![1, 1, of_columns(self.hf.vocab_size), hidden],
            "embedding" => vec![1, 1, self.hf.vocab_size, hidden / self.mesh.devices()],
            "cos" | "sin" => return None,
            _ => {
                return self.of_attention(operation).or_else(|| self.of_experts(operation));
            }
        };
        Some(shape)
    }

    /// The width of a dense layer's MLP, or of the shared experts together.
    fn mlp_width(&self, module: &str) -> Option<usize> {
        match module {
            "shared_expert" => Some(self.hf.moe.as_ref()?.shared_intermediate_size()),
            _ => Some(self.hf.intermediate_size),
        }
    }

    fn of_attention(&self, operation: &str) -> Option<Vec<usize>> {
        let AttentionShape { heads, q_lora_rank, kv_lora_rank, .. } = self.hf.attention;
        let AttentionShape { qk_nope_head_dim, qk_rope_head_dim, v_head_dim, .. } = self.hf.attention;
        let columns = self.mesh.size(Axis::Columns);
        let (rank, hidden) = (q_lora_rank?, self.hf.hidden_size / columns);
        Some(match operation {
            "wq_kv_a" => vec![1, hidden, rank + kv_lora_rank + qk_rope_head_dim],
            "wq_b" => vec![1, rank, heads / columns * (qk_nope_head_dim + qk_rope_head_dim)],
            "wkv_b1" => vec![1, heads / columns, qk_nope_head_dim, kv_lora_rank],
            "wkv_b2" => vec![1, heads, kv_lora_rank, v_head_dim],
            "wo" => vec![1, heads * v_head_dim, hidden],
            _ => return None,
        })
    }

    fn of_experts(&self, operation: &str) -> Option<Vec<usize>> {
        let MoeConfig { routed_experts, intermediate_size, .. } = *self.hf.moe.as_ref()?;
        let (hidden, devices) = (self.hf.hidden_size, self.mesh.devices());
        let local = routed_experts / devices;
        Some(match operation {
            "gate_proj" => vec![1, 1, routed_experts, hidden],
            "w1_experts" | "w3_experts" => vec![1, local, intermediate_size, hidden],
            "w2_experts" => vec![1, local, hidden, intermediate_size],
            "all_to_all_dispatch" | "all_to_all_combine" => vec![1, 1, routed_experts, devices],
            _ => return None,
        })
    }
}
