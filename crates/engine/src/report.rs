//! What a run over several prompts leaves on disk, in the layout of the original's demo: one JSON file at the end,
//! and one line of JSON for each prompt as it finishes.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::{Error, FinishReason, Generation, Timings};

/// The file of a run: the prompts, what came of each, how fast, and with which model and parameters.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The prompts.
    pub prompts: Vec<String>,
    /// What came of each.
    pub generations: Vec<GenerationRecord>,
    /// How fast.
    pub statistics: Statistics,
    /// The model and the parameters of the run, as the caller describes them.
    pub model_params: Value,
}

/// What came of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationRecord {
    /// Which prompt, from 1.
    pub index: usize,
    /// The prompt.
    pub prompt: String,
    /// The text that was generated.
    pub text: String,
    /// How many tokens it has.
    pub tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

impl GenerationRecord {
    /// The record of the prompt at `position`, counted from 0.
    pub fn new(position: usize, prompt: &str, generation: &Generation) -> Self {
        Self {
            index: position + 1,
            prompt: prompt.to_owned(),
            text: generation.text.clone(),
            tokens: generation.tokens.len(),
            finish_reason: generation.finish.reason(),
        }
    }
}

/// How fast a run was. The names are the original's; times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Time of all prompts.
    pub inference_prefill: f64,
    /// Time of all tokens after the first.
    pub inference_decode: f64,
    /// Mean over the prompts.
    pub prefill_time_to_first_token: f64,
    /// Tokens of all prompts in a second.
    #[serde(rename = "prefill_t/s")]
    pub prefill_tokens_per_second: f64,
    /// Mean over the prompts that had more than one token.
    #[serde(rename = "decode_t/s/u")]
    pub decode_tokens_per_second_per_user: f64,
    /// Tokens of all prompts in a second of the whole decode.
    #[serde(rename = "decode_t/s")]
    pub decode_tokens_per_second: f64,
    /// Steps of the model after the prompts.
    pub decode_forward_passes: usize,
    /// From the start of the run to its end.
    #[serde(rename = "Full demo runtime")]
    pub full_runtime: f64,
}

impl Statistics {
    /// Of prompts that were run one after another.
    pub fn new(timings: &[Timings], full_runtime: Duration) -> Self {
        let prefill = sum(timings.iter().map(|timing| timing.prefill));
        let decode = sum(timings.iter().map(|timing| timing.decode));
        let first = timings.iter().map(|timing| timing.time_to_first_token.as_secs_f64());
        let decoded = timings.iter().filter(|timing| timing.decode.tokens > 0);
        Self {
            inference_prefill: prefill.time.as_secs_f64(),
            inference_decode: decode.time.as_secs_f64(),
            prefill_time_to_first_token: mean(first),
            prefill_tokens_per_second: prefill.per_second(),
            decode_tokens_per_second_per_user: mean(decoded.map(|timing| timing.decode.per_second())),
            decode_tokens_per_second: decode.per_second(),
            decode_forward_passes: decode.tokens,
            full_runtime: full_runtime.as_secs_f64(),
        }
    }
}

fn sum(rates: impl Iterator<Item = crate::Rate>) -> crate::Rate {
    rates.fold(crate::Rate::default(), |sum, rate| crate::Rate {
        tokens: sum.tokens + rate.tokens,
        time: sum.time + rate.time,
    })
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

/// `<stem>_output.json` beside a file of prompts.
pub fn default_output_path(prompts: &Path) -> PathBuf {
    let mut name = prompts.file_stem().map_or_else(OsString::new, OsString::from);
    name.push("_output.json");
    prompts.with_file_name(name)
}

/// A file of one JSON object a line; a line is on disk before the next prompt begins, so that a run which is cut off
/// keeps what it has.
#[derive(Debug)]
pub struct RecordLog {
    path: PathBuf,
    file: File,
}

impl RecordLog {
    /// Opens a file to add to, or begins one. What an earlier run left stays.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::options().create(true).append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds a line and waits until it is on disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, record: &GenerationRecord) -> Result<(), Error> {
        let mut line = serde_json::to_vec(record)
            .map_err(|error| Error::Format { path: self.path.clone(), message: error.to_string() })?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rate;

    fn timing(prefill: usize, decode: usize, decode_ms: u64) -> Timings {
        Timings {
            prefill: Rate { tokens: prefill, time: Duration::from_millis(500) },
            decode: Rate { tokens: decode, time: Duration::from_millis(decode_ms) },
            time_to_first_token: Duration::from_millis(750),
        }
    }

    #[test]
    fn statistics_add_up() {
        let timings = [timing(10, 4, 1000), timing(30, 1, 500), timing(5, 0, 0)];
        let statistics = Statistics::new(&timings, Duration::from_secs(9));
        assert_eq!(
            statistics,
            Statistics {
                inference_prefill: 1.5,
                inference_decode: 1.5,
                prefill_time_to_first_token: 0.75,
                prefill_tokens_per_second: 30.0,
                decode_tokens_per_second_per_user: 3.0,
                decode_tokens_per_second: 5.0 / 1.5,
                decode_forward_passes: 5,
                full_runtime: 9.0,
            }
        );
        assert_eq!(Statistics::new(&[], Duration::ZERO).decode_tokens_per_second, 0.0);
    }

    #[test]
    fn the_output_lies_beside_the_prompts() {
        assert_eq!(default_output_path(Path::new("a/b.c.json")), Path::new("a/b.c_output.json"));
        assert_eq!(default_output_path(Path::new("prompts")), Path::new("prompts_output.json"));
    }

    #[test]
    fn the_files_have_the_originals_fields() {
        let record = GenerationRecord {
            index: 1,
            prompt: "1 + 1 = ?".to_owned(),
            text: "é".to_owned(),
            tokens: 1,
            finish_reason: FinishReason::Stop,
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        // What an earlier run left stays.
        RecordLog::open(&path).unwrap().append(&record).unwrap();
        RecordLog::open(&path).unwrap().append(&record).unwrap();
        let line = r#"{"index":1,"prompt":"1 + 1 = ?","text":"é","tokens":1,"finish_reason":"stop"}"#;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{line}\n{line}\n"));

        let path = directory.path().join("report.json");
        let report = Report {
            prompts: vec![record.prompt.clone()],
            generations: vec![record],
            statistics: Statistics::new(&[timing(10, 4, 1000)], Duration::from_secs(2)),
            model_params: serde_json::json!({"model": "tiny"}),
        };
        crate::write_json(&path, &report).unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["prompts"][0], "1 + 1 = ?");
        assert_eq!(read["generations"][0]["finish_reason"], "stop");
        assert_eq!(read["statistics"]["prefill_t/s"], 20.0);
        assert_eq!(read["statistics"]["decode_t/s/u"], 4.0);
        assert_eq!(read["statistics"]["Full demo runtime"], 2.0);
        assert_eq!(read["model_params"]["model"], "tiny");
    }
}
