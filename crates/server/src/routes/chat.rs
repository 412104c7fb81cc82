//! POST /v1/chat/completions.

use std::{mem, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use dsv3_engine::{
    ChatAnswer, ChatDelta, ChatParser, Event, Finish, FinishReason, StreamEvent, tags::CALL_END,
};

use super::{Fields, Head, cancelled, log_end};
use crate::{
    ApiError,
    answer::Running,
    app::App,
    body::JsonBody,
    error::ErrorResponse,
    prepare::ChatJob,
    reply::{
        CallDelta, CallReply, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChatMessage, ChunkChoice,
        Delta, FunctionDelta, FunctionReply, Timings, TokenLogprob, UsageField, UsageReply,
    },
    request::{StreamOptions, chat::ChatRequest},
    stream::{self, Gone, Writer},
};

/// Answer a conversation
///
/// With `stream` the answer comes as server-sent events, each a `ChatChunk`, and `[DONE]` at the end.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "text",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer", content(
            (ChatCompletion = "application/json"), (ChatChunk = "text/event-stream"),
        )),
        (status = "default", description = "An error", body = ErrorResponse),
    ),
)]
pub(crate) async fn chat_completions(
    State(app): State<Arc<App>>,
    JsonBody(bytes): JsonBody,
) -> Result<Response, ApiError> {
    let (submission, job, head) = app
        .work(move |app, served| {
            app.log_body(&bytes);
            let request = ChatRequest::parse(&bytes)?;
            let (submission, job) = served.prepare_chat(app, &request)?;
            Ok((submission, job, Head::new("chatcmpl", served)))
        })
        .await?;
    let running = app.submit(vec![submission], Fields { form: job.form_field, prompt: "messages" }).await?;
    let answers = Answers::new(&job, head);
    match job.stream {
        Some(options) => Ok(stream::respond(&app, move |writer| write(running, answers, options, writer))),
        None => Ok(Json(collect(running, answers).await?).into_response()),
    }
}

/// The answers of one request, as far as they have come.
struct Answers {
    head: Head,
    choices: Vec<Choice>,
    has_logprobs: bool,
    ends_with_call: bool,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

struct Choice {
    parser: ChatParser,
    /// Whether its first chunk, which names the role, is sent.
    has_begun: bool,
}

/// What one event brought to one choice.
struct Step {
    deltas: Vec<ChatDelta>,
    logprobs: Option<TokenLogprob>,
    finish: Option<&'static str>,
}

impl Answers {
    fn new(job: &ChatJob, head: Head) -> Self {
        let choice = || Choice { parser: job.parser.clone(), has_begun: false };
        Self {
            head,
            choices: (0..job.choices).map(|_| choice()).collect(),
            has_logprobs: job.has_logprobs,
            ends_with_call: job.ends_with_call,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
        }
    }

    /// Takes what a step of the model brought.
    ///
    /// # Errors
    /// An answer that the engine gave up.
    fn step(&mut self, choice: usize, event: Event) -> Result<Step, ApiError> {
        self.completion_tokens += usize::from(event.token.is_some());
        let parser = &mut self.choices[choice].parser;
        let mut deltas = parser.push(&event.text_delta);
        let logprobs = event.token.and_then(|token| {
            let tokenizer = &self.head.tokenizer;
            token.logprobs.map(|logprobs| TokenLogprob::new(tokenizer, token.token, &logprobs))
        });
        let Some(finish) = event.finish else { return Ok(Step { deltas, logprobs, finish: None }) };
        let stopped_at_call = |text: &str| self.ends_with_call && text == CALL_END;
        if matches!(&finish, Finish::StopString(text) if stopped_at_call(text)) {
            deltas.extend(parser.push(CALL_END));
        }
        deltas.extend(parser.finish());
        let reason = match finish.reason() {
            FinishReason::Stop if parser.has_tool_calls() => "tool_calls",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => return Err(cancelled()),
        };
        Ok(Step { deltas, logprobs, finish: Some(reason) })
    }

    fn logprobs(&self, content: Vec<TokenLogprob>) -> Option<ChatLogprobs> {
        self.has_logprobs.then_some(ChatLogprobs { content, refusal: None })
    }
}

/// The whole answer.
async fn collect(mut running: Running, mut answers: Answers) -> Result<ChatCompletion, ApiError> {
    let mut parts: Vec<(ChatAnswer, Vec<TokenLogprob>, &'static str)> =
        answers.choices.iter().map(|_| (ChatAnswer::default(), Vec::new(), "stop")).collect();
    while let Some((_, event)) = running.next().await? {
        if let StreamEvent::Token { choice, event } = event {
            let step = answers.step(choice, event)?;
            let (answer, logprobs, finish) = &mut parts[choice];
            answer.extend(step.deltas);
            logprobs.extend(step.logprobs);
            *finish = step.finish.unwrap_or(finish);
        }
    }
    let usage = running.usage();
    log_end(usage);
    let choices = parts.into_iter().enumerate().map(|(index, (answer, logprobs, finish_reason))| {
        let logprobs = answers.logprobs(logprobs);
        ChatChoice { index, message: message(answer), logprobs, finish_reason }
    });
    Ok(ChatCompletion {
        choices: choices.collect(),
        id: answers.head.id.clone(),
        object: "chat.completion",
        created: answers.head.created,
        model: answers.head.model.clone(),
        usage: usage.into(),
        timings: usage.into(),
    })
}

fn message(answer: ChatAnswer) -> ChatMessage {
    let ChatAnswer { reasoning, content, tool_calls } = answer;
    // A message without calls has a content, be it an empty one.
    let content = if tool_calls.is_empty() { Some(content.unwrap_or_default()) } else { content };
    let tool_calls = tool_calls.into_iter().map(|call| CallReply {
        id: call.id,
        kind: "function",
        function: FunctionReply { name: call.name, arguments: call.arguments },
    });
    ChatMessage {
        role: "assistant",
        content,
        reasoning_content: reasoning,
        tool_calls: tool_calls.collect(),
        refusal: None,
    }
}

/// The answer as it comes.
async fn write(
    mut running: Running,
    mut answers: Answers,
    options: StreamOptions,
    writer: Writer,
) -> Result<(), Gone> {
    loop {
        let event = tokio::select! {
            event = running.next() => event,
            () = writer.closed() => return Err(Gone),
        };
        let step = match event {
            Ok(None) => break,
            Ok(Some((_, StreamEvent::Started { prompt_tokens, cached_tokens }))) => {
                (answers.prompt_tokens, answers.cached_tokens) = (prompt_tokens, cached_tokens);
                continue;
            }
            Ok(Some((_, StreamEvent::Token { choice, event }))) => {
                answers.step(choice, event).map(|step| (choice, step))
            }
            Ok(Some(_)) => continue,
            Err(error) => Err(error),
        };
        match step {
            Ok((choice, step)) => write_step(&mut answers, choice, step, options, &writer).await?,
            Err(error) => {
                writer.fail(error).await;
                return Err(Gone);
            }
        }
    }
    let usage = running.usage();
    log_end(usage);
    if options.include_usage == Some(true) {
        let timings = Some(Timings::from(usage));
        let usage = UsageField::Given(usage.into());
        writer.send(&ChatChunk { usage, timings, ..answers.chunk(Vec::new(), options) }).await?;
    }
    writer.done().await
}

/// The chunks of one step: the role, each delta, the end.
async fn write_step(
    answers: &mut Answers,
    index: usize,
    step: Step,
    options: StreamOptions,
    writer: &Writer,
) -> Result<(), Gone> {
    let Step { deltas, logprobs, finish } = step;
    let mut chunks: Vec<(Delta, Option<&'static str>)> = Vec::new();
    if !mem::replace(&mut answers.choices[index].has_begun, true) {
        let content = Some(String::new());
        chunks.push((Delta { role: Some("assistant"), content, ..Delta::default() }, None));
    }
    let role = chunks.len();
    chunks.extend(deltas.into_iter().map(|delta| (delta_of(delta), None)));
    // Text may be held back, and log probabilities are not.
    if logprobs.is_some() && chunks.len() == role && finish.is_none() {
        chunks.push((Delta::default(), None));
    }
    if finish.is_some() {
        chunks.push((Delta::default(), finish));
    }
    let mut logprobs = logprobs;
    for (place, (delta, finish_reason)) in chunks.into_iter().enumerate() {
        let logprobs = if place < role { None } else { logprobs.take() };
        let logprobs = logprobs.and_then(|logprobs| answers.logprobs(vec![logprobs]));
        let choice = ChunkChoice { index, delta, logprobs, finish_reason };
        writer.send(&answers.chunk(vec![choice], options)).await?;
    }
    Ok(())
}

impl Answers {
    fn chunk(&self, choices: Vec<ChunkChoice>, options: StreamOptions) -> ChatChunk {
        let usage = match (options.include_usage, options.continuous_usage_stats) {
            (Some(true), Some(true)) => UsageField::Given(UsageReply::new(
                self.prompt_tokens,
                self.cached_tokens,
                self.completion_tokens,
            )),
            (Some(true), _) => UsageField::Null,
            _ => UsageField::Absent,
        };
        ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage,
            timings: None,
        }
    }
}

fn delta_of(delta: ChatDelta) -> Delta {
    match delta {
        ChatDelta::Reasoning(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
        ChatDelta::Content(text) => Delta { content: Some(text), ..Delta::default() },
        ChatDelta::ToolCallStart { index, id, name } => {
            let function = FunctionDelta { name: Some(name), arguments: String::new() };
            let call = CallDelta { index, id: Some(id), kind: Some("function"), function };
            Delta { tool_calls: vec![call], ..Delta::default() }
        }
        ChatDelta::ToolCallArguments { index, delta } => {
            let function = FunctionDelta { name: None, arguments: delta };
            let call = CallDelta { index, id: None, kind: None, function };
            Delta { tool_calls: vec![call], ..Delta::default() }
        }
    }
}
