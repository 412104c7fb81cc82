//! A checkpoint's tensors against those that the model needs: what is there, what is missing, what is too much.

use super::line;
use crate::{model::lacks_mtp, output::count};
use dsv3_deepseek::{HfConfig, Model};
use dsv3_mesh::Layout;
use dsv3_runtime::{Checkpoint, Dtype, Error, Module, Part, Prefix, TensorInfo, WeightSpec, WeightTree};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

/// Names and problems of a sort that are shown to a person; JSON has all.
const SHOWN: usize = 10;

/// A checkpoint's contents.
#[derive(Default, Serialize)]
pub(super) struct Contents {
    files: usize,
    total: Tally,
    /// By what the tensors are for.
    by_kind: BTreeMap<Kind, Tally>,
    /// By the type of their elements.
    by_format: BTreeMap<String, Tally>,
    /// Tensors that no weight is made from, by the reason.
    not_needed: BTreeMap<&'static str, Vec<String>>,
    /// Tensors that a file holds and the index does not name.
    unindexed: Vec<String>,
    /// Whether config.json has an MTP layer that the checkpoint does not have; the model then runs without.
    mtp_layer_missing: bool,
    /// What keeps the checkpoint from being used.
    pub(super) problems: Vec<String>,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Tally {
    tensors: u64,
    bytes: u64,
}

/// What a tensor is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Embedding,
    Attention,
    DenseMlp,
    Gate,
    RoutedExperts,
    SharedExperts,
    Norms,
    Head,
    Mtp,
    NotNeeded,
}

impl Contents {
    /// Of a checkpoint, by the weights of a configuration.
    pub(super) fn of(checkpoint: &Checkpoint, hf: &HfConfig) -> Self {
        let mtp_layer_missing = lacks_mtp(hf, checkpoint);
        let mut hf = hf.clone();
        if mtp_layer_missing {
            hf.mtp_layers = 0;
        }
        let mut contents = Self {
            files: checkpoint.shards().len(),
            unindexed: checkpoint.unindexed().to_vec(),
            mtp_layer_missing,
            ..Self::default()
        };
        let mut needed = HashSet::new();
        let specs = Model::weight_specs(&hf, &Prefix::root(), Layout::SINGLE);
        specs.for_each(|path, spec| {
            contents.visit(checkpoint, Kind::of(&path.to_string()), &spec, &mut needed);
        });
        for info in checkpoint.tensors() {
            contents.total.add(info);
            contents.by_format.entry(info.dtype.to_string()).or_default().add(info);
            if !needed.contains(&info.name) {
                contents.by_kind.entry(Kind::NotNeeded).or_default().add(info);
                let reason = why_not_needed(&info.name, &hf);
                contents.not_needed.entry(reason).or_default().push(info.name.clone());
            }
        }
        contents
    }

    /// Looks one weight up, its scales included. One that stands in the tree twice (the head of a model with tied
    /// embeddings, and what the MTP layer shares) counts where it comes first.
    fn visit(
        &mut self,
        checkpoint: &Checkpoint,
        kind: Kind,
        spec: &WeightSpec,
        needed: &mut HashSet<String>,
    ) {
        if !needed.insert(spec.source.clone()) {
            return;
        }
        let Some(info) = checkpoint.get(&spec.source) else {
            match checkpoint.join(&spec.source) {
                Some(parts) => self.visit_parts(checkpoint, kind, spec, parts, needed),
                None => self.problems.push(format!("tensor {}: missing", spec.source)),
            }
            return;
        };
        let tally = self.by_kind.entry(kind).or_default();
        tally.add(info);
        if info.shape != spec.shape {
            let (expected, got) = (&spec.shape, &info.shape);
            self.problems.push(format!("tensor {}: expected shape {expected:?}, got {got:?}", info.name));
        } else if info.dtype == Dtype::F8E4M3 {
            match scales(checkpoint, spec) {
                Ok(scales) => {
                    tally.add(&scales);
                    needed.insert(scales.name);
                }
                Err(problem) => self.problems.push(problem.to_string()),
            }
        } else if let Err(problem) = checkpoint.tensor(&info.name) {
            self.problems.push(problem.to_string());
        }
    }

    /// Looks up the parts of a weight that lies in parts.
    fn visit_parts(
        &mut self,
        checkpoint: &Checkpoint,
        kind: Kind,
        spec: &WeightSpec,
        parts: &[Part],
        needed: &mut HashSet<String>,
    ) {
        let tally = self.by_kind.entry(kind).or_default();
        let problems = self.problems.len();
        let mut shape = [0, 0];
        for part in parts {
            match checkpoint.tensor(&part.tensor) {
                Ok(tensor) => {
                    if let Some([rows, cols]) = part.shape(&tensor.info) {
                        shape = [shape[0] + rows, cols];
                    }
                    if needed.insert(part.tensor.clone()) {
                        tally.add(&tensor.info);
                    }
                }
                Err(problem) => self.problems.push(problem.to_string()),
            }
        }
        if self.problems.len() == problems && shape[..] != spec.shape[..] {
            let expected = &spec.shape;
            let problem =
                format!("tensor {}: expected shape {expected:?}, its parts have {shape:?}", spec.source);
            self.problems.push(problem);
        }
    }
}

/// The block scales of an FP8 weight.
fn scales(checkpoint: &Checkpoint, spec: &WeightSpec) -> Result<TensorInfo, Error> {
    let block = spec.scale_block.ok_or_else(|| Error::Tensor {
        name: spec.source.clone(),
        message: "is F8_E4M3, but config.json has no quantization_config for it".to_owned(),
    })?;
    Ok(checkpoint.scales(&spec.source, block)?.info)
}

/// Why no weight is made from a tensor.
fn why_not_needed(name: &str, hf: &HfConfig) -> &'static str {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let part = layer.and_then(|(index, part)| {
        let is_mtp = index.parse::<usize>().is_ok_and(|index| index >= hf.num_hidden_layers);
        is_mtp.then_some(part)
    });
    match part {
        Some("embed_tokens.weight" | "shared_head.head.weight") => {
            "the MTP layer's copies of embedding and head"
        }
        Some(_) => "layers beyond those that run",
        None if name.ends_with("rotary_emb.inv_freq") => "rotary frequencies, which config.json gives",
        None => "not part of this architecture",
    }
}

impl Tally {
    fn add(&mut self, info: &TensorInfo) {
        self.tensors += 1;
        self.bytes += info.length;
    }
}

impl Kind {
    /// By the weight's place in the tree, as in `moe_decoder_block.3.mlp.experts.7.w1`.
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.split('.').collect();
        match &parts[..] {
            ["embedding", ..] => Self::Embedding,
            ["lm_head", ..] => Self::Head,
            ["mtp", ..] => Self::Mtp,
            ["norm", ..] | [_, _, "mla_norm" | "mlp_norm", ..] | [_, _, "mla", "q_norm" | "kv_norm"] => {
                Self::Norms
            }
            [_, _, "mla", ..] => Self::Attention,
            [_, _, "mlp", "gate", ..] => Self::Gate,
            [_, _, "mlp", "experts", ..] => Self::RoutedExperts,
            [_, _, "mlp", "shared_experts", ..] => Self::SharedExperts,
            _ => Self::DenseMlp,
        }
    }
}

/// For a table.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::DenseMlp => "dense MLP",
            Self::Gate => "gate",
            Self::RoutedExperts => "routed experts",
            Self::SharedExperts => "shared experts",
            Self::Norms => "norms",
            Self::Head => "head",
            Self::Mtp => "MTP layer",
            Self::NotNeeded => "not needed",
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, bytes) = (HumanCount(self.tensors).to_string(), DecimalBytes(self.bytes).to_string());
        write!(f, "{tensors:>9} tensors {bytes:>11}")
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, count(self.files as u64, "file"), self.total)?;
        writeln!(f)?;
        for (kind, tally) in &self.by_kind {
            line(f, kind, tally)?;
        }
        writeln!(f)?;
        for (format, tally) in &self.by_format {
            line(f, format, tally)?;
        }
        for (reason, names) in &self.not_needed {
            list(f, &format!("not needed ({reason})"), names)?;
        }
        list(f, "in a file, but not in the index", &self.unindexed)?;
        if self.mtp_layer_missing {
            writeln!(
                f,
                "\nthe MTP layer of config.json is not in the checkpoint: the model runs without it"
            )?;
        }
        list(f, "problems", &self.problems)?;
        if self.problems.is_empty() {
            writeln!(f, "\nthe checkpoint has every tensor that the model needs")?;
        }
        Ok(())
    }
}

/// A heading and the first of its lines; nothing where there is none.
fn list(f: &mut fmt::Formatter<'_>, heading: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{heading}: {}", lines.len())?;
    for text in lines.iter().take(SHOWN) {
        writeln!(f, "  {text}")?;
    }
    if lines.len() > SHOWN {
        writeln!(f, "  ... and {} more (all of them with --json)", lines.len() - SHOWN)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_weight_of_a_model_has_its_kind() {
        for (path, kind) in [
            ("embedding.weight", Kind::Embedding),
            ("mlp_decoder_block.0.mla_norm.weight", Kind::Norms),
            ("mlp_decoder_block.0.mla.wo", Kind::Attention),
            ("mlp_decoder_block.0.mla.wo_bias", Kind::Attention),
            ("mlp_decoder_block.0.mlp.w1", Kind::DenseMlp),
            ("moe_decoder_block.3.mla.kv_norm", Kind::Norms),
            ("moe_decoder_block.3.mlp.gate.e_score_correction_bias", Kind::Gate),
            ("moe_decoder_block.3.mlp.experts.7.w1", Kind::RoutedExperts),
            ("moe_decoder_block.3.mlp.shared_experts.w2", Kind::SharedExperts),
            ("norm.weight", Kind::Norms),
            ("lm_head.weight", Kind::Head),
            ("mtp.eh_proj", Kind::Mtp),
        ] {
            assert_eq!(Kind::of(path), kind, "{path}");
        }
    }

    #[test]
    fn kinds_and_formats_each_add_up_to_the_whole() {
        for name in ["odd-fp8", "moonlight-bf16"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name);
            let hf = HfConfig::from_file(&dir.join("config.json")).unwrap();
            let checkpoint = Checkpoint::open(&dir).unwrap();
            let contents = Contents::of(&checkpoint, &hf);
            assert_eq!(contents.problems, [""; 0], "{name}");
            assert_eq!(contents.total.bytes, checkpoint.total_bytes());
            for tallies in [
                contents.by_kind.values().collect::<Vec<_>>(),
                contents.by_format.values().collect::<Vec<_>>(),
            ] {
                let sum = |part: fn(&Tally) -> u64| tallies.iter().map(|&tally| part(tally)).sum::<u64>();
                assert_eq!(sum(|tally| tally.tensors), contents.total.tensors, "{name}");
                assert_eq!(sum(|tally| tally.bytes), contents.total.bytes, "{name}");
            }
        }
    }
}
