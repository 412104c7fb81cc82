//! `dsv3 eval teacher-forcing`.

use super::{Started, input::Input, input::TextReader, session};
use crate::{
    args::eval::{BosArg, TeacherForcingArgs},
    model::{ModelPlace, OpenModel},
    output::{count, note},
    session::{PREFILL_CHUNK, limits},
};
use anyhow::{Context, Result, bail};
use dsv3_engine::{
    GenerationConfig, NewFile,
    eval::{Accuracy, Entry, Feed, Reference, TeacherForcing},
    read_prompts,
};
use dsv3_runtime::TokenId;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Figures {
    reference: PathBuf,
    top1_accuracy: f64,
    top5_accuracy: Option<f64>,
    total: Accuracy,
    entries: Vec<Accuracy>,
}

/// Runs the command.
pub(super) fn run(args: &TeacherForcingArgs) -> Result<()> {
    match (&args.reference, &args.save) {
        (Some(reference), _) => follow(args, reference),
        (None, Some(path)) => save(args, path),
        (None, None) => unreachable!("the command line demands one of them"),
    }
}

/// Follows a reference.
fn follow(args: &TeacherForcingArgs, path: &Path) -> Result<()> {
    let model = OpenModel::open(&ModelPlace::resolve(&args.run.model)?)?;
    let reference = Reference::read(path)?;
    let entries = reference.entries();
    let maximum = limits(&model.hf, model.hf.max_position_embeddings);
    for (index, entry) in entries.iter().enumerate() {
        entry.check_limits(&maximum).with_context(|| format!("{}: entries[{index}]", path.display()))?;
        if args.min_top5.is_some() && entry.top5_tokens.is_none() {
            bail!("{}: entries[{index}] has no top5_tokens, which --min-top5 needs", path.display());
        }
    }
    let context = entries.iter().map(Entry::positions).max().unwrap_or(1);
    let mut session = session(&model, context, &args.run)?;
    let started = Started::new("teacher forcing", &model, session.device());
    let mut forcing = TeacherForcing::new(Feed::new(&mut session, PREFILL_CHUNK));
    let mut accuracies = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let accuracy = forcing.accuracy(entry)?;
        let Accuracy { tokens, top1, .. } = accuracy;
        note(format_args!(
            "entry {} of {}: {top1} of {}",
            index + 1,
            entries.len(),
            count(tokens as u64, "token")
        ));
        accuracies.push(accuracy);
    }
    let total = Accuracy::sum(&accuracies);
    let (top1, top5) = (total.top1_share(), total.top5_share());
    let positions = entries.iter().map(Entry::positions).sum();
    let figures = Figures {
        reference: path.to_owned(),
        top1_accuracy: top1,
        top5_accuracy: top5,
        total,
        entries: accuracies,
    };
    started.end(figures, positions).print(args.run.json, &text(&total))?;
    for (name, got, least) in [("top1", Some(top1), args.min_top1), ("top5", top5, args.min_top5)] {
        if let (Some(got), Some(least)) = (got, least)
            && got < least
        {
            bail!("the accuracy of {got:.4} is below --min-{name} {least}");
        }
    }
    Ok(())
}

fn text(total: &Accuracy) -> String {
    let line = |name: &str, hits: usize, share: f64| {
        format!("{name} accuracy {:.2} % ({hits} of {})\n", 100.0 * share, total.tokens)
    };
    let top5 = match (total.top5, total.top5_share()) {
        (Some(hits), Some(share)) => line("top-5", hits, share),
        _ => "top-5 accuracy unknown: the reference has no top5_tokens\n".to_owned(),
    };
    line("top-1", total.top1, total.top1_share()) + &top5
}

/// Makes a reference.
fn save(args: &TeacherForcingArgs, path: &Path) -> Result<()> {
    let model = OpenModel::open(&ModelPlace::resolve(&args.run.model)?)?;
    let reader = TextReader::open(&model, BosArg::Auto)?;
    let prompts = prompts(args, &model, &reader)?;
    if args.max_new_tokens == 0 {
        bail!("--max-new-tokens 0 makes a reference of nothing: expected at least 1");
    }
    let maximum = limits(&model.hf, model.hf.max_position_embeddings);
    for prompt in &prompts {
        maximum.check_prompt(prompt)?;
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let context = longest.saturating_add(args.max_new_tokens - 1);
    if context > maximum.context() {
        bail!(
            "a prompt of {longest} tokens and --max-new-tokens {} are more than the model's context of {}",
            args.max_new_tokens,
            maximum.context()
        );
    }
    let eos = eos_tokens(&model, &reader)?;
    let file = NewFile::create(path)?;
    let mut session = session(&model, context, &args.run)?;
    let started = Started::new("reference", &model, session.device());
    let mut forcing = TeacherForcing::new(Feed::new(&mut session, PREFILL_CHUNK));
    let mut entries = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        let entry = forcing.generate(prompt, args.max_new_tokens, &eos)?;
        let generated = entry.generated_tokens.len() as u64;
        note(format_args!("prompt {} of {}: {}", index + 1, prompts.len(), count(generated, "token")));
        entries.push(entry);
    }
    let positions = entries.iter().map(Entry::positions).sum();
    let generated_tokens: usize = entries.iter().map(|entry| entry.generated_tokens.len()).sum();
    let figures = SavedFigures { reference: path.to_owned(), prompts: entries.len(), generated_tokens };
    file.finish_json(&Reference::new(entries))?;
    let text = format!(
        "{generated_tokens} tokens after {} in {}\n",
        count(prompts.len() as u64, "prompt"),
        path.display()
    );
    started.end(figures, positions).print(args.run.json, &text)
}

#[derive(Serialize)]
struct SavedFigures {
    reference: PathBuf,
    prompts: usize,
    generated_tokens: usize,
}

/// What was given as prompts, as tokens.
fn prompts(args: &TeacherForcingArgs, model: &OpenModel, reader: &TextReader) -> Result<Vec<Vec<TokenId>>> {
    if let Some(path) = &args.prompts_file {
        return read_prompts(path, None)?.iter().map(|prompt| reader.tokens(prompt)).collect();
    }
    let prompt = Input::read(model, &args.text, BosArg::Auto)?.tokens;
    Ok(vec![prompt.context("--save needs a prompt: give --text, --token-ids or --prompts-file")?])
}

/// What ends a text: the checkpoint's ids, or else its tokenizer's.
fn eos_tokens(model: &OpenModel, reader: &TextReader) -> Result<Vec<TokenId>> {
    let ids = GenerationConfig::from_dir(model.dir())?.eos_token_ids;
    Ok(if ids.is_empty() { reader.eos().into_iter().collect() } else { ids })
}
