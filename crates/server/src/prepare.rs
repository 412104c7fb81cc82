//! From a request to what the engine is asked. Templates and tokenizers run here, so it is no work for a thread that
//! serves others.

use std::collections::BTreeMap;

use dsv3_engine::{
    Bos, ChatFormat, ChatOptions, ChatParser, ChatStart, Constraint, Error, Message, Submission,
    tags::CALL_END,
};
use dsv3_runtime::TokenId;
use serde_json::Value;

use crate::{
    ApiError,
    app::{App, Served},
    grammar,
    request::{
        Defaults, StreamOptions,
        chat::ChatRequest,
        completion::{CompletionRequest, OnePrompt},
        message,
        tools::{self, ToolPlan},
    },
};

/// A conversation that is ready to be answered.
pub(crate) struct ChatJob {
    /// At the start of each choice.
    pub(crate) parser: ChatParser,
    pub(crate) choices: usize,
    pub(crate) has_logprobs: bool,
    /// Whether an answer ends with its first call.
    pub(crate) ends_with_call: bool,
    pub(crate) stream: Option<StreamOptions>,
    /// The field that asked for a form.
    pub(crate) form_field: &'static str,
}

/// Prompts that are ready to be continued.
pub(crate) struct CompletionJob {
    pub(crate) submissions: Vec<Submission>,
    /// The text of each prompt, where the answer begins with it.
    pub(crate) echoes: Option<Vec<String>>,
    pub(crate) choices: usize,
    pub(crate) logprobs: Option<usize>,
    pub(crate) stream: Option<StreamOptions>,
    pub(crate) form_field: &'static str,
}

impl Served {
    fn defaults(&self) -> Defaults<'_> {
        let limits = self.engine.limits();
        Defaults { config: &self.info.defaults, end_tokens: &self.info.end_tokens, limits }
    }

    /// A conversation as the model reads it, and its tokens.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<(String, Vec<TokenId>), ApiError> {
        let Some(template) = &self.info.template else {
            let message = "this model has no chat template: /v1/completions continues plain text";
            return Err(ApiError::unsupported("messages", message));
        };
        let known = template.variables();
        if let Some(name) = options.variables.keys().find(|name| !known.contains(*name)) {
            let field = format!("chat_template_kwargs.{name}");
            let message = format!("{field}: the chat template does not read it; it reads {known:?}");
            return Err(ApiError::unsupported(field, message));
        }
        if let Some(field) = message::bad_calls(messages) {
            let message = format!(
                "{field}: expected calls as {{\"id\", \"type\", \"function\": {{\"name\", \"arguments\"}}}}"
            );
            return Err(ApiError::field(field, message));
        }
        let rendered = template.render(messages, options)?;
        let tokens = self.engine.tokenizer().encode(&rendered, Bos::AsWritten)?;
        Ok((rendered, tokens))
    }

    /// A chat request made ready.
    ///
    /// # Errors
    /// 400, with the field; 404 for another model.
    pub(crate) fn prepare_chat(
        &self,
        app: &App,
        request: &ChatRequest,
    ) -> Result<(Submission, ChatJob), ApiError> {
        let ChatRequest { common, chat } = request;
        self.check_name(common.model.as_deref())?;
        let stream_options = common.stream_options()?;
        let template_format =
            self.info.template.as_ref().map_or(ChatFormat::PLAIN, dsv3_engine::ChatTemplate::format);
        let plan = tools::plan(&request.tools()?, chat.tool_choice.as_ref(), chat.parallel_tool_calls)?;
        if plan.is_on && template_format.tools == dsv3_engine::ToolFormat::None {
            return Err(grammar::no_calls("tools"));
        }
        let format = if plan.is_on { template_format } else { template_format.without_tools() };
        let logprobs = request.logprobs()?;
        let mut engine_request = common.request(&self.defaults(), request.max_tokens())?;
        engine_request.logprobs = logprobs;
        engine_request.skip_special &= format.skip_special(self.engine.tokenizer());
        let options = chat_options(request, &plan);
        let (rendered, prompt) = self.render(&chat.messages, &options)?;
        check_prompt(app, &prompt, "messages")?;
        let start = ChatStart::after(&rendered);
        let (constraint, form_field) = self.constraint(request, &plan, format, start)?;
        engine_request.constraint = constraint;
        let ends_with_call = plan.is_on && plan.single && plan.forced.is_empty();
        if ends_with_call {
            engine_request.stop.push(CALL_END.to_owned());
        }
        let job = ChatJob {
            choices: engine_request.choices,
            parser: ChatParser::new(format, start),
            has_logprobs: logprobs.is_some(),
            ends_with_call,
            stream: common.streams().then_some(stream_options),
            form_field,
        };
        Ok((Submission { prompt: prompt.into(), request: engine_request }, job))
    }

    fn constraint(
        &self,
        request: &ChatRequest,
        plan: &ToolPlan,
        format: ChatFormat,
        start: ChatStart,
    ) -> Result<(Option<Constraint>, &'static str), ApiError> {
        let tokenizer = self.engine.tokenizer();
        let form = request.common.form()?;
        if plan.forced.is_empty() {
            return Ok(match form {
                None => (None, ""),
                Some((form, field)) => (Some(grammar::of_form(form, format, start, tokenizer)), field),
            });
        }
        if let Some((_, field)) = form {
            let message =
                format!("{field} gives the answer a form, and tool_choice asks for a call in its place");
            return Err(ApiError::field(field, message));
        }
        Ok((Some(grammar::of_calls(plan, format, start, tokenizer)?), "tools"))
    }

    /// A completion request made ready.
    ///
    /// # Errors
    /// 400, with the field; 404 for another model.
    pub(crate) fn prepare_completion(
        &self,
        app: &App,
        request: &CompletionRequest,
    ) -> Result<CompletionJob, ApiError> {
        let CompletionRequest { common, completion } = request;
        self.check_name(common.model.as_deref())?;
        let stream_options = common.stream_options()?;
        let logprobs = request.logprobs()?;
        let is_echo = completion.echo.unwrap_or(false);
        let mut engine_request = common.request(&self.defaults(), Some(request.max_tokens()))?;
        engine_request.logprobs = logprobs;
        engine_request.prompt_logprobs = logprobs.filter(|_| is_echo);
        let form = common.form()?;
        let form_field = form.as_ref().map_or("", |(_, field)| *field);
        let tokenizer = self.engine.tokenizer();
        engine_request.constraint =
            form.map(|(form, _)| grammar::of_form(form, ChatFormat::PLAIN, ChatStart::Content, tokenizer));
        let bos = if completion.add_special_tokens.unwrap_or(true) { Bos::Add } else { Bos::AsWritten };
        let mut echoes = Vec::new();
        let mut submissions = Vec::new();
        for prompt in request.prompts()? {
            let (text, tokens) = match prompt {
                OnePrompt::Text(text) => {
                    let tokens = tokenizer.encode(&text, bos).map_err(|error| in_prompt(&error))?;
                    (text, tokens)
                }
                OnePrompt::Tokens(ids) => {
                    let tokens: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
                    let text = if is_echo { tokenizer.decode(&tokens, false) } else { String::new() };
                    (text, tokens)
                }
            };
            check_prompt(app, &tokens, "prompt")?;
            self.engine.limits().check_prompt(&tokens)?;
            echoes.push(text);
            submissions.push(Submission { prompt: tokens.into(), request: engine_request.clone() });
        }
        Ok(CompletionJob {
            submissions,
            echoes: is_echo.then_some(echoes),
            choices: engine_request.choices,
            logprobs,
            stream: common.streams().then_some(stream_options),
            form_field,
        })
    }
}

fn in_prompt(error: &Error) -> ApiError {
    ApiError::from(error).renamed("messages", "prompt")
}

/// Refuses a prompt that is longer than the server allows.
fn check_prompt(app: &App, prompt: &[TokenId], field: &str) -> Result<(), ApiError> {
    let limit = app.config.limits.prompt;
    if prompt.len() > limit {
        let message =
            format!("the prompt has {} tokens, and this server takes {limit} at most", prompt.len());
        return Err(ApiError::field(field, message));
    }
    Ok(())
}

fn chat_options(request: &ChatRequest, plan: &ToolPlan) -> ChatOptions {
    let chat = &request.chat;
    let goes_on = chat.continue_final_message.unwrap_or(false);
    ChatOptions {
        add_generation_prompt: chat.add_generation_prompt.unwrap_or(!goes_on),
        continue_final_message: goes_on,
        tools: chat.tools.clone().filter(|_| plan.is_on),
        documents: chat.documents.clone().map(Value::from),
        variables: variables(chat.chat_template_kwargs.as_ref()),
        ..ChatOptions::default()
    }
}

pub(crate) fn variables(given: Option<&BTreeMap<String, Value>>) -> BTreeMap<String, Value> {
    given.cloned().unwrap_or_default()
}
