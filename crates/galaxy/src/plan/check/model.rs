//! Whether the weights of a list are the model's. What each must be on a device follows from config.json and the mesh alone.

use super::{Refusal, arguments::Call, must};
use crate::plan::request::Dimensions;

/// What weights must be.
#[derive(Clone, Debug)]
pub struct ModelRules {
    dimensions: Dimensions,
}

impl ModelRules {
    /// Those of a model on a mesh.
    pub fn new(dimensions: &Dimensions) -> Self {
        Self { dimensions: dimensions.clone() }
    }

    /// Refuses an operation whose first weight has not the model's dimensions.
    pub(super) fn check(&self, name: &str, call: &Call) -> Result<(), Refusal> {
        let Some(weight) = call.weights.first() else { return Ok(()) };
        let Some(shape) = self.shape(name) else { return Ok(()) };
        let expected = format!("{shape:?}, as the model has it");
        must(weight.shape == shape, "weight", expected, format_args!("{:?}", weight.shape))
    }

    /// The shape of an operation's weight on each device. Names are upstream's.
    fn shape(&self, name: &str) -> Option<Vec<u32>> {
        let d = &self.dimensions;
        let a = &d.attention;
        let mut path = name.rsplit('.');
        let (operation, module) = (path.next()?, path.next().unwrap_or_default());
        let experts = d.experts.as_ref();
        let width = if module == "shared_expert" { experts?.local_shared } else { d.local_dense };
        let shape = match operation {
            "wq_kv_a" => vec![1, d.local_hidden, a.query_rank + a.latent_rank + a.rope],
            "wq_b" => vec![1, a.query_rank, a.local_heads * (a.nope + a.rope)],
            "wkv_b1" => vec![1, a.local_heads, a.nope, a.latent_rank],
            "wkv_b2" => vec![1, a.heads, a.latent_rank, a.value],
            "wo" => vec![1, a.heads * a.value, d.local_hidden],
            "w1" | "w3" => vec![1, d.hidden, width],
            "w2" => vec![1, width, d.hidden],
            "gate_proj" => vec![1, 1, experts?.routed, d.hidden],
            "w1_experts" | "w3_experts" => vec![1, experts?.local, experts?.width, d.hidden],
            "w2_experts" => vec![1, experts?.local, d.hidden, experts?.width],
            "eh_proj" => vec![1, 1, d.local_hidden, 2 * d.hidden],
            "linear" if module.starts_with("lm_head") => vec![1, 1, d.local_vocabulary, d.hidden],
            "embedding" => vec![1, 1, d.vocabulary, d.embedding_part],
            "all_to_all_dispatch" | "all_to_all_combine" => vec![1, 1, experts?.routed, d.devices()],
            _ => return None,
        };
        Some(shape)
    }
}
