//! `dsv3 plan`: what each device of a mesh will hold, read and send, and how fast that can be. Loads nothing.

mod holdings;
mod machines;
mod predict;
mod scaling;
mod subject;
mod text;

use crate::{args::PlanArgs, operator_configs::OperatorConfigs, output};
use anyhow::{Result, bail};
use dsv3_deepseek::HfConfig;
use dsv3_mesh::Layout;
use holdings::{Cache, Device, Host};
use machines::Facts;
use predict::{LaidOut, Prediction};
use serde::Serialize;
use subject::Subject;

/// Tokens that a sequence has room for where nothing else is asked for.
const USUAL_CONTEXT: usize = 4096;
/// Tokens of a prompt.
const USUAL_PROMPT: usize = 512;

/// The report, as JSON has it.
#[derive(Serialize)]
struct Plan {
    model: String,
    layout: Layout,
    devices: Vec<Device>,
    cache: Cache,
    /// The one that holds most.
    host: Host,
    machines: Facts,
    decode: Prediction,
    prefill: Prediction,
}

/// Runs the command.
pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    let subject = Subject::open(&args.model)?;
    let lengths = Lengths::resolve(args, &subject.hf)?;
    if args.scaling {
        return scaling::run(args, &subject, lengths);
    }
    let plan = Plan::new(args, &subject, args.layout.layout(), lengths)?;
    output::print(&if args.json { output::pretty_json(&plan)? } else { plan.to_string() })
}

/// Tokens of what is planned.
#[derive(Clone, Copy)]
struct Lengths {
    context: usize,
    prompt: usize,
    batch: usize,
}

impl Lengths {
    /// # Errors
    /// More tokens than the model takes.
    fn resolve(args: &PlanArgs, hf: &HfConfig) -> Result<Self> {
        let most = hf.max_position_embeddings;
        let context = args.context.map_or(USUAL_CONTEXT.min(most), usize::from);
        let prompt = args.prompt.map_or(USUAL_PROMPT.min(most), usize::from);
        for (option, tokens) in [("--context", context), ("--prompt", prompt)] {
            if tokens > most {
                bail!("{option} {tokens}: the model's max_position_embeddings is {most}");
            }
        }
        Ok(Self { context, prompt, batch: args.batch.into() })
    }
}

impl Plan {
    /// # Errors
    /// A model that does not divide over the mesh, devices that do not divide over hosts.
    fn new(args: &PlanArgs, subject: &Subject, layout: Layout, lengths: Lengths) -> Result<Self> {
        let configs = &OperatorConfigs::generate(&subject.hf, layout)?;
        let holders = &subject.holders(layout)?[..];
        let facts = Facts::resolve(args.machines, layout.mesh)?;
        let laid = LaidOut { subject, layout, configs, holders, cache: args.kv_cache.into() };
        Ok(Self::of(&laid, facts, lengths))
    }

    fn of(laid: &LaidOut<'_>, machines: Facts, Lengths { context, prompt, batch }: Lengths) -> Self {
        let cache = Cache::of(laid, context, batch);
        let devices = holdings::devices(laid, cache, machines.hosts);
        Self {
            model: laid.subject.name.clone(),
            layout: laid.layout,
            host: holdings::fullest_host(laid, &devices, machines.hosts, machines.memory),
            devices,
            cache,
            decode: laid.decode(batch, context, &machines),
            prefill: laid.prefill(prompt, &machines),
            machines,
        }
    }
}
