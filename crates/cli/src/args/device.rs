//! What all commands that run a model share: on what it runs, and how its weights come there.

use super::MeshArgs;
use clap::Args;

/// How weights come into memory.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct LoadArgs {
    /// Read all weights into memory before anything is computed, instead of beside it
    #[arg(long)]
    pub(crate) preload: bool,
    /// Lock all weights in memory, so that they never have to be read again; what is locked is also preloaded
    #[arg(long)]
    pub(crate) mlock: bool,
    /// Copy all weights into memory of this process, in large pages, near to the cores that use them
    ///
    /// Faster than weights in files by what the system loses on their small pages, and takes as much memory again. On
    /// machines with several NUMA nodes each device has its weights on its own.
    #[arg(long, conflicts_with_all = ["preload", "mlock"])]
    pub(crate) copy_weights: bool,
}

/// The devices of a run.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct DeviceArgs {
    /// Threads of each device [default: the cores, shared evenly among the devices of this machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) mesh: MeshArgs,
}
