//! `dsv3 eval`: what a model is worth, in figures.

mod divergence;
mod input;
mod perplexity;
mod teacher_forcing;

use crate::{
    args::eval::{EvalArgs, EvalCommand, EvalRunArgs},
    model::OpenModel,
    operator_configs::OperatorConfigs,
    output::{note, pretty_json, print},
    session::{Room, Session, limits},
};
use anyhow::{Context, Result};
use dsv3_engine::eval::Windows;
use dsv3_runtime::TokenId;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Runs the command.
pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    match &args.command {
        EvalCommand::Perplexity(args) => perplexity::run(args),
        EvalCommand::Divergence(args) => divergence::run(args),
        EvalCommand::TeacherForcing(args) => teacher_forcing::run(args),
    }
}

/// The model, ready for one sequence of `context` tokens; exact where nothing else is asked for.
fn session(model: &OpenModel, context: usize, args: &EvalRunArgs) -> Result<Session> {
    let precision = args.precision.or_exact();
    let configs = OperatorConfigs::with_precision(&model.hf, args.device.mesh.layout.layout(), precision)?;
    let room = Room { cache: precision.cache, ..Room::one(context) };
    Session::open(model, configs, room, args.device)
}

/// What was measured, and how: the part that all reports have.
#[derive(Debug, Serialize)]
struct Measured<T> {
    measure: &'static str,
    model: PathBuf,
    device: String,
    #[serde(flatten)]
    figures: T,
    seconds: f64,
    tokens_per_second: f64,
}

/// A measurement that began.
struct Started {
    measure: &'static str,
    model: PathBuf,
    device: String,
    start: Instant,
}

impl Started {
    /// Now.
    fn new(measure: &'static str, model: &OpenModel, device: String) -> Self {
        Self { measure, model: model.dir().to_owned(), device, start: Instant::now() }
    }

    /// Done, after so many tokens.
    fn end<T>(self, figures: T, tokens: usize) -> Measured<T> {
        let Self { measure, model, device, start } = self;
        let elapsed = start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
        let tokens_per_second = tokens as f64 / elapsed;
        Measured { measure, model, device, figures, seconds: elapsed, tokens_per_second }
    }
}

impl<T: Serialize> Measured<T> {
    /// Writes the report to stdout, as JSON or as these lines of text and one about the speed.
    fn print(&self, json: bool, text: &str) -> Result<()> {
        if json {
            return print(&pretty_json(self)?);
        }
        let Self { device, seconds, tokens_per_second, .. } = self;
        print(&format!("{text}{tokens_per_second:.1} tokens/s over {seconds:.1} s on {device}\n"))
    }
}

/// How the text was cut, for the report.
#[derive(Debug, Serialize)]
struct WindowFigures {
    windows: usize,
    window: usize,
    bos: bool,
    tokens_left_out: usize,
}

impl WindowFigures {
    fn new(windows: &Windows, text: usize) -> Self {
        Self {
            windows: windows.count(),
            window: windows.length(),
            bos: windows.bos().is_some(),
            tokens_left_out: text - windows.covered(),
        }
    }
}

/// Checks that a model can run all windows of the text in a file, before weights are read.
fn check_windows(model: &OpenModel, file: &Path, text: &[TokenId], windows: &Windows) -> Result<()> {
    let limits = limits(&model.hf, model.hf.max_position_embeddings);
    for index in 0..windows.count() {
        let window = windows.window(text, index);
        limits.check_prompt(&window.tokens).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Says how far it is: after each window, the figure so far.
fn window_done(done: usize, count: usize, figure: std::fmt::Arguments<'_>) {
    let width = count.to_string().len();
    note(format_args!("window {done:width$} of {count}: {figure} so far"));
}
