//! `dsv3 bench` and what stands behind it.

use super::{CacheArg, DeviceArgs, LoadArgs, MeshArgs, ModelArgs, PrecisionArgs};
use clap::{Args, Subcommand};
use dsv3_runtime::Format;
use std::path::PathBuf;

/// `dsv3 bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// The kernels, each at the model's own shapes
    ///
    /// Every distinct shape and format of the model's matrices is multiplied with one, few and many rows of
    /// activations, and a layer attends to the cache in each of its formats: absorbed for a token of each of up to 8
    /// sequences, expanded for a chunk of more. All out of memory: caches are emptied before each measurement. The
    /// machine's ceilings are measured in the same run.
    Kernels(BenchKernelsArgs),
    /// The whole model: prefill and decode at several depths
    ///
    /// Tokens are random, by the seed. A depth is reached by prefilling that many tokens once; each measurement is
    /// repeated, and its median is set beside the floor that bytes and operations leave on this machine, whose
    /// ceilings are measured in the same run.
    Run(Box<BenchRunArgs>),
    /// An SVG of what `run --json` gave: speed over depth
    Plot(BenchPlotArgs),
    /// Bytes and operations of a step, counted from config.json alone
    ///
    /// Nothing is measured: this is the floor that a machine of a given bandwidth and arithmetic rate leaves, matrix by
    /// matrix and in several formats. `dsv3 plan` takes the formats that a checkpoint has, and a mesh.
    Count(BenchCountArgs),
}

/// How a report is written to stdout.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ReportArgs {
    /// Write JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Write comma-separated values instead of a table
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
}

/// `dsv3 bench kernels`.
#[derive(Debug, Args)]
pub(crate) struct BenchKernelsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Numbers of threads, each measured [default: one for each core]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Vec<u16>,
    /// Rows of activations, one a token, each measured
    #[arg(
        long, value_name = "N,..", value_delimiter = ',', default_value = "1,2,4,8,256,512",
        value_parser = clap::value_parser!(u32).range(1..=65536)
    )]
    pub(crate) rows: Vec<u32>,
    /// Positions that are cached before the tokens whose attention is measured
    ///
    /// A chunk is measured expanded, and few tokens absorbed, whichever the model would choose at that depth.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(..=32_768))]
    pub(crate) depth: u32,
    /// Measure each N times; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repeat: u32,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// `dsv3 bench run`.
#[derive(Debug, Args)]
pub(crate) struct BenchRunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Tokens that are cached before each measurement
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0,512,2048,4096")]
    pub(crate) depths: Vec<u32>,
    /// Tokens to prefill; 0 leaves prefill out
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt: u32,
    /// Tokens to decode; 0 leaves decode out
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) generate: u32,
    /// Numbers of threads, each measured [default: one for each core]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Vec<u16>,
    /// Sequences that are decoded together, each measured
    #[arg(
        long, value_name = "N,..", value_delimiter = ',', default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    pub(crate) batch: Vec<u32>,
    /// Measure each N times
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repeat: u32,
    /// Of the random tokens: the same seed gives the same tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) mesh: MeshArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

impl BenchRunArgs {
    /// The devices of the first measurement.
    pub(crate) fn device(&self) -> DeviceArgs {
        DeviceArgs { threads: self.threads.first().copied(), load: self.load, mesh: self.mesh }
    }
}

/// `dsv3 bench plot`.
#[derive(Debug, Args)]
pub(crate) struct BenchPlotArgs {
    /// Reports that `dsv3 bench run --json` wrote
    #[arg(value_name = "FILE", required = true)]
    pub(crate) reports: Vec<PathBuf>,
    /// The SVG to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

/// `dsv3 bench count`.
#[derive(Debug, Args)]
pub(crate) struct BenchCountArgs {
    /// A config.json, or a directory with one [default: the model inside this binary]
    #[arg(long, value_name = "PATH", env = "DEEPSEEK_V3_HF_MODEL", hide_env_values = true)]
    pub(crate) model: Option<PathBuf>,
    /// Formats to count bytes in
    #[arg(long, value_name = "F,..", value_delimiter = ',', default_value = "fp8,q8_0,q4_K,bf16", value_parser = format)]
    pub(crate) formats: Vec<Format>,
    /// Tokens that are cached before a step
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0,512,2048,4096")]
    pub(crate) depths: Vec<u32>,
    /// Tokens of a prefill
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt: u32,
    /// Memory bandwidth of the machine in GB/s
    #[arg(long, value_name = "X", default_value_t = 30.0, value_parser = rate)]
    pub(crate) bandwidth: f64,
    /// Multiply-add rate of the machine in GFLOP/s
    #[arg(long, value_name = "X", default_value_t = 204.0, value_parser = rate)]
    pub(crate) flops: f64,
    /// How the cache is stored
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "bf16")]
    pub(crate) kv_cache: CacheArg,
    /// Write JSON instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

fn format(text: &str) -> Result<Format, String> {
    let named = Format::ALL.into_iter().find(|format| format.name() == text);
    named.ok_or_else(|| format!("expected one of {}", Format::ALL.map(Format::name).join(", ")))
}

/// A number above 0.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0);
    value.ok_or_else(|| "expected a number above 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_rates_are_named_or_refused() {
        assert_eq!(format("q4_K"), Ok(Format::Q4K));
        assert_eq!(format("q4_k").unwrap_err(), "expected one of f32, bf16, fp8, q8_0, q4_K");
        assert_eq!(rate("30"), Ok(30.0));
        assert!(rate("0").is_err() && rate("inf").is_err() && rate("fast").is_err());
    }
}
