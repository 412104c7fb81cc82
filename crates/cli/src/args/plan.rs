//! `dsv3 plan`.

use super::{CacheArg, LayoutArgs, ModelArgs, bench::rate};
use clap::Args;
use std::num::NonZeroUsize;

/// `dsv3 plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// Tokens of each sequence: room is made for them, and decode is planned behind them [default: 4096, or the model's
    /// most]
    #[arg(long, value_name = "N", help_heading = "Work")]
    pub(crate) context: Option<NonZeroUsize>,
    /// Sequences that are decoded together; the rows of the mesh share them
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Work",
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) batch: u16,
    /// Tokens of a prompt [default: 512, or the model's most]
    #[arg(long, value_name = "N", help_heading = "Work")]
    pub(crate) prompt: Option<NonZeroUsize>,
    /// How the cache is stored
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "bf16", help_heading = "Work")]
    pub(crate) kv_cache: CacheArg,
    #[command(flatten)]
    pub(crate) machines: MachineArgs,
    /// Show a table of 1, 2, 4 and 8 hosts, one device each, with links of 10, 25, 100 and 400 Gbit/s
    #[arg(long, conflicts_with_all = ["mesh", "hosts", "link"])]
    pub(crate) scaling: bool,
    /// Write JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// The machines of a plan.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Machines")]
pub(crate) struct MachineArgs {
    /// Hosts that share the devices, in order [default: one, or one for each device where --link is given]
    #[arg(long, value_name = "N")]
    pub(crate) hosts: Option<NonZeroUsize>,
    /// Gbit/s that a host's link to the others carries, each way [default: 10, where there are several hosts]
    #[arg(long, value_name = "X", value_parser = rate)]
    pub(crate) link: Option<f64>,
    /// Microseconds of an exchange between hosts that moves next to nothing
    #[arg(long, value_name = "X", value_parser = rate, default_value_t = 30.0)]
    pub(crate) latency: f64,
    /// Memory bandwidth of a host in GB/s [default: this machine's, measured]
    #[arg(long, value_name = "X", value_parser = rate)]
    pub(crate) bandwidth: Option<f64>,
    /// Multiply-add rate of a host in GFLOP/s [default: this machine's, measured]
    #[arg(long, value_name = "X", value_parser = rate)]
    pub(crate) flops: Option<f64>,
    /// Free memory of a host in GB [default: what is free here]
    #[arg(long, value_name = "X", value_parser = rate)]
    pub(crate) memory: Option<f64>,
}
