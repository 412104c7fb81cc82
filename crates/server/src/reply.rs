//! What is sent back: OpenAI's objects, with `reasoning_content` as DeepSeek's API has it and `timings` as llama.cpp's.

use dsv3_engine::{TokenLogprobs, Tokenizer};
use dsv3_runtime::TokenId;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// How many tokens there were.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct UsageReply {
    /// Tokens of the prompts.
    pub(crate) prompt_tokens: usize,
    /// Tokens of the answers.
    pub(crate) completion_tokens: usize,
    /// Both.
    total_tokens: usize,
    /// More of the prompts.
    prompt_tokens_details: PromptDetails,
}

/// More of the prompts.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct PromptDetails {
    /// Tokens that were in the cache.
    cached_tokens: usize,
}

impl UsageReply {
    pub(crate) fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }
}

impl From<&dsv3_engine::Usage> for UsageReply {
    fn from(usage: &dsv3_engine::Usage) -> Self {
        Self::new(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
    }
}

/// How long it took.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Timings {
    /// Tokens of the prompt that were in the cache.
    cache_n: usize,
    /// Those that were run.
    prompt_n: usize,
    /// In how many milliseconds.
    prompt_ms: f64,
    /// How many a second.
    prompt_per_second: f64,
    /// Tokens after the first.
    predicted_n: usize,
    /// In how many milliseconds.
    predicted_ms: f64,
    /// How many a second.
    predicted_per_second: f64,
    /// Milliseconds in the queue.
    queued_ms: f64,
    /// Milliseconds to the first token, those in the queue included.
    first_token_ms: f64,
}

impl From<&dsv3_engine::Usage> for Timings {
    fn from(usage: &dsv3_engine::Usage) -> Self {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        Self {
            cache_n: usage.cached_tokens,
            prompt_n: usage.prefill.tokens,
            prompt_ms: ms(usage.prefill.time),
            prompt_per_second: finite(usage.prefill.per_second()),
            predicted_n: usage.decode.tokens,
            predicted_ms: ms(usage.decode.time),
            predicted_per_second: finite(usage.decode.per_second()),
            queued_ms: ms(usage.queued),
            first_token_ms: ms(usage.time_to_first_token),
        }
    }
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

/// A conversation's next message.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    pub(crate) id: String,
    /// `chat.completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: UsageReply,
    pub(crate) timings: Timings,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: ChatMessage,
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub(crate) finish_reason: &'static str,
}

/// A message of the assistant.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatMessage {
    /// `assistant`.
    pub(crate) role: &'static str,
    pub(crate) content: Option<String>,
    /// The thoughts before the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<CallReply>,
    /// Always null.
    pub(crate) refusal: Option<String>,
}

/// A call of a function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallReply {
    pub(crate) id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) function: FunctionReply,
}

/// Which function is called, and with what.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionReply {
    pub(crate) name: String,
    /// JSON, as the model wrote it.
    pub(crate) arguments: String,
}

/// A piece of a conversation's next message.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    pub(crate) id: String,
    /// `chat.completion.chunk`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    #[schema(value_type = Option<UsageReply>)]
    pub(crate) usage: UsageField,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timings: Option<Timings>,
}

/// A piece of one answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: Delta,
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// In the last piece.
    pub(crate) finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<CallDelta>,
}

/// What is new of a call.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CallDelta {
    pub(crate) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionDelta,
}

/// What is new of a call's function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) arguments: String,
}

/// The field `usage` of a chunk: where usage is asked for, it is null in all chunks but the last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum UsageField {
    Absent,
    Null,
    Given(UsageReply),
}

impl UsageField {
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Serialize for UsageField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Given(usage) => usage.serialize(serializer),
            _ => serializer.serialize_none(),
        }
    }
}

/// The log probabilities of an answer's tokens, thoughts included.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<TokenLogprob>,
    /// Always null.
    pub(crate) refusal: Option<Vec<TokenLogprob>>,
}

/// A token with its log probability.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    /// The token's bytes, which need not be whole characters.
    pub(crate) bytes: Vec<u8>,
    pub(crate) top_logprobs: Vec<TopLogprob>,
}

/// One of the likeliest tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
}

/// A token as text. One that is not whole characters is named by its bytes, as OpenAI does.
pub(crate) fn token_text(tokenizer: &Tokenizer, token: TokenId) -> String {
    let bytes = tokenizer.bytes(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

impl TokenLogprob {
    pub(crate) fn new(tokenizer: &Tokenizer, token: TokenId, logprobs: &TokenLogprobs) -> Self {
        let top = |&(token, logprob): &(TokenId, f32)| TopLogprob {
            token: token_text(tokenizer, token),
            logprob,
            bytes: tokenizer.bytes(token).to_vec(),
        };
        Self {
            token: token_text(tokenizer, token),
            logprob: logprobs.logprob,
            bytes: tokenizer.bytes(token).to_vec(),
            top_logprobs: logprobs.top.iter().map(top).collect(),
        }
    }
}

/// The text after a prompt; of a stream, a piece of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    pub(crate) id: String,
    /// `text_completion`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    #[schema(value_type = Option<UsageReply>)]
    pub(crate) usage: UsageField,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timings: Option<Timings>,
}

/// One answer, or a piece of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    /// Prompts in their order, the answers to each in theirs.
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`, at the end.
    pub(crate) finish_reason: Option<&'static str>,
}

/// The log probabilities of a text's tokens, one list a fact.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// The tokens.
    tokens: Vec<String>,
    /// Of each token; of a prompt's first there is none.
    token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens at each place, by their texts.
    #[schema(value_type = Vec<Option<Object>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters before each token.
    text_offset: Vec<usize>,
    #[serde(skip)]
    characters: usize,
}

impl CompletionLogprobs {
    /// Of a text that goes on after so many characters.
    pub(crate) fn at(characters: usize) -> Self {
        Self { characters, ..Self::default() }
    }

    /// Characters up to here.
    pub(crate) fn characters(&self) -> usize {
        self.characters
    }

    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: TokenId, logprobs: Option<&TokenLogprobs>) {
        let text = token_text(tokenizer, token);
        self.text_offset.push(self.characters);
        self.characters += String::from_utf8_lossy(tokenizer.bytes(token)).chars().count();
        self.token_logprobs.push(logprobs.map(|logprobs| logprobs.logprob));
        self.top_logprobs.push(logprobs.map(|logprobs| {
            let mut top: Map<String, Value> = logprobs
                .top
                .iter()
                .map(|&(token, logprob)| (token_text(tokenizer, token), logprob.into()))
                .collect();
            // The chosen token is always there, as in OpenAI's interface.
            top.entry(text.clone()).or_insert(logprobs.logprob.into());
            top
        }));
        self.tokens.push(text);
    }

    /// Adds what follows.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.tokens.append(&mut more.tokens);
        self.token_logprobs.append(&mut more.token_logprobs);
        self.top_logprobs.append(&mut more.top_logprobs);
        self.text_offset.append(&mut more.text_offset);
        self.characters = more.characters;
    }
}
