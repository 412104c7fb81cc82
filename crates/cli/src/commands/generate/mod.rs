//! `dsv3 generate`: text from prompts.

mod printer;
mod prompts;
pub(super) mod settings;

use crate::{
    args::GenerateArgs,
    model::{ModelPlace, OpenModel},
    operator_configs::OperatorConfigs,
    output::note,
    session::{PREFILL_CHUNK, Room, Session, limits},
};
use anyhow::{Context, Result};
use dsv3_engine::{
    Finish, GenerationConfig, GenerationRecord, Generator, NewFile, RecordLog, Report, Statistics, Timings,
};
use printer::Printer;
use prompts::{Prompt, Reader, Texts};
use serde_json::Value;
use settings::Settings;
use std::{ops::ControlFlow, time::Instant};

/// Runs the command.
pub(crate) fn run(args: GenerateArgs) -> Result<()> {
    let texts = Texts::read(&args)?;
    let place = ModelPlace::resolve(&args.model)?;
    let model = OpenModel::open(&place)?;
    let configs = OperatorConfigs::open(
        &model,
        args.device.mesh.layout.layout(),
        &args.configs,
        args.running.precision,
    )?;
    let reader = Reader::open(&model, &args)?;
    let prompts = reader.prompts(texts)?;
    let defaults = GenerationConfig::from_dir(model.dir())?;
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let device = args.device;
    let settings = Settings::resolve(args, &defaults, &model.hf, &reader.tokenizer, longest)?;
    let limits = limits(&model.hf, settings.context);
    for prompt in &prompts {
        limits.check_prompt(&prompt.tokens).with_context(|| prompt.name.clone())?;
    }
    // Opened now: a place that cannot be written should not be found out after hours.
    let log = settings.record_log.as_deref().map(RecordLog::open).transpose()?;
    let report_file = settings.report.as_deref().map(NewFile::create).transpose()?;

    let room = Room { cache: settings.cache, ..Room::one(settings.context) };
    let mut session = Session::open(&model, configs, room, device)?;
    note(format_args!("{settings}; {}", session.device()));
    let decode_bytes = session.decode_bytes();
    let start = Instant::now();
    let mut done = Done { log, timings: Vec::new(), records: Vec::new() };
    let generator = Generator::new(&mut session, &reader.tokenizer, PREFILL_CHUNK)?;
    let result = generate(generator, &prompts, &settings, &mut done);
    if done.records.is_empty() {
        return result;
    }
    let statistics = Statistics::new(&done.timings, start.elapsed());
    note(format_args!("{}", summary(&statistics, &done.timings, decode_bytes)));
    // What is done is kept, whatever became of the rest.
    let report = match (report_file, &settings.report) {
        (Some(file), Some(path)) => {
            done.write_report(file, &prompts, statistics, settings.describe(&place.dir)).map(|()| {
                note(format_args!("report: {}", path.display()));
            })
        }
        _ => Ok(()),
    };
    if let (Err(_), Err(error)) = (&result, &report) {
        note(format_args!("the report is lost too: {error}"));
    }
    result.and(report)
}

/// What has been generated so far.
struct Done {
    log: Option<RecordLog>,
    timings: Vec<Timings>,
    records: Vec<GenerationRecord>,
}

/// Runs the prompts one after another, and prints what comes of them.
fn generate(
    mut generator: Generator<'_, Session>,
    prompts: &[Prompt],
    settings: &Settings,
    done: &mut Done,
) -> Result<()> {
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
        done.add(GenerationRecord::new(position, &prompt.text, &generation), generation.timings)?;
        printer.end(position, &generation)?;
        match generation.finish {
            Finish::ContextEnd => note(format_args!("stopped at the end of the context: see --context")),
            Finish::MaxNewTokens => note(format_args!("stopped at --max-new-tokens")),
            _ => {}
        }
    }
    Ok(())
}

impl Done {
    fn add(&mut self, record: GenerationRecord, timings: Timings) -> Result<()> {
        let logged = self.log.as_mut().map_or(Ok(()), |log| log.append(&record));
        self.timings.push(timings);
        self.records.push(record);
        Ok(logged?)
    }

    /// Writes the report.
    fn write_report(
        self,
        file: NewFile,
        prompts: &[Prompt],
        statistics: Statistics,
        model_params: Value,
    ) -> Result<()> {
        let prompts = prompts.iter().map(|prompt| prompt.text.clone()).collect();
        let report = Report { prompts, generations: self.records, statistics, model_params };
        Ok(file.finish_json(&report)?)
    }
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
            "; decode: {} tokens, {speed:.1} tokens/s, {:.2} GB/s of weights",
            statistics.decode_forward_passes,
            speed * decode_bytes as f64 / 1e9
        );
    }
    text
}
