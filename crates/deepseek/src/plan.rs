//! What each device of a mesh is to hold, from the configuration alone or with a checkpoint's headers.

use crate::{
    Model,
    hf::HfConfig,
    kinds,
    model::{ModelConfig, ModelWeights},
};
use dsv3_mesh::{Layout, Rank};
use dsv3_runtime::{Error, Format, Formats, Module, Prefix, WeightKind, WeightPath, WeightSpec, WeightTree};

/// What a device is to hold of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedWeight {
    /// What it is for; none for norms, biases and the gate.
    pub kind: Option<WeightKind>,
    /// Its format. Vectors are held in f32.
    pub format: Format,
    /// Its bytes, scales included; none where it lies on another device.
    pub bytes: u64,
}

/// What a device is to hold of all weights of a kind in a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldWeights {
    /// What they are for; none for norms, biases and the gate.
    pub kind: Option<WeightKind>,
    /// Their format.
    pub format: Format,
    /// How many there are.
    pub tensors: usize,
    /// Their bytes, scales included.
    pub bytes: u64,
}

/// What a rank is to hold of every weight where stage 1 is asked for `formats`. `stored` says what a weight has where
/// nothing is asked for: [`WeightSpec::stored_format`] of a checkpoint, or [`usual_format`] without one. How much of it
/// a step reads, [`planned_step_bytes`](crate::planned_step_bytes) tells.
///
/// # Errors
/// A model that does not divide over the mesh; a part that cannot have its format; those of `stored`.
pub fn plan_weights(
    hf: &HfConfig,
    (layout, rank): (Layout, Rank),
    formats: &Formats,
    stored: &dyn Fn(&WeightSpec) -> Result<Format, Error>,
) -> Result<ModelWeights<PlannedWeight>, Error> {
    let specs = Model::weight_specs(hf, &Prefix::root(), layout);
    specs.try_map(&mut WeightPath::default(), &mut |_, spec: WeightSpec| {
        let shape = spec.local_shape(layout, rank)?;
        let cols = shape.last().copied().unwrap_or(0);
        let format = match shape[..] {
            [_] => Format::F32,
            _ => formats.choose(spec.kind, stored(&spec)?, cols),
        };
        Ok(PlannedWeight { kind: spec.kind, format, bytes: spec.local_bytes(layout, rank, format)? })
    })
}

/// The format that a weight has in DeepSeek's own checkpoints: FP8 with scales where the model is quantised, but bf16
/// for the embedding, the head, the gate and what joins the inputs of the MTP layer. Vectors are f32 once they are
/// loaded.
pub fn usual_format(spec: &WeightSpec) -> Format {
    let is_bf16 = |kind| kind == kinds::EMBEDDING || kind == kinds::HEAD;
    match spec.kind {
        None if spec.shape.len() == 1 => Format::F32,
        Some(kind)
            if spec.scale_block.is_some() && !is_bf16(kind) && !spec.source.ends_with("eh_proj.weight") =>
        {
            Format::Fp8
        }
        _ => Format::Bf16,
    }
}

/// Planned weights by kind and format. What the MTP layer takes of the base model counts once.
pub fn held_weights(plan: &ModelWeights<PlannedWeight>) -> Vec<HeldWeights> {
    let mut held: Vec<HeldWeights> = Vec::new();
    plan.clone().for_each(|path, weight| {
        let path = path.to_string();
        let is_shared = path.starts_with("mtp.embedding.") || path.starts_with("mtp.lm_head.");
        let PlannedWeight { kind, format, bytes } = weight;
        if is_shared || bytes == 0 {
            return;
        }
        match held.iter_mut().find(|held| (held.kind, held.format) == (kind, format)) {
            Some(known) => {
                known.tensors += 1;
                known.bytes += bytes;
            }
            None => held.push(HeldWeights { kind, format, tensors: 1, bytes }),
        }
    });
    held
}

/// About how many bytes a device works in beside weights and cache when it prefills `tokens` of a chunk, `logit_rows` of
/// which get logits: the activations of each kind of layer, which are kept for the next one.
pub fn scratch_bytes(hf: &HfConfig, cfg: &ModelConfig, tokens: usize, logit_rows: usize) -> u64 {
    let hidden = hf.hidden_size;
    let block = cfg.moe_decoder_block.as_ref().map(|block| &block.mla);
    let attention = block.or(cfg.mlp_decoder_block.as_ref().map(|block| &block.mla)).map_or(0, |mla| {
        let heads = mla.attention.heads;
        let queries = mla.wq_b.in_features + mla.wq_b.out_features;
        // What the heads give: as it is summed up, of this device, and of all.
        let values = 2 * heads * mla.attention.v_head_dim + mla.wo.in_features;
        hidden + mla.paged_cache.features + queries + values + mla.wo.out_features
    });
    // In, what the gate and the up projection give, out.
    let dense = cfg.mlp_decoder_block.as_ref().map_or(0, |block| 2 * hidden + 2 * block.mlp.w1.out_features);
    let sparse = cfg.moe_decoder_block.as_ref().map_or(0, |block| {
        let experts = &block.mlp.experts;
        let shared = block.mlp.shared_experts.as_ref().map_or(0, |shared| 2 * shared.w1.out_features);
        // A token's features are gathered for each of its experts, in half of the bytes where these are integers.
        2 * hidden + hf.moe().experts_per_token * (hidden / 2 + 2 * experts.w1.out_features) + shared
    });
    // Residual, and normed.
    let around = 2 * cfg.embedding.features;
    let head = logit_rows * (cfg.lm_head.linear.out_features + hf.vocab_size);
    ((tokens * (attention + dense + sparse + around) + head) * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kinds::parse_formats, planned_step_bytes, step_bytes};
    use dsv3_mesh::ExpertSharding;
    use dsv3_runtime::{Checkpoint, ConvertProgress, Weight, WeightLoader, WeightOutput};
    use std::path::{Path, PathBuf};

    fn workspace() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// A rank's weights as stage 1 makes them.
    fn loaded(
        hf: &HfConfig,
        checkpoint: &Checkpoint,
        formats: &Formats,
        (layout, rank): (Layout, Rank),
    ) -> ModelWeights<Weight> {
        let cache = tempfile::tempdir().unwrap();
        let mut progress = |_: ConvertProgress<'_>| {};
        let out = WeightOutput::new(cache.path(), layout, rank, &mut progress);
        let mut out = out.with_formats(formats.clone());
        let saved = Model::convert_weights(hf, &Prefix::root(), checkpoint, &mut out).unwrap();
        let mut loader = WeightLoader::new(checkpoint, cache.path());
        let load = &mut |_: &WeightPath, saved| loader.load(&saved);
        Model::try_map(saved, &mut WeightPath::default(), load).unwrap()
    }

    fn list<W>(weights: ModelWeights<W>, bytes: impl Fn(&W) -> u64) -> Vec<(String, u64)> {
        let mut list = Vec::new();
        weights.for_each(|path, weight| list.push((path.to_string(), bytes(&weight))));
        list
    }

    /// Every rank of every mesh: what is planned is what is loaded, byte for byte and weight for weight.
    #[test]
    fn what_is_planned_is_what_is_loaded() {
        for (model, mesh, experts, format) in [
            ("models/tiny", "1x1", ExpertSharding::Tensor, "keep"),
            ("models/tiny", "2x2", ExpertSharding::Tensor, "q8_0"),
            ("models/tiny", "2x4", ExpertSharding::Expert, "keep"),
            ("models/tiny", "4x8", ExpertSharding::Tensor, "keep"),
            ("models/tiny", "4x8", ExpertSharding::Expert, "keep"),
            ("testdata/odd-fp8", "1x4", ExpertSharding::Tensor, "keep"),
            ("testdata/odd-fp8", "2x2", ExpertSharding::Expert, "q4_K"),
            ("testdata/moonlight-bf16", "2x1", ExpertSharding::Tensor, "keep"),
            ("testdata/moonlight-bf16", "2x4", ExpertSharding::Expert, "q8_0"),
        ] {
            let dir = workspace().join(model);
            let hf = HfConfig::from_file(&dir.join("config.json")).unwrap();
            let checkpoint = Checkpoint::open(&dir).unwrap();
            let layout = Layout { mesh: mesh.parse().unwrap(), experts };
            let formats = parse_formats(format).unwrap();
            for at in layout.weight_ranks().map(|rank| (layout, rank)) {
                let plan =
                    plan_weights(&hf, at, &formats, &|spec| spec.stored_format(&checkpoint, at.0, at.1))
                        .unwrap();
                let weights = loaded(&hf, &checkpoint, &formats, at);
                let planned = list(plan.clone(), |weight| weight.bytes);
                assert_eq!(planned, list(weights.clone(), Weight::bytes), "{model} {at:?}");
                for tokens in [1, 3] {
                    assert_eq!(planned_step_bytes(&hf, &plan, tokens), step_bytes(&hf, &weights, tokens));
                }
            }
        }
    }

    #[test]
    fn ranks_that_share_a_cache_hold_the_same() {
        let hf = HfConfig::from_file(&workspace().join("models/tiny/config.json")).unwrap();
        for experts in [ExpertSharding::Tensor, ExpertSharding::Expert] {
            let layout = Layout { mesh: "4x8".parse().unwrap(), experts };
            for rank in (0..32).map(Rank) {
                let parts = |rank| {
                    let specs = Model::weight_specs(&hf, &Prefix::root(), layout);
                    let mut parts = Vec::new();
                    specs.for_each(|_, spec| parts.push(spec.local_range(layout, rank).unwrap()));
                    parts
                };
                assert_eq!(parts(rank), parts(layout.weight_rank(rank)));
            }
        }
    }

    #[test]
    fn the_671b_model_over_32_devices() {
        let hf = HfConfig::from_file(&workspace().join("testdata/configs/deepseek-v3-671b.json")).unwrap();
        let held = |experts| {
            let at = (Layout { mesh: "4x8".parse().unwrap(), experts }, Rank(9));
            let plan = plan_weights(&hf, at, &Formats::default(), &|spec| Ok(usual_format(spec))).unwrap();
            let held =
                held_weights(&plan).into_iter().find(|held| held.kind == Some(kinds::EXPERTS)).unwrap();
            (held.tensors, held.bytes, held.format)
        };
        // 59 layers with the MTP layer's; three matrices of 7168 x 2048 with a scale for each 128 x 128 of them.
        let (all, matrix) = (59 * 256 * 3, 7168 * 2048 + 4 * 56 * 16);
        assert_eq!(held(ExpertSharding::Tensor), (all, all as u64 * matrix / 8, Format::Fp8));
        assert_eq!(held(ExpertSharding::Expert), (all / 32, all as u64 * matrix / 32, Format::Fp8));
    }
}
