//! A message of a conversation, as /openapi.json shows it. It is read as the engine's own [`Message`].

use dsv3_engine::Message;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A message of a conversation.
#[derive(ToSchema)]
#[schema(as = Message)]
#[allow(dead_code, reason = "it is shown, not read")]
pub(crate) struct MessageSchema {
    /// `system`, `developer`, `user`, `assistant`, `tool`, or what else the chat template knows.
    role: String,
    /// What is said. May be absent beside `tool_calls`.
    #[schema(nullable)]
    content: Option<ContentSchema>,
    /// The calls of tools that an assistant's message makes.
    tool_calls: Option<Vec<Value>>,
    /// Which call a tool's message answers.
    tool_call_id: Option<String>,
    /// Who says it.
    name: Option<String>,
    /// The thoughts before an assistant's content.
    reasoning_content: Option<String>,
}

/// A text, or a list of parts that are all text.
#[derive(ToSchema)]
#[schema(as = Content)]
#[serde(untagged)]
#[allow(dead_code, reason = "it is shown, not read")]
pub(crate) enum ContentSchema {
    /// A text.
    Text(String),
    /// Parts.
    Parts(Vec<PartSchema>),
}

/// A part of a content.
#[derive(ToSchema)]
#[schema(as = ContentPart)]
#[allow(dead_code, reason = "it is shown, not read")]
pub(crate) struct PartSchema {
    /// `text`: no other is supported.
    #[schema(rename = "type")]
    kind: String,
    /// The text.
    text: String,
}

/// Objects of a message: what a template reads of them must be there, and is not everything's business to check.
pub(crate) fn is_call(call: &Value) -> bool {
    let function = call.get("function").and_then(Value::as_object);
    function.is_some_and(|function: &Map<String, Value>| {
        let arguments = function.get("arguments");
        function.get("name").is_some_and(Value::is_string)
            && arguments.is_none_or(|arguments| arguments.is_string() || arguments.is_object())
    })
}

/// Where a message's calls are not calls.
pub(crate) fn bad_calls(messages: &[Message]) -> Option<String> {
    messages.iter().enumerate().find_map(|(index, message)| match message.extra.get("tool_calls") {
        None | Some(Value::Null) => None,
        Some(Value::Array(calls)) => {
            let bad = calls.iter().position(|call| !is_call(call))?;
            Some(format!("messages[{index}].tool_calls[{bad}]"))
        }
        Some(_) => Some(format!("messages[{index}].tool_calls")),
    })
}
