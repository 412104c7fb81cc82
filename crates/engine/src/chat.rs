//! Chat templates: from messages to the text that the model was trained on.
//!
//! A checkpoint's template is a Jinja program written for transformers' `apply_chat_template`; it runs here in
//! minijinja with the same settings, functions and variables. Before it runs, messages are put into the form that
//! these templates expect ([`Message`] says how); templates written for OpenAI's message format alone drop text in
//! silence otherwise.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Error, NamedTemplate, TokenizerConfig, files};

mod answer;
mod format;
mod functions;
mod parser;

pub use answer::{ChatAnswer, ToolCall};
pub use format::{ChatFormat, ChatStart, ToolFormat};
pub use parser::{ChatDelta, ChatParser};

/// One message of a conversation, in OpenAI's form. Before rendering,
/// - the parts of a list content are joined to one string, by newlines as in vLLM;
/// - an absent content is `none`, and so is an empty one beside `tool_calls` (DeepSeek's V3 template prints the calls
///   only of a message whose content is none);
/// - `tool_calls` that are null or empty are taken away;
/// - the role `developer` becomes `system`, OpenAI's older name of it, where the template does not mention it.
///
/// `arguments` of tool calls stay what they are. DeepSeek's templates want OpenAI's string, not an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said; may be absent beside tool calls.
    #[serde(default)]
    pub content: Option<Content>,
    /// The other fields, as they are: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(content.into())), extra: Map::new() }
    }
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub enum Content {
    /// Plain text.
    Text(String),
    /// A list of parts, all of which must be text.
    Parts(Vec<ContentPart>),
}

/// One part of a list content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContentPart {
    /// `text`; every other type is refused.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    #[serde(default)]
    pub text: String,
}

/// What a template is rendered with, beside the messages.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatOptions {
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Definitions of tools, in OpenAI's form.
    pub tools: Option<Value>,
    /// The template's own variables, as V3.1's `thinking`.
    pub variables: BTreeMap<String, Value>,
}

impl Default for ChatOptions {
    /// For an answer: with the generation prompt, no tools, no variables.
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: None, variables: BTreeMap::new() }
    }
}

/// A checkpoint's chat templates, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like, as the template's variables.
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Reads the templates in a checkpoint's directory: `chat_template.jinja`, or else those in
    /// `tokenizer_config.json`. `None` if there are none (a base model).
    ///
    /// # Errors
    /// If a file cannot be read, or a template does not compile.
    pub fn from_dir(directory: &Path) -> Result<Option<Self>, Error> {
        let mut config = TokenizerConfig::from_dir(directory)?;
        let mut path = directory.join("tokenizer_config.json");
        let own_file = directory.join("chat_template.jinja");
        if let Some(bytes) = files::read_optional(&own_file)? {
            let template = files::utf8(&own_file, bytes)?;
            config.chat_templates = vec![NamedTemplate { name: "default".to_owned(), template }];
            path = own_file;
        }
        if config.chat_templates.is_empty() { Ok(None) } else { Self::new(&path, &config).map(Some) }
    }

    /// Compiles the templates of a config; `path` is for the errors.
    ///
    /// # Errors
    /// If one does not compile, or none is called `default`.
    pub fn new(path: &Path, config: &TokenizerConfig) -> Result<Self, Error> {
        let mut environment = Environment::new();
        // transformers: ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True) with loop controls.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are Jinja's own"));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        functions::register(&mut environment);
        for NamedTemplate { name, template } in &config.chat_templates {
            environment.add_template_owned(name.clone(), template.clone()).map_err(|error| Error::Field {
                path: path.to_owned(),
                field: format!("chat template {name:?}"),
                message: error.to_string(),
            })?;
        }
        if environment.get_template("default").is_err() {
            let message = "expected one called \"default\"".to_owned();
            return Err(Error::Field { path: path.to_owned(), field: "chat_template".to_owned(), message });
        }
        let named = [
            ("bos_token", &config.bos_token),
            ("eos_token", &config.eos_token),
            ("pad_token", &config.pad_token),
        ];
        let special_tokens = named
            .into_iter()
            .filter_map(|(name, token)| Some((name.to_owned(), Value::from(token.clone()?))))
            .collect();
        Ok(Self { environment, special_tokens })
    }

    /// The text of a conversation. It begins with the BOS where the template writes one: encode it with
    /// [`Bos::AsWritten`](crate::Bos::AsWritten).
    ///
    /// With tools, a template called `tool_use` is preferred, as in transformers.
    ///
    /// # Errors
    /// [`Error::TemplateRaised`] if the template refuses the messages, [`Error::UnknownRole`] if it would leave one
    /// out, [`Error::ContentPart`] for content that is not text, [`Error::Template`] if it fails.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, Error> {
        let name = match &options.tools {
            Some(_) if self.environment.get_template("tool_use").is_ok() => "tool_use",
            _ => "default",
        };
        let template = self.environment.get_template(name).map_err(|error| failure(name, &error))?;
        let has_developer = template.source().contains("developer");
        let messages = messages
            .iter()
            .enumerate()
            .map(|(index, message)| prepare(index, message, has_developer))
            .collect::<Result<Vec<Value>, Error>>()?;
        let mut context = self.special_tokens.clone();
        // transformers passes these two always, as None where the caller has none.
        context.insert("tools".to_owned(), options.tools.clone().unwrap_or_default());
        context.insert("documents".to_owned(), Value::Null);
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        context.extend(options.variables.clone());
        let render = |messages: &[Value]| {
            let mut context = context.clone();
            context.insert("messages".to_owned(), messages.into());
            template.render(Serde(&context)).map_err(|error| failure(name, &error))
        };
        let text = render(&messages)?;
        for (index, message) in messages.iter().enumerate() {
            let role = message["role"].as_str().unwrap_or_default();
            if ["system", "user", "assistant", "tool"].contains(&role) {
                continue;
            }
            // DeepSeek's templates pass over roles that they do not know. Whether this one does shows only when the
            // message is taken away.
            let mut without = messages.clone();
            without.remove(index);
            if render(&without).is_ok_and(|shorter| shorter == text) {
                return Err(Error::UnknownRole { index, role: role.to_owned() });
            }
        }
        Ok(text)
    }
}

/// A message in the form that the templates expect; see [`Message`].
fn prepare(index: usize, message: &Message, has_developer: bool) -> Result<Value, Error> {
    let mut fields = message.extra.clone();
    let calls = fields.get("tool_calls");
    let has_calls = calls.and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
    if calls.is_some_and(|calls| calls.is_null() || calls == &json!([])) {
        fields.shift_remove("tool_calls");
    }
    let text = match &message.content {
        None => None,
        Some(Content::Text(text)) => Some(text.clone()),
        Some(Content::Parts(parts)) => {
            if let Some(part) = parts.iter().find(|part| part.kind != "text") {
                return Err(Error::ContentPart { index, kind: part.kind.clone() });
            }
            Some(parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join("\n"))
        }
    };
    let text = text.filter(|text| !(has_calls && text.is_empty()));
    let role = if message.role == "developer" && !has_developer { "system" } else { &message.role };
    fields.insert("role".to_owned(), role.into());
    fields.insert("content".to_owned(), text.into());
    Ok(fields.into())
}

/// The template's own words if it raised, or what the template engine says.
fn failure(template: &str, error: &minijinja::Error) -> Error {
    match functions::raised(error) {
        Some(message) => Error::TemplateRaised(message),
        None => Error::Template { template: template.to_owned(), message: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
