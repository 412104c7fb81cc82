//! `dsv3 eval perplexity`.

use super::{Started, WindowFigures, check_windows, input::Input, session, window_done};
use crate::{
    args::eval::PerplexityArgs,
    model::{ModelPlace, OpenModel},
    session::PREFILL_CHUNK,
};
use anyhow::Result;
use dsv3_engine::eval::{Feed, PerplexityReport, Windows, perplexity};
use serde::Serialize;

/// Tokens of a window: llama-perplexity's default.
pub(super) const WINDOW: usize = 512;

#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    perplexity: PerplexityReport,
    #[serde(flatten)]
    windows: WindowFigures,
    stride: Option<usize>,
}

/// Runs the command.
pub(super) fn run(args: &PerplexityArgs) -> Result<()> {
    let model = OpenModel::open(&ModelPlace::resolve(&args.run.model)?)?;
    let input = Input::read(&model, &args.text, args.windows.bos)?;
    let text = input.tokens.expect("the command line demands a text or ids");
    let length = args.windows.window.unwrap_or(WINDOW);
    let windows = match args.stride {
        Some(stride) => Windows::strided(text.len(), length, stride)?,
        None => Windows::halves(text.len(), length, input.bos)?,
    };
    let windows = windows.limited(args.windows.max_windows.unwrap_or(usize::MAX))?;
    check_windows(&model, &input.file, &text, &windows)?;

    let mut session = session(&model, windows.length(), &args.run)?;
    let started = Started::new("perplexity", &model, session.device());
    let mut feed = Feed::new(&mut session, PREFILL_CHUNK);
    let perplexity = perplexity(&mut feed, &text, &windows, |done, so_far| {
        window_done(done, windows.count(), format_args!("perplexity {:.4}", so_far.perplexity));
    })?;
    let PerplexityReport { perplexity: value, standard_error, tokens, .. } = perplexity;
    let figures =
        Figures { perplexity, windows: WindowFigures::new(&windows, text.len()), stride: args.stride };
    started.end(figures, windows.length() * windows.count()).print(
        args.run.json,
        &format!(
            "perplexity {value:.4} +- {standard_error:.4} over {tokens} tokens in {} windows of {}\n",
            windows.count(),
            windows.length()
        ),
    )
}
