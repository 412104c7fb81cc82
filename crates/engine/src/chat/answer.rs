//! An answer put together from its pieces, and as a message of the history.

use serde_json::{Value, json};

use super::{ChatDelta, Content, Message};

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatAnswer {
    /// The thoughts, if there are any.
    pub reasoning: Option<String>,
    /// The content, if there is any.
    pub content: Option<String>,
    /// The tools that are called.
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// A name of its own.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them: JSON, if it did well.
    pub arguments: String,
}

impl ChatAnswer {
    /// Adds the next piece.
    ///
    /// # Panics
    /// If it is a piece of the arguments of a call that has not begun.
    pub fn add(&mut self, delta: ChatDelta) {
        match delta {
            ChatDelta::Reasoning(text) => self.reasoning.get_or_insert_default().push_str(&text),
            ChatDelta::Content(text) => self.content.get_or_insert_default().push_str(&text),
            ChatDelta::ToolCallStart { id, name, .. } => {
                self.tool_calls.push(ToolCall { id, name, arguments: String::new() });
            }
            ChatDelta::ToolCallArguments { index, delta } => {
                self.tool_calls[index].arguments.push_str(&delta);
            }
        }
    }

    /// The answer as OpenAI's message, `reasoning_content` beside it.
    pub fn into_message(self) -> Message {
        let mut message =
            Message { content: self.content.map(Content::Text), ..Message::new("assistant", "") };
        if let Some(reasoning) = self.reasoning {
            message.extra.insert("reasoning_content".to_owned(), reasoning.into());
        }
        if !self.tool_calls.is_empty() {
            let calls: Vec<Value> = self.tool_calls.into_iter().map(ToolCall::into_json).collect();
            message.extra.insert("tool_calls".to_owned(), calls.into());
        }
        message
    }
}

impl ToolCall {
    fn into_json(self) -> Value {
        json!({"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

impl Extend<ChatDelta> for ChatAnswer {
    fn extend<I: IntoIterator<Item = ChatDelta>>(&mut self, deltas: I) {
        deltas.into_iter().for_each(|delta| self.add(delta));
    }
}
