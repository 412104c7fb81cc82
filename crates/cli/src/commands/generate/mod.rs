//! `dsv3 generate`: text from prompts.

mod printer;
mod prompts;
mod settings;

use crate::{
    args::GenerateArgs,
    model::{ModelPlace, OpenModel},
    output::note,
    session::{PREFILL_CHUNK, Session},
};
use anyhow::{Context, Result};
use dsv3_engine::{
    GenerationConfig, GenerationRecord, Generator, RecordLog, Report, Statistics, Timings, write_report,
};
use printer::Printer;
use prompts::{Prompt, Reader, Texts};
use settings::Settings;
use std::{ops::ControlFlow, time::Instant};

/// Runs the command.
pub(crate) fn run(args: GenerateArgs) -> Result<()> {
    let texts = Texts::read(&args)?;
    let place = ModelPlace::resolve(&args.model)?;
    let model = OpenModel::open(&place)?;
    let reader = Reader::open(&model, &args)?;
    let prompts = reader.prompts(texts)?;
    let defaults = GenerationConfig::from_dir(model.dir())?;
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let settings = Settings::resolve(args, &defaults, &model.hf, &reader.tokenizer, longest)?;
    let mut log = settings.record_log.as_deref().map(RecordLog::create).transpose()?;

    let mut session = Session::open(&model, settings.context, settings.threads)?;
    note(format_args!("{settings}; {}", session.device()));
    let decode_bytes = session.decode_bytes();
    let start = Instant::now();
    let mut generator = Generator::new(&mut session, &reader.tokenizer, PREFILL_CHUNK)?;
    let mut timings = Vec::new();
    let mut records = Vec::new();
    for (position, prompt) in prompts.iter().enumerate() {
        if prompts.len() > 1 {
            note(format_args!("--- prompt {} of {}: {}", position + 1, prompts.len(), prompt.title()));
        }
        let mut printer = Printer::begin(settings.json, prompt)?;
        let generation = generator
            .generate(&prompt.tokens, &settings.request, |event| match printer.event(event) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
            .with_context(|| prompt.name.clone())?;
        printer.end(position, &generation)?;
        let record = GenerationRecord::new(position, &prompt.text, &generation);
        if let Some(log) = &mut log {
            log.append(&record)?;
        }
        timings.push(generation.timings);
        records.push(record);
    }
    let statistics = Statistics::new(&timings, start.elapsed());
    note(format_args!("{}", summary(&statistics, &timings, decode_bytes)));
    if let Some(path) = &settings.report {
        let model_params = settings.describe(&place.dir);
        let prompts = prompts.iter().map(|prompt| prompt.text.clone()).collect();
        write_report(path, &Report { prompts, generations: records, statistics, model_params })?;
        note(format_args!("report: {}", path.display()));
    }
    Ok(())
}

/// How fast it was, in one line.
fn summary(statistics: &Statistics, timings: &[Timings], decode_bytes: u64) -> String {
    let prefilled: usize = timings.iter().map(|timing| timing.prefill.tokens).sum();
    let mut text = format!(
        "prefill: {prefilled} tokens, {:.1} tokens/s; first token after {:.3} s",
        statistics.prefill_tokens_per_second, statistics.prefill_time_to_first_token
    );
    if statistics.decode_forward_passes > 0 {
        let speed = statistics.decode_tokens_per_second;
        text += &format!(
            "; decode: {} tokens, {speed:.1} tokens/s, {:.2} GB/s",
            statistics.decode_forward_passes,
            speed * decode_bytes as f64 / 1e9
        );
    }
    text
}
