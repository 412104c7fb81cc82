//! The body of POST /v1/chat/completions.

use std::collections::BTreeMap;

use dsv3_engine::Message;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Common, check_top_logprobs,
    message::MessageSchema,
    names,
    tools::{Tool, ToolChoice},
};
use crate::{ApiError, body};

/// A request for the next message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    #[serde(flatten)]
    pub(crate) common: Common,
    #[serde(flatten)]
    pub(crate) chat: ChatFields,
}

/// What only a conversation has.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatFields {
    /// The conversation so far.
    #[schema(value_type = Vec<MessageSchema>, min_items = 1)]
    pub(crate) messages: Vec<Message>,
    /// The most tokens of the answer, thoughts included; to the context's end if absent.
    max_completion_tokens: Option<usize>,
    /// The older name of `max_completion_tokens`.
    max_tokens: Option<usize>,
    /// Whether the answer's tokens come with their log probabilities.
    pub(crate) logprobs: Option<bool>,
    /// How many of the likeliest tokens come with each.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Tool>>)]
    pub(crate) tools: Option<Value>,
    /// Whether it has to.
    pub(crate) tool_choice: Option<ToolChoice>,
    /// Whether it may call several at once.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Variables of the chat template, as `{"thinking": true}`.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// Documents that the template shows the model.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) documents: Option<Vec<Value>>,
    /// Whether the prompt ends where an answer begins, as it does without this field.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Whether the answer goes on with the last message.
    pub(crate) continue_final_message: Option<bool>,
}

/// Those of [`ChatFields`].
pub(crate) const NAMES: &[&str] = &[
    "messages",
    "max_completion_tokens",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
];

impl ChatRequest {
    /// From a body.
    ///
    /// # Errors
    /// What is no such request; the error names the field.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let mut object = body::object(bytes)?;
        names::check(&mut object, &[names::COMMON, NAMES].concat())?;
        let object = Value::Object(object);
        // One after the other: through `flatten` an error would not name its field.
        let request = Self { common: body::fields(&object)?, chat: body::fields(&object)? };
        if request.chat.messages.is_empty() {
            return Err(ApiError::field("messages", "messages is empty"));
        }
        Ok(request)
    }

    pub(crate) fn max_tokens(&self) -> Option<usize> {
        self.chat.max_completion_tokens.or(self.chat.max_tokens)
    }

    /// How many alternatives come with each token, if any do.
    pub(crate) fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.chat.logprobs, self.chat.top_logprobs) {
            (Some(true), count) => {
                let count = count.unwrap_or(0);
                check_top_logprobs("top_logprobs", count)?;
                Ok(Some(count))
            }
            (_, None | Some(0)) => Ok(None),
            (_, Some(_)) => {
                Err(ApiError::field("top_logprobs", "top_logprobs is given, but logprobs is not true"))
            }
        }
    }

    /// The functions that the model may call.
    pub(crate) fn tools(&self) -> Result<Vec<Tool>, ApiError> {
        match &self.chat.tools {
            None => Ok(Vec::new()),
            Some(tools) => body::fields(tools).map_err(|error| {
                let inner = error.param().unwrap_or_default().to_owned();
                let field = format!("tools{inner}");
                ApiError::field(&field, format!("tools{}", error.message()))
            }),
        }
    }
}
