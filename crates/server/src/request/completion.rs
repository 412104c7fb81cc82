//! The body of POST /v1/completions.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Common, check_top_logprobs, names};
use crate::{ApiError, body};

/// Tokens of an answer of no given length, as in OpenAI's interface.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Prompts that one request may have.
const MOST_PROMPTS: usize = 128;

/// A request for the text after a prompt.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    #[serde(flatten)]
    pub(crate) common: Common,
    #[serde(flatten)]
    pub(crate) completion: CompletionFields,
}

/// What only a completion has.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionFields {
    /// The prompt, or several: as text, or as token ids.
    pub(crate) prompt: Prompt,
    /// The most tokens of the answer; 16 if absent.
    max_tokens: Option<usize>,
    /// How many of the likeliest tokens come with each token's log probability.
    #[schema(maximum = 20)]
    logprobs: Option<usize>,
    /// Whether the text begins with the prompt.
    pub(crate) echo: Option<bool>,
    /// Whether the tokenizer's begin-of-sequence token is put in front of a text, as it is without this field.
    pub(crate) add_special_tokens: Option<bool>,
}

/// One prompt, or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a text, a list of texts, a list of token ids, or a list of such lists"
)]
pub(crate) enum Prompt {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Those of [`CompletionFields`].
pub(crate) const NAMES: &[&str] = &["prompt", "max_tokens", "logprobs", "echo", "add_special_tokens"];

impl CompletionRequest {
    /// From a body.
    ///
    /// # Errors
    /// What is no such request; the error names the field.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let mut object = body::object(bytes)?;
        names::check(&mut object, &[names::COMMON, NAMES].concat())?;
        let object = Value::Object(object);
        Ok(Self { common: body::fields(&object)?, completion: body::fields(&object)? })
    }

    pub(crate) fn max_tokens(&self) -> usize {
        self.completion.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)
    }

    /// How many alternatives come with each token, if any do.
    pub(crate) fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        let count = self.completion.logprobs;
        check_top_logprobs("logprobs", count.unwrap_or(0))?;
        Ok(count)
    }

    /// The prompts, one at least.
    pub(crate) fn prompts(&self) -> Result<Vec<OnePrompt>, ApiError> {
        let prompts: Vec<OnePrompt> = match self.completion.prompt.clone() {
            Prompt::Text(text) => vec![OnePrompt::Text(text)],
            Prompt::Texts(texts) => texts.into_iter().map(OnePrompt::Text).collect(),
            Prompt::Tokens(tokens) => vec![OnePrompt::Tokens(tokens)],
            Prompt::TokenLists(lists) => lists.into_iter().map(OnePrompt::Tokens).collect(),
        };
        let answers = prompts.len().saturating_mul(self.common.choices());
        if prompts.is_empty() || answers > MOST_PROMPTS {
            let message = format!("prompt: expected 1 to {MOST_PROMPTS} prompts, n times, got {answers}");
            return Err(ApiError::field("prompt", message));
        }
        Ok(prompts)
    }
}
