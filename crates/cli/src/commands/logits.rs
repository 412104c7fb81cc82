//! `dsv3 logits`: the logits after each token of a sequence, for comparisons.

use super::read_token_ids;
use crate::{
    args::LogitsArgs,
    model::{ModelPlace, OpenModel},
    operator_configs::OperatorConfigs,
    output,
    progress::{Progress, Unit},
    session::{PREFILL_CHUNK, Room, Session, limits},
};
use anyhow::{Result, bail};
use dsv3_engine::{Error, LanguageModel, NewFile};
use dsv3_runtime::{LogitRows, PageId, PrefillStep, TokenId};
use indicatif::DecimalBytes;

/// Runs the command.
pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    let tokens = read_token_ids(&args.tokens)?;
    let model = OpenModel::open(&ModelPlace::resolve(&args.model)?)?;
    limits(&model.hf, model.hf.max_position_embeddings).check_prompt(&tokens)?;
    if args.output.is_dir() {
        bail!("{} is a directory, expected the file to write", args.output.display());
    }
    let precision = args.precision.or_exact();
    let configs = OperatorConfigs::with_precision(&model.hf, args.device.mesh.layout.layout(), precision)?;
    let room = Room { cache: precision.cache, ..Room::one(tokens.len()) };
    let mut session = Session::open(&model, configs, room, args.device)?;
    let shape = [tokens.len(), model.hf.vocab_size];
    let mut file = NewFile::create(&args.output)?;
    write_header(&mut file, shape)?;
    write_logits(&mut file, &tokens, &mut session)?;
    file.finish()?;
    output::note(format_args!(
        "logits of {} tokens over {} ids ({}) on {} in {}",
        shape[0],
        shape[1],
        DecimalBytes(byte_count(shape)),
        session.device(),
        args.output.display()
    ));
    Ok(())
}

/// Runs the tokens in chunks; what a chunk gives is written before the next begins.
fn write_logits(file: &mut NewFile, tokens: &[TokenId], session: &mut Session) -> Result<()> {
    let pages: Vec<PageId> = (0..).take(session.limits().page_count).map(PageId).collect();
    let mut progress = Progress::new("prefill", Unit::Tokens);
    let mut start = 0;
    for chunk in tokens.chunks(PREFILL_CHUNK) {
        let step = PrefillStep::new(start, &pages, LogitRows::All);
        let logits = session.forward_prefill(chunk, &step)?; // [chunk, vocab]
        for value in logits.values() {
            file.write_all(&value.to_le_bytes())?;
        }
        start += chunk.len();
        progress.update(start as u64, tokens.len() as u64);
    }
    Ok(())
}

/// The head of a safetensors file with one tensor: the length of the JSON, then the JSON, padded with spaces so that
/// the values are aligned. The `safetensors` crate writes a file only from values that are all in memory.
fn write_header(file: &mut NewFile, shape: [usize; 2]) -> Result<(), Error> {
    let tensor =
        serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [0, byte_count(shape)] });
    let mut header = serde_json::json!({ "logits": tensor }).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())
}

fn byte_count([rows, cols]: [usize; 2]) -> u64 {
    rows as u64 * cols as u64 * size_of::<f32>() as u64
}
