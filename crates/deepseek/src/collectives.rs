//! What the devices of a mesh exchange in a step, read off the operator configs that stage 2 makes: a config with another
//! payload or topology changes what is predicted as it changes what runs.

use crate::{
    decoder_block::DecoderBlockConfig, hf::HfConfig, lm_head::LmHeadConfig, mla::MlaConfig, mlp::MlpConfig,
    model::ModelConfig, moe::MoeConfig, rms_norm::RmsNormConfig,
};
use dsv3_mesh::{
    AllGatherConfig, AllToAllConfig, Axis, Collective, Group, MeshShape, Moved, Rank, ReduceScatterConfig,
};
use dsv3_runtime::{LogitRows, PrefillStep};

/// Parts of a token in which visits to experts are counted, whose expected number is no whole one.
const PARTS: usize = 1 << 10;

/// A collective that one rank takes part in during a step, as often as the layers that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedCollective {
    /// Its way in the config, then what moves: `moe_decoder_block.mla.all_gather: latents`.
    pub name: String,
    /// What it does.
    pub collective: Collective,
    /// Who meets.
    pub group: Group,
    /// How many times in the step.
    pub times: u64,
    /// What the rank sends and receives each time.
    pub moved: Moved,
}

impl PlannedCollective {
    /// What the rank sends and receives in the whole step.
    pub fn moved_in_all(&self) -> Moved {
        let Moved { exchanges, sent, received } = self.moved;
        Moved { exchanges: self.times * exchanges, sent: self.times * sent, received: self.times * received }
    }
}

/// A step, as far as it decides what moves.
#[derive(Clone, Copy, Debug)]
pub enum PlannedStep<'a> {
    /// One token of each user, of whom each row of the mesh has so many.
    Decode(&'a [usize]),
    /// A chunk of one sequence.
    Prefill(PlannedChunk),
}

/// A chunk of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct PlannedChunk {
    /// Its tokens, which all rows of the mesh share.
    pub tokens: usize,
    /// Which of them get logits.
    pub logits: LogitRows,
    /// The row that caches the sequence.
    pub row: usize,
    /// Bytes of a layer's pages that hold the positions before the chunk. The other rows get a copy of them.
    pub context_bytes: u64,
}

/// What a rank exchanges in a step of the base model, in order. A mesh of one device exchanges nothing.
///
/// Where experts lie on single devices, tokens travel to those that they choose. They are taken to choose at random, as
/// for [`visited_experts`](crate::counts::visited_experts), and what is sent is what is to be expected.
///
/// # Panics
/// If the mesh has no such rank, or the step has users for another number of rows.
pub fn planned_collectives(
    hf: &HfConfig,
    cfg: &ModelConfig,
    (mesh, rank): (MeshShape, Rank),
    step: PlannedStep<'_>,
) -> Vec<PlannedCollective> {
    let rows = mesh.size(Axis::Rows);
    let (tokens, logits, context) = match step {
        PlannedStep::Decode(users) => {
            assert_eq!(users.len(), rows, "a number of users for each row");
            (users.to_vec(), users.to_vec(), None)
        }
        PlannedStep::Prefill(chunk) => {
            let step = PrefillStep::new(0, &[], chunk.logits);
            let shares: Vec<_> = (0..rows).map(|row| step.of_row(chunk.tokens, rows, row)).collect();
            let tokens: Vec<_> = shares.iter().map(|(own, _)| own.len()).collect();
            let logits = shares.iter().map(|(own, step)| logit_rows(step.logits, own.len())).collect();
            (tokens, logits, Some((chunk.row, chunk.context_bytes)))
        }
    };
    let row = mesh.coordinate(rank, Axis::Rows);
    let mut walk = Walk { hf, mesh, rank, row, tokens, context, at: "", times: 1, found: Vec::new() };
    let [dense, sparse] = [hf.first_k_dense_replace, hf.num_hidden_layers - hf.first_k_dense_replace];
    if let Some(cfg) = &cfg.mlp_decoder_block {
        (walk.at, walk.times) = ("mlp_decoder_block.", dense as u64);
        walk.block(cfg, Walk::mlp);
    }
    if let Some(cfg) = &cfg.moe_decoder_block {
        (walk.at, walk.times) = ("moe_decoder_block.", sparse as u64);
        walk.block(cfg, Walk::moe);
    }
    (walk.at, walk.times, walk.tokens) = ("", 1, logits);
    walk.norm("norm", &cfg.norm);
    walk.lm_head(&cfg.lm_head);
    if let Some(all_gather) = &cfg.all_gather {
        walk.gather_tokens("all_gather: logits", all_gather, hf.vocab_size);
    }
    walk.found
}

fn logit_rows(logits: LogitRows, tokens: usize) -> usize {
    match logits {
        LogitRows::None => 0,
        LogitRows::Last => 1,
        LogitRows::All => tokens,
    }
}

/// The way of a rank through the configs, in the order of the forwards.
struct Walk<'a> {
    hf: &'a HfConfig,
    mesh: MeshShape,
    rank: Rank,
    row: usize,
    /// Of each row of the mesh.
    tokens: Vec<usize>,
    /// In prefill, the row that caches the sequence, and the bytes of what it has cached.
    context: Option<(usize, u64)>,
    at: &'static str,
    times: u64,
    found: Vec<PlannedCollective>,
}

impl Walk<'_> {
    fn block<F>(&mut self, cfg: &DecoderBlockConfig<F>, second_half: impl Fn(&mut Self, &F)) {
        self.norm("mla_norm", &cfg.mla_norm);
        self.mla(&cfg.mla);
        self.norm("mlp_norm", &cfg.mlp_norm);
        second_half(self, &cfg.mlp);
    }

    fn norm(&mut self, name: &str, cfg: &RmsNormConfig) {
        let all_reduce = &cfg.all_reduce;
        let group = all_reduce.cluster_axis;
        let ranks = self.mesh.ranks(group, self.rank);
        let place = ranks.iter().take_while(|&&other| other != self.rank).count();
        let moved = all_reduce.moved([self.own(), 1], self.mesh.members(group), place);
        self.add(&format!("{name}.all_reduce: squares"), Collective::AllReduce, group, moved);
    }

    fn mla(&mut self, cfg: &MlaConfig) {
        let all_gather = &cfg.all_gather;
        self.gather_features("mla.all_gather: hidden state", all_gather, cfg.wo.out_features);
        self.gather_features("mla.all_gather: latents", all_gather, cfg.wkv_a.out_features);
        if let Some(sequence) = &cfg.sequence {
            let latents = "mla.sequence.all_gather: latents";
            self.gather_tokens(latents, &sequence.all_gather, cfg.paged_cache.features);
            self.copy_context();
        }
        if let Some(wq_a) = &cfg.wq_a {
            self.gather_features("mla.all_gather: compressed queries", all_gather, wq_a.out_features);
        }
        let heads = cfg.attention.heads * cfg.attention.v_head_dim;
        self.gather_features("mla.all_gather: heads", all_gather, heads);
    }

    /// The row that caches the sequence gives the others what it has cached.
    fn copy_context(&mut self) {
        let Some((root, bytes)) = self.context.filter(|&(_, bytes)| bytes > 0) else { return };
        let group = Group::Axis(Axis::Rows);
        let others = self.mesh.members(group) as u64 - 1;
        let moved = match self.row == root {
            true => Moved { exchanges: 1, sent: others * bytes, received: 0 },
            false => Moved { exchanges: 1, sent: 0, received: bytes },
        };
        self.add("mla.sequence: context", Collective::Broadcast, group, moved);
    }

    fn mlp(&mut self, cfg: &MlpConfig) {
        let hidden = cfg.w1.in_features;
        self.gather_hidden("mlp.all_gather: hidden state", &cfg.all_gather, hidden);
        self.scatter("mlp.reduce_scatter: sums", &cfg.reduce_scatter, cfg.w2.out_features);
    }

    fn moe(&mut self, cfg: &MoeConfig) {
        let hidden = cfg.experts.w1.in_features;
        self.gather_hidden("mlp.all_gather: hidden state", &cfg.all_gather, hidden);
        if let Some(dispatch) = cfg.dispatch.as_ref().filter(|_| self.tokens.len() > 1) {
            let choices = 2 * self.hf.moe().experts_per_token;
            let config = &dispatch.all_to_all;
            self.visit("mlp.dispatch.all_to_all: tokens", config, hidden + choices);
            self.visit("mlp.dispatch.all_to_all: sums", config, hidden);
        }
        self.scatter("mlp.reduce_scatter: sums", &cfg.reduce_scatter, cfg.experts.w2.out_features);
    }

    fn lm_head(&mut self, cfg: &LmHeadConfig) {
        self.gather_hidden("lm_head.all_gather: hidden state", &cfg.all_gather, cfg.linear.in_features);
        self.gather_features("lm_head.all_gather: logits", &cfg.all_gather, cfg.linear.out_features);
    }

    /// Brings together `[tokens, hidden / members]`.
    fn gather_hidden(&mut self, name: &str, config: &AllGatherConfig, hidden: usize) {
        self.gather_features(name, config, hidden / self.mesh.members(config.cluster_axis));
    }

    /// Brings together `[tokens, cols]` of the devices of a row.
    fn gather_features(&mut self, name: &str, config: &AllGatherConfig, cols: usize) {
        let group = config.cluster_axis;
        let moved = config.moved([self.own(), cols], self.mesh.members(group));
        self.add(name, Collective::AllGather, group, moved);
    }

    /// Brings together `[tokens of the row, cols]` of the devices of a column.
    fn gather_tokens(&mut self, name: &str, config: &AllGatherConfig, cols: usize) {
        let moved = config.moved_uneven(&self.tokens, self.row, cols);
        self.add(name, Collective::AllGather, config.cluster_axis, moved);
    }

    /// Adds up `[tokens, cols]` of the devices of a row.
    fn scatter(&mut self, name: &str, config: &ReduceScatterConfig, cols: usize) {
        let group = config.cluster_axis;
        let moved = config.moved([self.own(), cols], self.mesh.members(group));
        self.add(name, Collective::ReduceScatter, group, moved);
    }

    /// Sends `cols` values of each token to, or back from, those devices of the column where it has an expert.
    fn visit(&mut self, name: &str, config: &AllToAllConfig, cols: usize) {
        let share = visiting_share(self.hf, self.mesh.devices()) * PARTS as f64;
        let visits = |tokens: usize| (tokens as f64 * share).round() as usize;
        let outgoing: Vec<_> = self.tokens.iter().map(|&tokens| visits(tokens)).collect();
        let from_each: Vec<_> = outgoing.iter().map(|&count| vec![count; self.tokens.len()]).collect();
        let Moved { exchanges, sent, received } = config.moved(&from_each, self.row, cols);
        let parts = PARTS as u64;
        // What comes back goes the other way.
        let [sent, received] = if name.ends_with("sums") { [received, sent] } else { [sent, received] };
        let moved = Moved { exchanges, sent: sent / parts, received: received / parts };
        self.add(name, Collective::AllToAll, config.cluster_axis, moved);
    }

    /// Tokens of this rank's row.
    fn own(&self) -> usize {
        self.tokens[self.row]
    }

    fn add(&mut self, name: &str, collective: Collective, group: Group, moved: Moved) {
        if moved.exchanges > 0 {
            let name = format!("{}{name}", self.at);
            self.found.push(PlannedCollective { name, collective, group, times: self.times, moved });
        }
    }
}

/// The share of tokens that have an expert on a device that holds one of `devices` equal parts of them, where each
/// chooses its groups at random, and then its experts among those of the groups.
fn visiting_share(hf: &HfConfig, devices: usize) -> f64 {
    let moe = hf.moe();
    let held = moe.routed_experts / devices;
    let in_group = moe.routed_experts / moe.groups;
    // Experts that lie beside each other on a device, by the groups that they are of.
    let groups = held.div_ceil(in_group);
    let in_each = held as f64 / groups as f64;
    let candidates = in_group * moe.topk_groups;
    let mut missed = 0.0;
    for chosen in 0..=groups.min(moe.topk_groups) {
        let share = ways(groups, chosen) * ways(moe.groups - groups, moe.topk_groups - chosen)
            / ways(moe.groups, moe.topk_groups);
        let there = chosen as f64 * in_each;
        // None of a token's experts is among those that are there.
        let spared: f64 = (0..moe.experts_per_token)
            .map(|choice| (1.0 - there / (candidates - choice) as f64).max(0.0))
            .product();
        missed += share * spared;
    }
    1.0 - missed
}

/// In how many ways `chosen` can be taken of `all`.
fn ways(all: usize, chosen: usize) -> f64 {
    if chosen > all {
        return 0.0;
    }
    (0..chosen).map(|index| (all - index) as f64 / (chosen - index) as f64).product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(path: &str) -> HfConfig {
        HfConfig::from_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
    }

    #[test]
    fn ways_to_choose() {
        assert_eq!([ways(5, 2), ways(8, 4), ways(3, 0), ways(2, 3)], [10.0, 70.0, 1.0, 0.0]);
    }

    #[test]
    fn the_share_of_tokens_that_visit_a_device() {
        let tiny = config("models/tiny/config.json");
        // All experts are there; half of them are: of four of eight groups, of which a token chooses four, and then
        // four of the 16 experts in them.
        assert!((visiting_share(&tiny, 1) - 1.0).abs() < 1e-12);
        let spared =
            1.0 / 70.0 + 16.0 / 70.0 * 495.0 / 1820.0 + 36.0 / 70.0 * 70.0 / 1820.0 + 16.0 / 70.0 / 1820.0;
        assert!((visiting_share(&tiny, 2) - (1.0 - spared)).abs() < 1e-12);
        // One expert: a token has four of 32.
        assert!((visiting_share(&tiny, 32) - 4.0 / 32.0).abs() < 1e-12);
        // 8 experts of a group of 32, which is one of 8 of which a token chooses 4; it takes 8 of the 128 in them.
        let large = config("testdata/configs/deepseek-v3-671b.json");
        let spared: f64 = (0..8).map(|choice| f64::from(120 - choice) / f64::from(128 - choice)).product();
        assert!((visiting_share(&large, 32) - 0.5 * (1.0 - spared)).abs() < 1e-12);
    }
}
