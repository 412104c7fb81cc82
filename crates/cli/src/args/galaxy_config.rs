//! `dsv3 config --target galaxy`: what is typed.

use clap::Args;
use dsv3_galaxy::plan::request::Fabric;
use std::path::PathBuf;

/// Options that only `--target galaxy` has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Galaxy (--target galaxy)")]
pub(crate) struct GalaxyConfigArgs {
    /// Users whose caches a row of the mesh holds: a multiple of its columns, at most 32 [default: 32]
    #[arg(long, value_name = "N")]
    pub(crate) users_per_row: Option<u32>,
    /// Prefill: tokens of the prompt; decode: positions that a user has at most [default: 2048, or all that the longest
    /// sequence has if it has less]
    ///
    /// Decode takes a multiple of 32, prefill of 32 for each row of the mesh. With as many users in a row as columns, a
    /// longer prompt is prefilled in chunks; with more, at once.
    #[arg(long, value_name = "N")]
    pub(crate) sequence_length: Option<u32>,
    /// Positions of the longest sequence that is served, upstream's --max-seq-len: a multiple of 32 [default: 2048, or
    /// --sequence-length where that is more]
    ///
    /// It is what a user's cache has room for, and what the chunk sizes of every prefill follow, of short prompts too: long
    /// caches leave less memory beside them.
    #[arg(long, value_name = "N")]
    pub(crate) max_sequence_length: Option<u32>,
    /// How the chips of a row and of a column are connected: line or ring [default: line]
    ///
    /// A ring is what upstream has with USE_TORUS_MODE. In decode on 16x8 it takes the fused operators for experts.
    #[arg(long, value_name = "line|ring")]
    pub(crate) fabric: Option<Fabric>,
    /// Also write the operations of a step, built from the configs, in the form that tools/ttnn_check reads; two files for
    /// both modes, as with --output
    #[arg(long, value_name = "FILE")]
    pub(crate) operations: Option<PathBuf>,
}

impl GalaxyConfigArgs {
    /// The first of these options that was given.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.users_per_row.is_some(), "--users-per-row"),
            (self.sequence_length.is_some(), "--sequence-length"),
            (self.max_sequence_length.is_some(), "--max-sequence-length"),
            (self.fabric.is_some(), "--fabric"),
            (self.operations.is_some(), "--operations"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }
}
