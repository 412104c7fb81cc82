//! `dsv3 eval divergence`.

use super::{Started, WindowFigures, check_windows, input::Input, perplexity::WINDOW, session, window_done};
use crate::{
    args::eval::DivergenceArgs,
    model::{ModelPlace, OpenModel},
    output::note,
    session::{PREFILL_CHUNK, Session},
};
use anyhow::{Context, Result, bail};
use dsv3_engine::{
    LanguageModel,
    eval::{
        Base, Comparison, Distribution, Divergence, DivergenceReport, Feed, LogProbWriter, Mean,
        PerplexityReport, Windows,
    },
};
use dsv3_runtime::TokenId;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Figures {
    base_file: PathBuf,
    divergence: DivergenceReport,
    #[serde(flatten)]
    windows: WindowFigures,
}

/// Runs the command.
pub(super) fn run(args: &DivergenceArgs) -> Result<()> {
    match (&args.base, &args.save_base) {
        (Some(base), _) => compare(args, base),
        (None, Some(path)) => save(args, path),
        (None, None) => unreachable!("the command line demands one of them"),
    }
}

/// A text and its windows.
struct Job {
    text: Vec<TokenId>,
    windows: Windows,
}

impl Job {
    /// As many windows as are asked for.
    fn new(args: &DivergenceArgs, text: Vec<TokenId>, windows: Windows) -> Result<Self> {
        let windows = windows.limited(args.windows.max_windows.unwrap_or(usize::MAX))?;
        Ok(Self { text, windows })
    }

    fn session(&self, args: &DivergenceArgs, model: &OpenModel) -> Result<Session> {
        session(model, self.windows.length(), &args.run)
    }
}

/// Compares with a base.
fn compare(args: &DivergenceArgs, path: &Path) -> Result<()> {
    let model = OpenModel::open(&ModelPlace::resolve(&args.run.model)?)?;
    let mut base = Base::open(path, model.hf.vocab_size)?;
    let input = Input::read(&model, &args.text, args.windows.bos)?;
    let text = text_of(&base, path, input.tokens)?;
    let windows = base.windows(text.len(), input.bos)?;
    let job = Job::new(args, text, windows)?;
    let source = if base.tokens().is_some() { path } else { &input.file };
    check_windows(&model, source, &job.text, &job.windows)?;
    let mut session = job.session(args, &model)?;
    let started = Started::new("divergence", &model, session.device());
    let divergence = diverge(&mut Feed::new(&mut session, PREFILL_CHUNK), &job, &mut base)?.report();
    let windows = WindowFigures::new(&job.windows, job.text.len());
    let tokens = windows.windows * windows.window;
    let figures = Figures { base_file: path.to_owned(), divergence, windows };
    started.end(figures, tokens).print(args.run.json, &table(&divergence))
}

/// The tokens of the comparison: the base's own, or those given. Where there are both, they must be the same.
fn text_of(base: &Base, path: &Path, given: Option<Vec<TokenId>>) -> Result<Vec<TokenId>> {
    let Some(own) = base.tokens() else {
        let missing = || format!("{} holds no tokens: give --text or --token-ids", path.display());
        return given.with_context(missing);
    };
    if let Some(given) = &given {
        if given.len() < own.len() {
            bail!("{} is of {} tokens, but the text has {}", path.display(), own.len(), given.len());
        }
        if let Some(at) = own.iter().zip(given).position(|(own, given)| own != given) {
            let (own, given) = (own[at].0, given[at].0);
            bail!(
                "{} is of another text: its token {at} is {own}, but the text's is {given}",
                path.display()
            );
        }
    }
    Ok(own.to_vec())
}

fn diverge<M: LanguageModel>(feed: &mut Feed<'_, M>, job: &Job, base: &mut Base) -> Result<Divergence> {
    let Job { text, windows } = job;
    let mut divergence = Divergence::default();
    for index in 0..windows.count() {
        let window = windows.window(text, index);
        feed.prefill(&window.tokens, window.scored.clone(), |row, logits| {
            let model = Distribution::new(logits)?;
            divergence.add(&Comparison::new(&base.next_row()?, &model, window.tokens[row + 1]));
            Ok(())
        })?;
        window_done(index + 1, windows.count(), format_args!("mean divergence {:.3e}", divergence.mean()));
    }
    Ok(divergence)
}

/// Writes a base.
fn save(args: &DivergenceArgs, path: &Path) -> Result<()> {
    let model = OpenModel::open(&ModelPlace::resolve(&args.run.model)?)?;
    let input = Input::read(&model, &args.text, args.windows.bos)?;
    let text = input.tokens.expect("the command line demands a text or ids");
    let windows = Windows::halves(text.len(), args.windows.window.unwrap_or(WINDOW), input.bos)?;
    let job = Job::new(args, text, windows)?;
    check_windows(&model, &input.file, &job.text, &job.windows)?;
    let mut writer = LogProbWriter::create(path, model.hf.vocab_size, &job.text, &job.windows)?;
    let mut session = job.session(args, &model)?;
    let started = Started::new("base", &model, session.device());
    let mut feed = Feed::new(&mut session, PREFILL_CHUNK);
    let mut surprise = Mean::default();
    for index in 0..job.windows.count() {
        let window = job.windows.window(&job.text, index);
        feed.prefill(&window.tokens, window.scored.clone(), |row, logits| {
            let distribution = Distribution::new(logits)?;
            surprise.add(-distribution.log_prob(window.tokens[row + 1]));
            writer.write(logits, &distribution)
        })?;
        window_done(index + 1, job.windows.count(), format_args!("perplexity {:.4}", surprise.mean().exp()));
    }
    writer.finish()?;
    note(format_args!("log-probabilities of {} tokens in {}", surprise.count(), path.display()));
    let windows = WindowFigures::new(&job.windows, job.text.len());
    let tokens = windows.windows * windows.window;
    let perplexity = PerplexityReport::new(&surprise);
    let PerplexityReport { perplexity: value, standard_error, .. } = perplexity;
    let text = format!("perplexity {value:.4} +- {standard_error:.4}\n");
    started
        .end(SavedFigures { base_file: path.to_owned(), perplexity, windows }, tokens)
        .print(args.run.json, &text)
}

#[derive(Serialize)]
struct SavedFigures {
    base_file: PathBuf,
    #[serde(flatten)]
    perplexity: PerplexityReport,
    #[serde(flatten)]
    windows: WindowFigures,
}

fn table(report: &DivergenceReport) -> String {
    let percent = |share: f64| format!("{:.3} %", 100.0 * share);
    let perplexity =
        |report: &PerplexityReport| format!("{:.4} +- {:.4}", report.perplexity, report.standard_error);
    let nats = |value: f64| format!("{value:.3e}");
    let mut lines = vec![
        ("tokens compared", report.tokens.to_string()),
        ("mean KL divergence, nats", format!("{} +- {}", nats(report.mean), nats(report.standard_error))),
        ("median", nats(report.median)),
        ("99th percentile", nats(report.percentile_99)),
        ("maximum", nats(report.max)),
        ("same likeliest token", percent(report.top1_agreement)),
        ("mean |Δp| of the next token", percent(report.mean_probability_change)),
        ("root mean square of Δp", percent(report.rms_probability_change)),
        ("maximum |Δp|", percent(report.max_probability_change)),
        ("perplexity", perplexity(&report.model)),
        ("perplexity of the base", perplexity(&report.base)),
    ];
    if report.quantisation_noise > 0.0 {
        lines.insert(
            2,
            ("of which the base's rounding may be", format!("+- {}", nats(report.quantisation_noise))),
        );
    }
    lines.iter().map(|(name, value)| format!("{name:<37}{value}\n")).collect()
}
