//! `dsv3 bench run`: the whole model.

use super::{
    ceilings::Ceilings,
    driver::Driver,
    print,
    report::{Cost, Measurement, Report, Work},
    spread::Spread,
};
use crate::{
    args::{BenchRunArgs, Cli, DeviceArgs},
    load::own_memory,
    model::{ModelPlace, OpenModel},
    operator_configs::OperatorConfigs,
    output::note,
    progress::{Progress, Unit},
    session::{PREFILL_CHUNK, Room, Session, is_launched},
};
use anyhow::{Result, bail};
use clap::{CommandFactory, error::ErrorKind};
use dsv3_deepseek::{HfConfig, ModelWeights, counts, step_bytes};
use dsv3_runtime::{Weight, WeightTree};
use indicatif::DecimalBytes;
use std::{collections::BTreeMap, time::Duration};

/// Steps before the first measurement, which touch what every step needs.
const WARM_UP: usize = 4;

/// Runs the command.
pub(super) fn run(args: &BenchRunArgs) -> Result<()> {
    let plan = Plan::resolve(args)?;
    let place = ModelPlace::resolve(&args.model)?;
    let model = OpenModel::open(&place)?;
    plan.check(&model.hf)?;
    let mut report = Report {
        model: place.dir.display().to_string(),
        formats: BTreeMap::new(),
        kernels: String::new(),
        prompt: plan.prompt,
        generate: plan.generate,
        seed: args.seed,
        own_memory: None,
        ceilings: Vec::new(),
        measurements: Vec::new(),
    };
    let precision = args.precision.or_fast();
    for &threads in &plan.threads {
        let configs = OperatorConfigs::with_precision(&model.hf, args.mesh.layout.layout(), precision)?;
        let room = Room { cache: precision.cache, ..plan.room() };
        let mut session = {
            let device = DeviceArgs { threads, ..args.device() };
            Session::open(&model, configs, room, device)?
        };
        let ceilings = Ceilings::measure(session.on());
        note(format_args!("{ceilings}"));
        report.formats = formats(session.weights());
        report.kernels = session.on().kernels().isa().to_string();
        report.ceilings.push(ceilings);
        let mut bench =
            Bench { hf: &model.hf, plan: &plan, ceilings, driver: Driver::new(&mut session, args.seed)? };
        report.measurements.extend(bench.run()?);
        report.own_memory = own_memory();
    }
    if let Some(bytes) = report.own_memory {
        note(format_args!("memory beyond the mapped weights: {}", DecimalBytes(bytes)));
    }
    print(&report, &report.table(), args.report)
}

/// What is to be measured. Lists are in order, without doubles.
#[derive(Debug)]
struct Plan {
    depths: Vec<usize>,
    prompt: usize,
    generate: usize,
    threads: Vec<Option<u16>>,
    batches: Vec<usize>,
    repeat: usize,
}

impl Plan {
    /// # Errors
    /// A command line that asks for nothing, as [`clap::Error`].
    fn resolve(args: &BenchRunArgs) -> Result<Self> {
        if args.prompt == 0 && args.generate == 0 {
            let message = "--prompt 0 and --generate 0 leave nothing to measure";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, message).into());
        }
        if args.threads.len() > 1 && is_launched() {
            let message = "several processes measure one number of --threads";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, message).into());
        }
        let sorted = |list: &[u32]| {
            let mut list: Vec<usize> = list.iter().map(|&number| number as usize).collect();
            list.sort_unstable();
            list.dedup();
            list
        };
        let threads = args.threads.iter().copied().map(Some).collect();
        Ok(Self {
            depths: sorted(&args.depths),
            prompt: args.prompt as usize,
            generate: args.generate as usize,
            threads: if args.threads.is_empty() { vec![None] } else { threads },
            batches: sorted(&args.batch),
            repeat: args.repeat as usize,
        })
    }

    /// # Errors
    /// A depth beyond the model's context.
    fn check(&self, hf: &HfConfig) -> Result<()> {
        let (context, limit) = (self.room().context, hf.max_position_embeddings);
        if context > limit {
            bail!(
                "--depths asks for {context} tokens with what follows, but the model's max_position_embeddings is {limit}"
            );
        }
        Ok(())
    }

    fn room(&self) -> Room {
        let deepest = self.depths.last().copied().unwrap_or(0);
        let context = deepest + self.prompt.max(self.generate).max(WARM_UP);
        Room { sequences: if self.generate > 0 { self.most() } else { 1 }, ..Room::one(context) }
    }

    /// Sequences of the largest batch.
    fn most(&self) -> usize {
        self.batches.last().copied().unwrap_or(1)
    }

    /// Tokens that one number of threads takes.
    fn tokens(&self) -> usize {
        let deepest = self.depths.last().copied().unwrap_or(0);
        let batches: usize = self.batches.iter().sum();
        let measured = self.repeat * (self.prompt + batches * self.generate);
        2 * WARM_UP + self.room().sequences * deepest + self.depths.len() * measured
    }
}

/// What was found by doing something several times.
struct Repeated {
    speed: Spread,
    /// Bytes of a token.
    sent: f64,
    received: f64,
}

/// One number of threads.
struct Bench<'a> {
    hf: &'a HfConfig,
    plan: &'a Plan,
    ceilings: Ceilings,
    driver: Driver<'a>,
}

impl Bench<'_> {
    fn run(&mut self) -> Result<Vec<Measurement>> {
        let plan = self.plan;
        let mut progress = Progress::new("measuring", Unit::Tokens);
        let (mut done, total) = (0, plan.tokens() as u64);
        let mut tick = |tokens: usize| {
            done += tokens as u64;
            progress.update(done, total);
        };
        self.driver.prefill(0, 0, WARM_UP)?;
        self.driver.decode(1, 0, WARM_UP)?;
        tick(2 * WARM_UP);
        let mut found = Vec::new();
        let mut reached = 0;
        for &depth in &plan.depths {
            for sequence in 0..plan.room().sequences {
                // What a measurement wrote behind the depth is overwritten here.
                for start in (reached..depth).step_by(PREFILL_CHUNK) {
                    let tokens = PREFILL_CHUNK.min(depth - start);
                    self.driver.prefill(sequence, start, tokens)?;
                    tick(tokens);
                }
            }
            reached = depth;
            if plan.prompt > 0 {
                let prefill = |driver: &mut Driver<'_>| driver.prefill(0, depth, plan.prompt);
                let repeated = self.repeat(plan.prompt, &mut tick, prefill)?;
                found.push(self.measurement(Work::Prefill, [1, depth], &repeated));
            }
            for &batch in plan.batches.iter().filter(|_| plan.generate > 0) {
                let tokens = batch * plan.generate;
                let decode = |driver: &mut Driver<'_>| driver.decode(batch, depth, plan.generate);
                let repeated = self.repeat(tokens, &mut tick, decode)?;
                found.push(self.measurement(Work::Decode, [batch, depth], &repeated));
            }
        }
        Ok(found)
    }

    /// Tokens in a second, and what a token moves.
    fn repeat(
        &mut self,
        tokens: usize,
        tick: &mut impl FnMut(usize),
        mut work: impl FnMut(&mut Driver<'_>) -> Result<Duration>,
    ) -> Result<Repeated> {
        let before = self.driver.session().moved();
        let speeds = (0..self.plan.repeat).map(|_| {
            let time = work(&mut self.driver)?;
            tick(tokens);
            Ok(tokens as f64 / time.as_secs_f64())
        });
        let speed = Spread::of(speeds.collect::<Result<_>>()?);
        let moved = self.driver.session().moved() - before;
        let per_token = |bytes: u64| bytes as f64 / (self.plan.repeat * tokens) as f64;
        Ok(Repeated { speed, sent: per_token(moved.sent), received: per_token(moved.received) })
    }

    fn measurement(&self, work: Work, [batch, depth]: [usize; 2], repeated: &Repeated) -> Measurement {
        let session = self.driver.session();
        let cost = match work {
            Work::Prefill => prefill_cost(self.hf, session, depth, self.plan.prompt),
            // The middle of what is decoded.
            Work::Decode => decode_cost(self.hf, session, depth + self.plan.generate / 2, batch),
        };
        let &Repeated { speed, sent, received } = repeated;
        // Bytes are the first device's; of the operations it has its share.
        let devices = session.on().mesh().shape().devices() as f64;
        let cost = Cost { sent, received, flops: cost.flops / devices, ..cost };
        Measurement::new(work, [batch, depth], speed, cost, &self.ceilings)
    }
}

/// What a token of a prompt costs that runs in chunks: each reads all weights that its tokens visit, and the cache.
fn prefill_cost(hf: &HfConfig, session: &Session, depth: usize, prompt: usize) -> Cost {
    let mut sum = Cost::default();
    for start in (0..prompt).step_by(PREFILL_CHUNK) {
        let tokens = PREFILL_CHUNK.min(prompt - start);
        let end = depth + start + tokens;
        let logit_rows = usize::from(start + tokens == prompt);
        let cached = session.cached_bytes(hf, end) as f64;
        sum.bytes += step_bytes(hf, session.weights(), tokens) as f64 + cached;
        sum.cache_bytes += cached;
        sum.flops += counts::chunk_flops(hf, depth + start, tokens, logit_rows) as f64;
    }
    let tokens = prompt as f64;
    let [bytes, cache_bytes, flops] = [sum.bytes, sum.cache_bytes, sum.flops].map(|all| all / tokens);
    Cost { bytes, cache_bytes, flops, ..sum }
}

/// What a token costs that is decoded at a position, beside those of other sequences.
fn decode_cost(hf: &HfConfig, session: &Session, position: usize, batch: usize) -> Cost {
    let cache_bytes = session.cached_bytes(hf, position + 1) as f64;
    Cost {
        bytes: step_bytes(hf, session.weights(), batch) as f64 / batch as f64 + cache_bytes,
        cache_bytes,
        flops: counts::chunk_flops(hf, position, 1, 1) as f64,
        ..Cost::default()
    }
}

/// Bytes of matrices by format.
fn formats(weights: &ModelWeights<Weight>) -> BTreeMap<String, u64> {
    let mut formats = BTreeMap::new();
    weights.clone().for_each(|_, weight| {
        if let Weight::Matrix(_) = &weight {
            *formats.entry(weight.matrix().format().to_string()).or_default() += weight.bytes();
        }
    });
    formats
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;
    use clap::Parser;

    fn plan(options: &str) -> Result<Plan> {
        let words = ["dsv3", "bench", "run"].into_iter().chain(options.split_whitespace());
        let Command::Bench(args) = Cli::parse_from(words).command else { panic!("another command") };
        let crate::args::BenchCommand::Run(args) = args.command else { panic!("another bench") };
        Plan::resolve(&args)
    }

    #[test]
    fn lists_are_put_in_order_and_make_room_for_the_deepest_and_widest() {
        let plan =
            plan("--depths 64,0,64 --batch 4,1 --prompt 32 --generate 8 --repeat 2 --threads 1,2").unwrap();
        assert_eq!((&plan.depths[..], &plan.batches[..]), (&[0, 64][..], &[1, 4][..]));
        assert_eq!((plan.room().context, plan.room().sequences), (96, 4));
        assert_eq!(plan.threads, [Some(1), Some(2)]);
        // 2 x 4 to warm up, 4 sequences to depth 64, twice at each of two depths 32 tokens and 8 of 1 and of 4.
        assert_eq!(plan.tokens(), 8 + 256 + 2 * 2 * (32 + 8 * 5));
    }

    #[test]
    fn nothing_to_measure_is_a_usage_error() {
        let error = plan("--prompt 0 --generate 0").unwrap_err();
        assert!(error.is::<clap::Error>());
        assert_eq!(plan("--prompt 0").unwrap().room().context, 4096 + 64);
    }
}
