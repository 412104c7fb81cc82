//! What a generation looks like on stdout: text as it comes, or one JSON object when it is done.

use super::Prompt;
use crate::output;
use anyhow::Result;
use dsv3_engine::{Event, FinishReason, Generation, Timings};
use dsv3_runtime::TokenId;
use serde::Serialize;

/// Prints one generation.
pub(super) struct Printer {
    json: bool,
    prompt_tokens: usize,
    /// Whether the text so far ends with a line end; so does an empty one.
    at_line_start: bool,
    /// The write that failed. The generation ends with it.
    failure: Option<anyhow::Error>,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Record<'a> {
    index: usize,
    prompt_tokens: usize,
    token_ids: &'a [TokenId],
    text: &'a str,
    finish_reason: FinishReason,
    timings: Seconds,
}

#[derive(Serialize)]
struct Seconds {
    prefill_tokens: usize,
    prefill_seconds: f64,
    decode_tokens: usize,
    decode_seconds: f64,
    time_to_first_token_seconds: f64,
}

impl Printer {
    /// Begins a text. Where the prompt opens the model's thoughts, that opening is shown too: without it the reader
    /// would see them closed only.
    ///
    /// # Errors
    /// A failing write.
    pub(super) fn begin(json: bool, prompt: &Prompt) -> Result<Self> {
        let mut printer =
            Self { json, prompt_tokens: prompt.tokens.len(), at_line_start: true, failure: None };
        if prompt.opens_thoughts {
            printer.text("<think>\n")?;
        }
        Ok(printer)
    }

    /// Prints what a step brought.
    ///
    /// # Errors
    /// If it cannot be written; [`end`](Self::end) tells why.
    pub(super) fn event(&mut self, event: &Event) -> Result<(), ()> {
        self.text(&event.text_delta).map_err(|error| self.failure = Some(error))
    }

    /// Ends the text with a line end, or prints the JSON object.
    ///
    /// # Errors
    /// A failing write, then or before.
    pub(super) fn end(self, index: usize, generation: &Generation) -> Result<()> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.json {
            let record = Record {
                index: index + 1,
                prompt_tokens: self.prompt_tokens,
                token_ids: &generation.tokens,
                text: &generation.text,
                finish_reason: generation.finish.reason(),
                timings: Seconds::from(generation.timings),
            };
            output::print(&format!("{}\n", serde_json::to_string(&record)?))?;
        } else if !self.at_line_start {
            output::print("\n")?;
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        if self.json || text.is_empty() {
            return Ok(());
        }
        self.at_line_start = text.ends_with('\n');
        output::print(text)
    }
}

impl From<Timings> for Seconds {
    fn from(timings: Timings) -> Self {
        Self {
            prefill_tokens: timings.prefill.tokens,
            prefill_seconds: timings.prefill.time.as_secs_f64(),
            decode_tokens: timings.decode.tokens,
            decode_seconds: timings.decode.time.as_secs_f64(),
            time_to_first_token_seconds: timings.time_to_first_token.as_secs_f64(),
        }
    }
}
