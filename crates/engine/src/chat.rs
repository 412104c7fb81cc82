//! Chat templates: from messages to the text that the model was trained on.
//!
//! A checkpoint's template is a Jinja program written for transformers' `apply_chat_template`; it runs here in
//! minijinja with the same settings, functions and variables. Before it runs, messages are put into the form that
//! these templates expect ([`Message`] says how); templates written for OpenAI's message format alone drop text in
//! silence otherwise.
//!
//! The other way, from the model's text to the parts of an answer, goes [`ChatParser`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Template, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Error, NamedTemplate, TokenizerConfig, files};

mod answer;
mod continuation;
mod format;
mod functions;
mod generation_tags;
mod parser;
pub mod tags;

pub use answer::{ChatAnswer, ToolCall};
pub use format::{ChatFormat, ChatStart, ToolFormat};
pub use parser::{ChatDelta, ChatParser};

/// What DeepSeek-V3.2 has in place of a template.
const V32_PROGRAM: &str = "encoding/encoding_dsv32.py";
/// Roles beside the usual ones that one conversation may have. Each is a rendering more.
const MOST_ROLES: usize = 8;
/// Steps that one rendering may take, long strings counting more: far more than any conversation needs, and few enough
/// that a template which does not end is found out within a second.
const FUEL: u64 = 10_000_000;

/// One message of a conversation, in OpenAI's form. Before rendering,
/// - the parts of a list content are joined to one string, by newlines as in vLLM;
/// - an absent content is `none`, and so is an empty one beside `tool_calls` (DeepSeek's V3 template prints the calls
///   only of a message whose content is none);
/// - `tool_calls` that are null or empty are taken away;
/// - the role `developer` becomes `system`, OpenAI's older name of it, where the template does not mention it;
/// - `reasoning_content`, `reasoning` and `thinking` are one thing, and a template may read it under the first or the
///   last name, as in transformers.
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
    /// Whether the text ends within the last message, which the answer continues. Not together with
    /// `add_generation_prompt`.
    pub continue_final_message: bool,
    /// Definitions of tools, in OpenAI's form.
    pub tools: Option<Value>,
    /// Documents that the answer may use: a list of objects.
    pub documents: Option<Value>,
    /// Which of several templates, by its name. Without one it is `default`, or with tools `tool_use` if there is one, as
    /// in transformers.
    pub template: Option<String>,
    /// The template's own variables, as V3.1's `thinking`.
    pub variables: BTreeMap<String, Value>,
}

impl Default for ChatOptions {
    /// For an answer: with the generation prompt, no tools, no variables.
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            continue_final_message: false,
            tools: None,
            documents: None,
            template: None,
            variables: BTreeMap::new(),
        }
    }
}

/// A checkpoint's chat templates, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like, as the template's variables.
    special_tokens: Map<String, Value>,
    format: ChatFormat,
    variables: BTreeSet<String>,
}

impl ChatTemplate {
    /// Reads the templates in a checkpoint's directory: `chat_template.jinja` and those in `additional_chat_templates`,
    /// or else those in `tokenizer_config.json`. `None` if there are none (a base model).
    ///
    /// # Errors
    /// If a file cannot be read, a template does not compile, or the checkpoint has a program in a template's place, as
    /// DeepSeek-V3.2 does.
    pub fn from_dir(directory: &Path) -> Result<Option<Self>, Error> {
        let mut config = TokenizerConfig::from_dir(directory)?;
        let mut path = directory.join("tokenizer_config.json");
        let own_file = directory.join("chat_template.jinja");
        if let Some(bytes) = files::read_optional(&own_file)? {
            let template = files::utf8(&own_file, bytes)?;
            config.chat_templates = vec![NamedTemplate { name: "default".to_owned(), template }];
            config.chat_templates.extend(additional_templates(directory)?);
            path = own_file;
        }
        if !config.chat_templates.is_empty() {
            return Self::new(&path, &config).map(Some);
        }
        let program = directory.join(V32_PROGRAM);
        if program.exists() {
            let message = "expected a Jinja template, but conversations of DeepSeek-V3.2 are written by this program, \
                           which is not supported: put a chat_template.jinja beside the checkpoint";
            let (field, message) = ("chat template".to_owned(), message.to_owned());
            return Err(Error::Field { path: program, field, message });
        }
        Ok(None)
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
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        functions::register(&mut environment);
        for NamedTemplate { name, template } in &config.chat_templates {
            let source = generation_tags::without(template);
            environment.add_template_owned(name.clone(), source).map_err(|error| Error::Field {
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
        let sources: String =
            environment.templates().map(|(_, template)| template.source().to_owned()).collect();
        let format = ChatFormat::detect(&sources);
        let mut template = Self { environment, special_tokens, format, variables: BTreeSet::new() };
        template.variables = template.read_variables();
        Ok(template)
    }

    /// The form in which the templates show thoughts and tool calls, and so the one in which the model writes them.
    pub fn format(&self) -> ChatFormat {
        self.format
    }

    /// The names of the variables that the templates read and the engine does not give, as V3.1's `thinking`: what may
    /// stand in [`ChatOptions::variables`].
    pub fn variables(&self) -> &BTreeSet<String> {
        &self.variables
    }

    /// The text of a conversation. It begins with the BOS where the template writes one: encode it with
    /// [`Bos::AsWritten`](crate::Bos::AsWritten).
    ///
    /// # Errors
    /// [`Error::TemplateRaised`] if the template refuses the messages, [`Error::UnknownRole`] if it would leave one
    /// out or there are more than 8 roles beside the usual ones, [`Error::ContentPart`] for content that is not text, [`Error::Continue`] for a last message that cannot be
    /// continued, [`Error::Parameter`] for options that contradict each other or name a template that is not there,
    /// [`Error::Template`] if the template fails.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, Error> {
        let template = self.choose(options)?;
        let has_developer = template.source().contains("developer");
        let mut messages = messages
            .iter()
            .enumerate()
            .map(|(index, message)| prepare(index, message, has_developer))
            .collect::<Result<Vec<Value>, Error>>()?;
        let last = if options.continue_final_message {
            Some(continuation::begin(&mut messages, options, template.source())?)
        } else {
            None
        };
        let context = self.context(options);
        let text = match render(&template, &context, &messages) {
            // Some templates search every content for `</think>`, and none of them can be searched.
            Err(Error::Template { .. }) if fill_contents(&mut messages) => {
                render(&template, &context, &messages)?
            }
            result => result?,
        };
        check_roles(&messages, &text, |messages| render(&template, &context, messages))?;
        match last {
            Some(last) => continuation::end(text, &last),
            None => Ok(text),
        }
    }

    fn choose(&self, options: &ChatOptions) -> Result<Template<'_, '_>, Error> {
        let tool_use = || self.environment.get_template("tool_use").is_ok();
        let name = match &options.template {
            Some(name) => name,
            None if options.tools.is_some() && tool_use() => "tool_use",
            None => "default",
        };
        self.environment.get_template(name).map_err(|_| Error::Parameter {
            parameter: "template",
            value: format!("{name:?}"),
            expected: "the name of one of the checkpoint's chat templates",
        })
    }

    /// The variables that a template sees, but for the messages.
    /// What the templates read and nobody else gives.
    fn read_variables(&self) -> BTreeSet<String> {
        let templates = self.environment.templates();
        let mut variables: BTreeSet<String> =
            templates.flat_map(|(_, template)| template.undeclared_variables(false)).collect();
        for name in self.environment.globals().map(|(name, _)| name) {
            variables.remove(name);
        }
        let given = self.context(&ChatOptions::default());
        variables.retain(|name| name != "messages" && !given.contains_key(name));
        variables
    }

    fn context(&self, options: &ChatOptions) -> Map<String, Value> {
        let mut context = self.special_tokens.clone();
        // transformers passes these two always, as None where the caller has none.
        context.insert("tools".to_owned(), options.tools.clone().unwrap_or_default());
        context.insert("documents".to_owned(), options.documents.clone().unwrap_or_default());
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        context.extend(options.variables.clone());
        context
    }
}

/// The templates beside `chat_template.jinja`, each in a file of its name.
fn additional_templates(directory: &Path) -> Result<Vec<NamedTemplate>, Error> {
    let directory = directory.join("additional_chat_templates");
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(&directory))?,
    };
    let mut templates = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(&directory))?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja")) {
            let template = files::utf8(&path, files::read(&path)?)?;
            templates.push(NamedTemplate { name: name.to_owned(), template });
        }
    }
    Ok(templates)
}

fn render(
    template: &Template<'_, '_>,
    context: &Map<String, Value>,
    messages: &[Value],
) -> Result<String, Error> {
    let mut context = context.clone();
    context.insert("messages".to_owned(), messages.into());
    template.render(Serde(&context)).map_err(|error| failure(template.name(), &error))
}

/// Gives messages without content an empty one; whether there were any.
fn fill_contents(messages: &mut [Value]) -> bool {
    let empty = messages.iter_mut().filter(|message| message["content"].is_null());
    empty.map(|message| message["content"] = "".into()).count() > 0
}

/// DeepSeek's templates pass over roles that they do not know. Whether one does shows only when a message is taken away.
/// A conversation of very many roles is refused at the first that is too many.
fn check_roles(
    messages: &[Value],
    text: &str,
    render: impl Fn(&[Value]) -> Result<String, Error>,
) -> Result<(), Error> {
    let mut known = BTreeSet::from(["system", "user", "assistant", "tool"]);
    let most = known.len() + MOST_ROLES;
    for (index, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if !known.insert(role) {
            continue;
        }
        let refused = || Error::UnknownRole { index, role: role.to_owned() };
        if known.len() > most {
            return Err(refused());
        }
        let mut without = messages.to_vec();
        without.remove(index);
        if render(&without).is_ok_and(|shorter| shorter == text) {
            return Err(refused());
        }
    }
    Ok(())
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
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|&name| fields.get(name).filter(|value| !value.is_null()).cloned());
    if let Some(reasoning) = reasoning {
        fields.insert("reasoning_content".to_owned(), reasoning.clone());
        fields.entry("thinking").or_insert(reasoning);
    }
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
mod history_tests;
#[cfg(test)]
mod tests;
