//! The messages of a conversation, in memory and in a file.

use anyhow::{Result, bail};
use dsv3_engine::{ChatAnswer, Content, Message, read_json, write_json};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A conversation.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    messages: Vec<Message>,
    /// The file that it is in, which may be written again.
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of messages, or an object with the field `messages`")]
enum File {
    Messages(Vec<Message>),
    Request { messages: Vec<Message> },
}

impl Conversation {
    /// One in which nothing but the system has said anything.
    pub(super) fn new(system: Option<&str>) -> Self {
        let messages = system.map(|system| Message::new("system", system)).into_iter().collect();
        Self { messages, file: None }
    }

    /// Reads one.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let (File::Messages(messages) | File::Request { messages }) = read_json(path)?;
        Ok(Self { messages, file: Some(path.to_owned()) })
    }

    /// Writes it.
    ///
    /// # Errors
    /// A file that cannot be written, or that is there already and is not this conversation's.
    pub(super) fn save(&mut self, path: &Path) -> Result<()> {
        if self.file.as_deref() != Some(path) && path.exists() {
            bail!("{} is there already", path.display());
        }
        write_json(path, &self.messages)?;
        self.file = Some(path.to_owned());
        Ok(())
    }

    /// What has been said, in order.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// How much it is, for the user.
    pub(super) fn size(&self) -> String {
        crate::output::count(self.messages.len() as u64, "message")
    }

    /// The system message.
    pub(super) fn system(&self) -> Option<&str> {
        match self.messages.first()? {
            Message { role, content: Some(Content::Text(text)), .. } if role == "system" => Some(text),
            _ => None,
        }
    }

    /// Sets the system message.
    pub(super) fn set_system(&mut self, text: &str) {
        let message = Message::new("system", text);
        match self.messages.first_mut() {
            Some(first) if first.role == "system" => *first = message,
            _ => self.messages.insert(0, message),
        }
    }

    /// Forgets all but the system message, and the file.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.system());
    }

    /// The user says something.
    pub(super) fn ask(&mut self, text: &str) {
        self.messages.push(Message::new("user", text));
    }

    /// What the user said last was not said.
    pub(super) fn take_back(&mut self) {
        if self.messages.last().is_some_and(|message| message.role == "user") {
            self.messages.pop();
        }
    }

    /// The model has answered.
    pub(super) fn answer(&mut self, answer: ChatAnswer) {
        let mut message = answer.into_message();
        // No template takes an answer without content; one that was stopped in its thoughts has none.
        message.content.get_or_insert_with(|| Content::Text(String::new()));
        self.messages.push(message);
    }

    /// Takes the last answer out, if there is one, so that it can be given anew.
    ///
    /// # Errors
    /// If there is nothing to answer.
    pub(super) fn take_answer(&mut self) -> Result<Option<Message>> {
        let before = match self.messages.as_slice() {
            [before @ .., last] if last.role == "assistant" => before,
            all => all,
        };
        if before.last().is_none_or(|message| message.role == "system") {
            bail!("there is nothing to answer yet");
        }
        let length = before.len();
        Ok(self.messages.drain(length..).next())
    }

    /// Puts an answer back that was [taken out](Self::take_answer).
    pub(super) fn put_back(&mut self, answer: Option<Message>) {
        self.messages.extend(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsv3_engine::ChatDelta;

    fn answer(text: &str) -> ChatAnswer {
        let mut answer = ChatAnswer::default();
        answer.add(ChatDelta::Content(text.to_owned()));
        answer
    }

    fn roles(conversation: &Conversation) -> Vec<&str> {
        conversation.messages().iter().map(|message| message.role.as_str()).collect()
    }

    #[test]
    fn the_system_message_stays_in_front() {
        let mut conversation = Conversation::new(None);
        conversation.ask("a");
        conversation.set_system("x");
        conversation.set_system("y");
        assert_eq!((roles(&conversation), conversation.system()), (vec!["system", "user"], Some("y")));
        conversation.clear();
        assert_eq!((roles(&conversation), conversation.system()), (vec!["system"], Some("y")));
    }

    #[test]
    fn an_answer_is_taken_out_and_put_back_and_a_question_taken_back() {
        let mut conversation = Conversation::new(Some("x"));
        assert!(conversation.take_answer().is_err());
        conversation.ask("a");
        conversation.answer(answer("b"));
        conversation.take_back();
        assert_eq!(roles(&conversation), ["system", "user", "assistant"]);
        let said = conversation.messages().to_vec();
        let taken = conversation.take_answer().unwrap();
        assert_eq!(roles(&conversation), ["system", "user"]);
        conversation.put_back(taken);
        assert_eq!(conversation.messages(), said);
        conversation.take_answer().unwrap();
        assert_eq!(conversation.take_answer().unwrap(), None);
        assert_eq!(roles(&conversation), ["system", "user"]);
        conversation.take_back();
        assert_eq!(roles(&conversation), ["system"]);
    }

    #[test]
    fn a_saved_conversation_is_the_same_and_no_other_file_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let (own, other) = (directory.path().join("own.json"), directory.path().join("other.json"));
        let mut conversation = Conversation::new(Some("x"));
        conversation.ask("a");
        conversation.answer(ChatAnswer { reasoning: Some("hm".to_owned()), ..answer("\n\nb") });
        conversation.save(&own).unwrap();
        conversation.save(&own).unwrap();
        let mut again = Conversation::load(&own).unwrap();
        assert_eq!(again.messages(), conversation.messages());
        std::fs::write(&other, r#"{"model": "m", "messages": [{"role": "user", "content": "a"}]}"#).unwrap();
        assert!(again.save(&other).unwrap_err().to_string().ends_with("other.json is there already"));
        assert_eq!(roles(&Conversation::load(&other).unwrap()), ["user"]);
        std::fs::write(&other, "[1]").unwrap();
        let error = Conversation::load(&other).unwrap_err().to_string();
        assert!(error.contains("other.json") && error.contains("expected a list of messages"), "{error}");
    }
}
