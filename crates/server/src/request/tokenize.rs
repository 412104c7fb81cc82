//! The bodies of POST /v1/tokenize and /v1/detokenize.

use std::collections::BTreeMap;

use dsv3_engine::Message;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::message::MessageSchema;

/// A text or a conversation, of which the tokens are asked for.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// The model; the one that is served, if absent.
    pub(crate) model: Option<String>,
    /// The text.
    pub(crate) prompt: Option<String>,
    /// Whether the tokenizer's begin-of-sequence token is put in front of the text, as it is without this field.
    pub(crate) add_special_tokens: Option<bool>,
    /// The conversation, in place of a text.
    #[schema(value_type = Option<Vec<MessageSchema>>)]
    pub(crate) messages: Option<Vec<Message>>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) tools: Option<Value>,
    /// Whether the conversation ends where an answer begins, as it does without this field.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Whether it ends within the last message.
    pub(crate) continue_final_message: Option<bool>,
    /// Variables of the chat template.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// Whether the tokens are also given as texts.
    pub(crate) return_token_strs: Option<bool>,
}

/// Those of [`TokenizeRequest`].
pub(crate) const TOKENIZE_NAMES: &[&str] = &[
    "model",
    "prompt",
    "add_special_tokens",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "return_token_strs",
];

/// Tokens of which the text is asked for.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    /// The model; the one that is served, if absent.
    pub(crate) model: Option<String>,
    /// The token ids.
    pub(crate) tokens: Vec<u32>,
}

/// Those of [`DetokenizeRequest`].
pub(crate) const DETOKENIZE_NAMES: &[&str] = &["model", "tokens"];
