//! The binary `dsv3`: DeepSeek-V3 inference from the command line.
//!
//! Each command goes the same way: what was typed ([`args`]) is resolved into checked settings, then run
//! ([`commands`]). Results go to stdout, everything said on the way to stderr. Exit codes: 1 for data that cannot be
//! used, with one line that names it; 2 for a command line that cannot be understood.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod embedded;
mod load;
mod model;
mod operator_configs;
mod output;
mod progress;
mod session;

use anyhow::{Result, bail};
use args::{Cli, Command};
use clap::Parser;
use dsv3_engine::LEADER;
use dsv3_mesh::{launched_processes, launched_rank};
use model::{ModelPlace, OpenModel};
use session::is_launched;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let result =
        if is_launched() && launched_rank() != Some(LEADER) { follow(&command) } else { run(command) };
    let Err(error) = result else { return ExitCode::SUCCESS };
    match error.downcast::<clap::Error>() {
        Ok(usage) => usage.exit(),
        Err(error) if error.is::<output::ClosedStdout>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("dsv3: error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    if let Some(processes) = launched_processes().filter(|_| is_launched()) {
        if command.on_a_mesh().is_none() {
            bail!("this command is for one process: start it without a launcher");
        }
        if !cfg!(feature = "mpi") {
            bail!(
                "this process is one of {processes} that were started together, but this dsv3 was built without \
                 MPI: build it with `cargo build --release --features mpi`"
            );
        }
    }
    match command {
        Command::Generate(args) => commands::generate::run(*args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Config(args) => commands::config::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Logits(args) => commands::logits::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Bench(args) => commands::bench::run(args.command),
    }
}

/// What the processes after the first do where a launcher started several: they follow it as ranks of its mesh.
fn follow(command: &Command) -> Result<()> {
    let Some((model, device)) = command.on_a_mesh() else {
        // The first one says so.
        return Ok(());
    };
    session::follow_launched(&OpenModel::open(&ModelPlace::resolve(model)?)?, device)
}

/// The error and its causes. A cause that its error already ends with is not said twice.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use std::io;

    #[test]
    fn causes_are_joined_and_none_is_said_twice() {
        let io = || io::Error::new(io::ErrorKind::NotFound, "no\nsuch file");
        let error = dsv3_runtime::Error::io("a/config.json")(io());
        let error = Err::<(), _>(error).context("the model cannot be opened").unwrap_err();
        assert_eq!(one_line(&error), "the model cannot be opened: a/config.json: no such file");
        let error = Err::<(), _>(io()).context("reading").unwrap_err();
        assert_eq!(one_line(&error), "reading: no such file");
    }
}
