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

use anyhow::{Result, anyhow, bail};
use args::{Cli, Command};
use clap::Parser;
use dsv3_engine::LEADER;
use dsv3_mesh::{launched_peer, launched_processes, launched_rank};
use dsv3_runtime::{Isa, Kernels};
use model::{ModelPlace, OpenModel};
use session::is_launched;
use std::{process::ExitCode, thread, time::Duration};

/// How long a process that follows waits before it says what fails before it has met the others. The leader says the same
/// sooner where it fails, too, and the launcher then ends the followers.
const LEADERS_TURN: Duration = Duration::from_secs(1);
/// And how much longer than the follower before it.
const FOLLOWERS_TURN: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let command = Cli::try_parse();
    if is_launched() && launched_rank() != Some(LEADER) {
        return follow(command);
    }
    let Err(error) = command.map_err(Into::into).and_then(run) else {
        return ExitCode::SUCCESS;
    };
    match error.downcast::<clap::Error>() {
        Ok(usage) => usage.exit(),
        Err(error) if error.is::<output::ClosedStdout>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("dsv3: error: {}", one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { isa, command }: Cli) -> Result<()> {
    choose_kernels(isa)?;
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
        Command::Chat(args) => commands::chat::run(*args),
        Command::Serve(args) => commands::serve::run(*args),
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
fn follow(cli: Result<Cli, clap::Error>) -> ExitCode {
    let (cause, code) = match cli {
        Err(usage) if usage.use_stderr() => {
            let text = usage.to_string();
            let line = text.lines().next().unwrap_or_default();
            (line.trim_start_matches("error: ").to_owned(), ExitCode::from(2))
        }
        // The first process says what is asked for.
        Err(_) => return ExitCode::SUCCESS,
        Ok(cli) => match try_follow(&cli) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (one_line(&error), ExitCode::FAILURE),
        },
    };
    let Some(peer) = launched_peer() else { return code };
    thread::sleep(LEADERS_TURN + FOLLOWERS_TURN * peer.rank.0.min(32) as u32);
    output::note(format_args!("dsv3: error: {peer} failed: {cause}"));
    code
}

fn try_follow(cli: &Cli) -> Result<()> {
    let Some((model, device)) = cli.command.on_a_mesh() else {
        bail!("this command is for one process: start it without a launcher");
    };
    let open = || {
        choose_kernels(cli.isa)?;
        OpenModel::open(&ModelPlace::resolve(model)?)
    };
    session::follow_launched(open, device)
}

/// The instructions that were asked for, if any were.
fn choose_kernels(isa: Option<Isa>) -> Result<()> {
    let Some(isa) = isa else { return Ok(()) };
    Kernels::choose(isa).map_err(|best| anyhow!("this machine has no {isa}: the best that it has is {best}"))
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
