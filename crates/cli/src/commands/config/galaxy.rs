//! Stage 2 for a Galaxy.

use super::{print, read_config, with_mode};
use crate::{
    args::{Cli, ConfigArgs, GalaxyConfigArgs, MeshArg, ModeArg, TargetArg},
    output::note,
};
use anyhow::Result;
use clap::{CommandFactory, error::ErrorKind};
use dsv3_deepseek::HfConfig;
use dsv3_engine::write_json;
use dsv3_galaxy::plan::{
    Plan, PlanDocument, PlanError, plan,
    request::{Mode, Request, SEQUENCE_LENGTH, USERS_PER_ROW},
};
use dsv3_mesh::ExpertSharding;
use serde::Serialize;
use std::path::{self, Path, PathBuf};

/// What stdout gets where both modes are asked for.
#[derive(Serialize)]
struct Both<'a> {
    prefill: &'a PlanDocument,
    decode: &'a PlanDocument,
}

/// Refuses options of one target that were given for the other.
///
/// # Errors
/// A usage error that names the option.
pub(super) fn check(args: &ConfigArgs) -> Result<()> {
    let file = |path: &Path| path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let (Some(output), Some(operations)) = (&args.output, &args.galaxy.operations)
        && args.target == TargetArg::Galaxy
        && file(output) == file(operations)
    {
        let message = "--output and --operations are the same file".to_owned();
        return usage(ErrorKind::ArgumentConflict, message);
    }
    if args.target == TargetArg::Cpu {
        return match args.galaxy.first_given() {
            Some(option) => usage(ErrorKind::ArgumentConflict, format!("{option} is for --target galaxy")),
            None => Ok(()),
        };
    }
    let given = [
        (args.layout.experts != ExpertSharding::default(), "--experts"),
        (args.layout.mesh == Some(MeshArg::Auto), "--mesh auto"),
    ];
    match given.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, option)) => usage(ErrorKind::ArgumentConflict, format!("{option} is for --target cpu")),
        None => Ok(()),
    }
}

fn usage<T>(kind: ErrorKind, message: String) -> Result<T> {
    Err(Cli::command().error(kind, message).into())
}

/// Runs the command.
pub(super) fn run(args: &ConfigArgs) -> Result<()> {
    let hf = read_config(args.model.as_deref())?;
    let plan = |mode| of_mode(&hf, args, mode);
    let Some(mode) = args.mode else {
        let (prefill, decode) = (plan(ModeArg::Prefill)?, plan(ModeArg::Decode)?);
        for (plan, name) in [(&prefill, "prefill"), (&decode, "decode")] {
            write(plan, args, |path| with_mode(path, name))?;
        }
        let both = Both { prefill: &prefill.document, decode: &decode.document };
        return if args.output.is_none() { print(&both) } else { Ok(()) };
    };
    let plan = plan(mode)?;
    write(&plan, args, Path::to_path_buf)?;
    if args.output.is_none() { print(&plan.document) } else { Ok(()) }
}

/// Writes what goes to files.
fn write(plan: &Plan, args: &ConfigArgs, file: impl Fn(&Path) -> PathBuf) -> Result<()> {
    if let Some(path) = &args.output {
        write_json(&file(path), &plan.document)?;
    }
    if let Some(path) = &args.galaxy.operations {
        write_json(&file(path), &plan.operations)?;
    }
    Ok(())
}

fn of_mode(hf: &HfConfig, args: &ConfigArgs, mode: ModeArg) -> Result<Plan> {
    let GalaxyConfigArgs { users_per_row, sequence_length, max_sequence_length, fabric, .. } = args.galaxy;
    let of_model = u32::try_from(hf.max_position_embeddings).unwrap_or(u32::MAX);
    let usual = SEQUENCE_LENGTH.min(of_model);
    let longest = max_sequence_length.unwrap_or_else(|| usual.max(sequence_length.unwrap_or(0)));
    let request = Request {
        mesh: args.layout.mesh(),
        mode: match mode {
            ModeArg::Prefill => Mode::Prefill,
            ModeArg::Decode => Mode::Decode,
        },
        users_per_row: users_per_row.unwrap_or(USERS_PER_ROW),
        sequence_length: sequence_length.unwrap_or(usual.min(longest)),
        max_sequence_length: longest,
        fabric: fabric.unwrap_or_default(),
    };
    let plan = match plan(hf, request) {
        Err(error @ PlanError::Request { .. }) => {
            return usage(ErrorKind::ValueValidation, error.to_string());
        }
        result => result?,
    };
    if let Some(reason) = &plan.document.header.chunk_sizes_reason {
        note(format_args!("small chunks: {reason}"));
    }
    Ok(plan)
}
