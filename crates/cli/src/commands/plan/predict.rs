//! What a step reads, computes and moves on the device that takes longest, and its time.

use super::{
    machines::Facts,
    subject::{Holders, Subject, holders_of},
};
use crate::{
    operator_configs::OperatorConfigs,
    session::{PAGE_SIZE, PREFILL_CHUNK},
};
use dsv3_deepseek::{
    HfConfig, ModelConfig, PlannedChunk, PlannedCollective, PlannedStep, StepTime, Work, busiest_share,
    counts::{cached_bytes, chunk_flops, visited_experts},
    planned_collectives, planned_step_bytes_of,
};
use dsv3_engine::{decode_message_bytes, prefill_message_bytes};
use dsv3_mesh::{Axis, Collective, ExpertSharding, Group, Layout, Moved, Rank};
use dsv3_runtime::{
    DecodeStep, LogitRows, PageId, PrefillStep, TokenId,
    ops::{CacheFormat, LatentCache},
};
use serde::Serialize;
use std::ops::Range;

/// A model on a mesh, ready to be predicted.
pub(super) struct LaidOut<'a> {
    pub(super) subject: &'a Subject,
    pub(super) layout: Layout,
    pub(super) configs: &'a OperatorConfigs,
    pub(super) holders: &'a [Holders],
    pub(super) cache: CacheFormat,
}

/// A decode step, or a prompt.
#[derive(Clone, Serialize)]
pub(super) struct Prediction {
    /// Sequences of a decode step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<usize>,
    /// Tokens of all sequences together.
    pub(super) tokens: usize,
    /// Tokens that each sequence has before.
    pub(super) depth: usize,
    /// Bytes of weights that the busiest device reads.
    pub(super) weight_bytes: u64,
    /// Bytes of cached tokens that it reads.
    pub(super) cache_bytes: u64,
    /// Operations that it does.
    pub(super) flops: u64,
    /// What the first rank sends and receives, in order.
    pub(super) collectives: Vec<Exchange>,
    /// Of all collectives.
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) exchanges: u64,
    pub(super) seconds: Seconds,
    pub(super) tokens_per_second: f64,
}

/// A collective of a step.
#[derive(Clone, Serialize)]
pub(super) struct Exchange {
    pub(super) name: String,
    pub(super) collective: String,
    pub(super) group: String,
    /// Times that it runs: once for each layer that has it.
    pub(super) times: u64,
    pub(super) exchanges: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Where the time goes.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Seconds {
    pub(super) read: f64,
    pub(super) compute: f64,
    pub(super) latency: f64,
    pub(super) transfer: f64,
    pub(super) all: f64,
}

impl From<StepTime> for Seconds {
    fn from(time: StepTime) -> Self {
        let StepTime { read, compute, latency, transfer } = time;
        Self { read, compute, latency, transfer, all: time.seconds() }
    }
}

impl LaidOut<'_> {
    /// A step in which each of `batch` sequences decodes the last token of its context.
    pub(super) fn decode(&self, batch: usize, context: usize, facts: &Facts) -> Prediction {
        let hf = &self.subject.hf;
        let users: Vec<_> = (0..self.rows()).map(|row| share(batch, self.rows(), row).len()).collect();
        let depth = context - 1;
        let work = |row: usize| RowWork {
            weight_bytes: self.weight_bytes(row, [users[row], batch], facts),
            cache_bytes: users[row] as u64 * self.cache_bytes(context),
            flops: users[row] as u64 * chunk_flops(hf, depth, 1, 1) / self.columns() as u64,
        };
        let work: Vec<_> = (0..self.rows()).map(work).collect();
        let step = Step {
            planned: PlannedStep::Decode(&users),
            cfg: &self.configs.decode,
            message: decode_message(hf, batch, context),
        };
        Prediction { batch: Some(batch), ..self.slowest(&work, &step, facts).prediction(batch, depth) }
    }

    /// A prompt, in chunks; its last token gets logits.
    pub(super) fn prefill(&self, prompt: usize, facts: &Facts) -> Prediction {
        let mut all: Option<Prediction> = None;
        for start in (0..prompt).step_by(PREFILL_CHUNK) {
            let chunk = start..(start + PREFILL_CHUNK).min(prompt);
            let logits = if chunk.end == prompt { LogitRows::Last } else { LogitRows::None };
            let next = self.chunk(chunk, logits, facts);
            all = Some(match all {
                None => next,
                Some(all) => all.followed_by(&next),
            });
        }
        all.expect("a prompt has tokens")
    }

    fn chunk(&self, chunk: Range<usize>, logits: LogitRows, facts: &Facts) -> Prediction {
        let hf = &self.subject.hf;
        let (tokens, depth) = (chunk.len(), chunk.start);
        let work = |row: usize| {
            let own = share(tokens, self.rows(), row);
            let has_logits = logits == LogitRows::Last && own.end == tokens && !own.is_empty();
            let flops = chunk_flops(hf, depth + own.start, own.len(), usize::from(has_logits));
            RowWork {
                weight_bytes: self.weight_bytes(row, [own.len(), tokens], facts),
                cache_bytes: self.cache_bytes(depth + own.end),
                flops: flops / self.columns() as u64,
            }
        };
        let work: Vec<_> = (0..self.rows()).map(work).collect();
        let context_bytes = depth.next_multiple_of(PAGE_SIZE) as u64 * self.bytes_per_token();
        let step = Step {
            // The first row caches the sequence.
            planned: PlannedStep::Prefill(PlannedChunk { tokens, logits, row: 0, context_bytes }),
            cfg: &self.configs.prefill,
            message: prefill_message(hf, &chunk, logits),
        };
        self.slowest(&work, &step, facts).prediction(tokens, depth)
    }

    /// The row that takes longest. All devices of a row have as much to do.
    fn slowest(&self, work: &[RowWork], step: &Step<'_>, facts: &Facts) -> Slowest {
        let hf = &self.subject.hf;
        let mesh = self.layout.mesh;
        let neighbours = mesh.devices() / facts.hosts;
        let mut slowest = Slowest::default();
        for (row, own) in work.iter().enumerate() {
            let rank = Rank(row * self.columns());
            let mut collectives = vec![self.message(rank, step.message)];
            collectives.extend(planned_collectives(hf, step.cfg, (mesh, rank), step.planned));
            let first = rank.0 / neighbours * neighbours;
            let host_bytes: u64 =
                (first..first + neighbours).map(|other| work[other / self.columns()].bytes()).sum();
            let work = Work { host_bytes: host_bytes as f64, flops: own.flops as f64 };
            let time = facts.machines().time((mesh, rank), work, &collectives);
            slowest.meet(row, time, *own, &collectives);
        }
        slowest
    }

    /// Bytes of weights that a device reads in a step of so many tokens in its row, and in all rows. Where experts lie on
    /// single devices, those of the busiest host.
    fn weight_bytes(&self, row: usize, [in_row, in_all]: [usize; 2], facts: &Facts) -> u64 {
        let hf = &self.subject.hf;
        let plan = &holders_of(self.holders, self.layout, Rank(row * self.columns())).plan;
        let Some(moe) = &hf.moe else { return planned_step_bytes_of(hf, plan, in_row, 0.0) };
        let experts = moe.routed_experts as f64;
        let visited = match self.layout.experts {
            ExpertSharding::Tensor => visited_experts(hf, in_row) / experts,
            ExpertSharding::Expert => {
                let visited = visited_experts(hf, in_all);
                let busiest = visited * busiest_share(visited, facts.hosts);
                (busiest * facts.hosts as f64 / experts).min(1.0)
            }
        };
        // A row without tokens still has the experts of others.
        match in_row {
            0 => self.expert_bytes(row, visited),
            _ => planned_step_bytes_of(hf, plan, in_row, visited),
        }
    }

    /// Bytes of experts alone, of which a share is visited.
    fn expert_bytes(&self, row: usize, visited: f64) -> u64 {
        let hf = &self.subject.hf;
        let plan = &holders_of(self.holders, self.layout, Rank(row * self.columns())).plan;
        planned_step_bytes_of(hf, plan, 0, visited) - planned_step_bytes_of(hf, plan, 0, 0.0)
    }

    /// Bytes that the layers of the base model have cached of a sequence.
    fn cache_bytes(&self, positions: usize) -> u64 {
        let hf = &self.subject.hf;
        cached_bytes(hf, hf.num_hidden_layers, positions, self.cache)
    }

    /// Of a layer.
    fn bytes_per_token(&self) -> u64 {
        LatentCache::bytes_per_token(self.subject.hf.attention.latent_shape(), self.cache) as u64
    }

    /// What the leader sends to all others before a step.
    fn message(&self, rank: Rank, bytes: u64) -> PlannedCollective {
        let others = self.layout.mesh.devices() as u64 - 1;
        let [sent, received] = if rank == Rank(0) { [others * bytes, 0] } else { [0, bytes] };
        let moved = Moved { exchanges: others.min(1), sent, received };
        let name = "the step itself".to_owned();
        PlannedCollective { name, collective: Collective::Broadcast, group: Group::All, times: 1, moved }
    }

    fn rows(&self) -> usize {
        self.layout.mesh.size(Axis::Rows)
    }

    fn columns(&self) -> usize {
        self.layout.mesh.size(Axis::Columns)
    }
}

/// What each device of a row has to do.
#[derive(Clone, Copy, Default)]
struct RowWork {
    weight_bytes: u64,
    cache_bytes: u64,
    flops: u64,
}

impl RowWork {
    fn bytes(&self) -> u64 {
        self.weight_bytes + self.cache_bytes
    }
}

/// What decides what moves in a step.
struct Step<'a> {
    planned: PlannedStep<'a>,
    cfg: &'a ModelConfig,
    /// Bytes that tell all ranks of it.
    message: u64,
}

/// What a row has of tokens or sequences: as even as can be, the first rows the larger shares.
fn share(all: usize, rows: usize, row: usize) -> Range<usize> {
    let step = PrefillStep::new(0, &[], LogitRows::None);
    step.of_row(all, rows, row).0
}

/// A token as long as most are when they travel.
fn some_token(hf: &HfConfig) -> TokenId {
    TokenId(hf.vocab_size as u32 / 2)
}

fn pages(tokens: usize) -> Vec<PageId> {
    (0..tokens.div_ceil(PAGE_SIZE) as u32).map(PageId).collect()
}

fn decode_message(hf: &HfConfig, batch: usize, context: usize) -> u64 {
    let one = pages(context);
    let pages: Vec<_> = (0..batch).map(|_| &one[..]).collect();
    let positions = vec![context - 1; batch];
    let rows = vec![0; batch];
    decode_message_bytes(&vec![some_token(hf); batch], &DecodeStep::new(&positions, &pages).on_rows(&rows))
}

fn prefill_message(hf: &HfConfig, chunk: &Range<usize>, logits: LogitRows) -> u64 {
    let step_pages = pages(chunk.end);
    prefill_message_bytes(
        &vec![some_token(hf); chunk.len()],
        &PrefillStep::new(chunk.start, &step_pages, logits),
    )
}

/// The row that takes longest, and what the first one exchanges.
#[derive(Default)]
struct Slowest {
    time: StepTime,
    work: RowWork,
    first: Vec<Exchange>,
}

impl Slowest {
    fn meet(&mut self, row: usize, time: StepTime, work: RowWork, collectives: &[PlannedCollective]) {
        if row == 0 {
            self.first =
                collectives.iter().filter(|planned| planned.moved.exchanges > 0).map(Exchange::of).collect();
        }
        if row == 0 || time.seconds() > self.time.seconds() {
            (self.time, self.work) = (time, work);
        }
    }

    fn prediction(self, tokens: usize, depth: usize) -> Prediction {
        let RowWork { weight_bytes, cache_bytes, flops } = self.work;
        let sum = |field: fn(&Exchange) -> u64| self.first.iter().map(field).sum();
        Prediction {
            batch: None,
            tokens,
            depth,
            weight_bytes,
            cache_bytes,
            flops,
            sent: sum(|exchange| exchange.sent),
            received: sum(|exchange| exchange.received),
            exchanges: sum(|exchange| exchange.exchanges),
            seconds: self.time.into(),
            tokens_per_second: tokens as f64 / self.time.seconds(),
            collectives: self.first,
        }
    }
}

impl Exchange {
    fn of(planned: &PlannedCollective) -> Self {
        let Moved { exchanges, sent, received } = planned.moved_in_all();
        Self {
            name: planned.name.clone(),
            collective: planned.collective.to_string(),
            group: planned.group.to_string(),
            times: planned.times,
            exchanges,
            sent,
            received,
        }
    }
}

impl Prediction {
    /// Both, one after the other.
    fn followed_by(mut self, next: &Self) -> Self {
        for exchange in &next.collectives {
            match self.collectives.iter_mut().find(|known| known.name == exchange.name) {
                Some(known) => {
                    known.times += exchange.times;
                    known.exchanges += exchange.exchanges;
                    known.sent += exchange.sent;
                    known.received += exchange.received;
                }
                None => self.collectives.push(exchange.clone()),
            }
        }
        let (own, more) = (&mut self.seconds, &next.seconds);
        own.read += more.read;
        own.compute += more.compute;
        own.latency += more.latency;
        own.transfer += more.transfer;
        own.all += more.all;
        self.tokens += next.tokens;
        self.weight_bytes += next.weight_bytes;
        self.cache_bytes += next.cache_bytes;
        self.flops += next.flops;
        self.sent += next.sent;
        self.received += next.received;
        self.exchanges += next.exchanges;
        self.tokens_per_second = self.tokens as f64 / self.seconds.all;
        self
    }

    /// Whether devices exchange for longer than they read and compute.
    pub(super) fn is_bound_by_exchange(&self) -> bool {
        let Seconds { read, compute, latency, transfer, .. } = self.seconds;
        latency + transfer > read.max(compute)
    }
}
