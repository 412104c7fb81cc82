//! POST /v1/completions.

use std::{mem, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use dsv3_engine::{FinishReason, StreamEvent, TokenLogprobs};
use dsv3_runtime::TokenId;

use super::{Fields, Head, cancelled, log_end};
use crate::{
    ApiError,
    answer::Running,
    app::App,
    body::JsonBody,
    error::ErrorResponse,
    prepare::CompletionJob,
    reply::{Completion, CompletionChoice, CompletionLogprobs, Timings, UsageField, UsageReply},
    request::{StreamOptions, completion::CompletionRequest},
    stream::{self, Gone, Writer},
};

/// Continue a text
///
/// With `stream` the text comes as server-sent events, each a `Completion` with what is new, and `[DONE]` at the end.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "text",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The text", content(
            (Completion = "application/json"), (Completion = "text/event-stream"),
        )),
        (status = "default", description = "An error", body = ErrorResponse),
    ),
)]
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    JsonBody(bytes): JsonBody,
) -> Result<Response, ApiError> {
    let (submissions, texts, (form, stream)) = app
        .work(move |app, served| {
            app.log_body(&bytes);
            let request = CompletionRequest::parse(&bytes)?;
            let mut job = served.prepare_completion(app, &request)?;
            let submissions = mem::take(&mut job.submissions);
            let texts = Texts::new(&mut job, &submissions, Head::new("cmpl", served));
            Ok((submissions, texts, (job.form_field, job.stream)))
        })
        .await?;
    let running = app.submit(submissions, Fields { form, prompt: "prompt" }).await?;
    match stream {
        Some(options) => Ok(stream::respond(&app, move |writer| write(running, texts, options, writer))),
        None => Ok(Json(collect(running, texts).await?).into_response()),
    }
}

/// The texts of one request, as far as they have come.
struct Texts {
    head: Head,
    /// Answers to each prompt.
    choices: usize,
    /// The prompts, where the answers begin with them.
    echoes: Option<Vec<String>>,
    /// Their tokens, where these come with log probabilities.
    prompts: Vec<Arc<[TokenId]>>,
    has_logprobs: bool,
    /// For each answer: whether its echo is given out, and the characters of its tokens.
    places: Vec<(bool, usize)>,
    started: (usize, usize),
    completion_tokens: usize,
}

impl Texts {
    fn new(job: &mut CompletionJob, submissions: &[dsv3_engine::Submission], head: Head) -> Self {
        let has_logprobs = job.logprobs.is_some();
        let echoes = job.echoes.take();
        let prompts = match &echoes {
            Some(_) if has_logprobs => {
                submissions.iter().map(|submission| Arc::clone(&submission.prompt)).collect()
            }
            _ => Vec::new(),
        };
        let places = vec![(false, 0); submissions.len() * job.choices];
        Self {
            head,
            choices: job.choices,
            echoes,
            prompts,
            has_logprobs,
            places,
            started: (0, 0),
            completion_tokens: 0,
        }
    }

    /// What an event brings.
    ///
    /// # Errors
    /// An answer that the engine gave up.
    fn pieces(&mut self, prompt: usize, event: StreamEvent) -> Result<Vec<CompletionChoice>, ApiError> {
        let mut pieces = Vec::new();
        match event {
            StreamEvent::Started { prompt_tokens, cached_tokens } => {
                self.started.0 += prompt_tokens;
                self.started.1 += cached_tokens;
            }
            StreamEvent::PromptLogprobs(found) => {
                for choice in 0..self.choices {
                    pieces.extend(self.echo(prompt, choice, Some(&found)));
                }
            }
            StreamEvent::Token { choice, event } => {
                pieces.extend(self.echo(prompt, choice, None));
                let index = prompt * self.choices + choice;
                let finish_reason = match event.finish.as_ref().map(dsv3_engine::Finish::reason) {
                    None => None,
                    Some(FinishReason::Stop) => Some("stop"),
                    Some(FinishReason::Length) => Some("length"),
                    Some(FinishReason::Abort) => return Err(cancelled()),
                };
                self.completion_tokens += usize::from(event.token.is_some());
                let logprobs = self.has_logprobs.then(|| {
                    let place = &mut self.places[index].1;
                    let mut logprobs = CompletionLogprobs::at(*place);
                    if let Some(token) = &event.token {
                        logprobs.push(&self.head.tokenizer, token.token, token.logprobs.as_ref());
                    }
                    *place = logprobs.characters();
                    logprobs
                });
                let is_empty =
                    event.text_delta.is_empty() && event.token.is_none() && finish_reason.is_none();
                if !is_empty {
                    pieces.push(CompletionChoice { index, text: event.text_delta, logprobs, finish_reason });
                }
            }
            StreamEvent::Done(_) | StreamEvent::Failed(_) => {}
        }
        Ok(pieces)
    }

    /// The prompt in front of an answer, once.
    fn echo(
        &mut self,
        prompt: usize,
        choice: usize,
        found: Option<&[Option<TokenLogprobs>]>,
    ) -> Option<CompletionChoice> {
        let text = self.echoes.as_ref()?[prompt].clone();
        let index = prompt * self.choices + choice;
        if mem::replace(&mut self.places[index].0, true) {
            return None;
        }
        let logprobs = self.has_logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            let tokens = self.prompts.get(prompt).into_iter().flat_map(|prompt| prompt.iter());
            for (position, &token) in tokens.enumerate() {
                let found = found.and_then(|found| found.get(position)?.as_ref());
                logprobs.push(&self.head.tokenizer, token, found);
            }
            self.places[index].1 = logprobs.characters();
            logprobs
        });
        Some(CompletionChoice { index, text, logprobs, finish_reason: None })
    }

    fn reply(&self, choices: Vec<CompletionChoice>, usage: UsageField) -> Completion {
        Completion {
            id: self.head.id.clone(),
            object: "text_completion",
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage,
            timings: None,
        }
    }
}

/// The whole texts.
async fn collect(mut running: Running, mut texts: Texts) -> Result<Completion, ApiError> {
    let whole = |index| {
        let logprobs = texts.has_logprobs.then(CompletionLogprobs::default);
        CompletionChoice { index, text: String::new(), logprobs, finish_reason: None }
    };
    let mut choices: Vec<CompletionChoice> = (0..texts.places.len()).map(whole).collect();
    while let Some((prompt, event)) = running.next().await? {
        for piece in texts.pieces(prompt, event)? {
            choices[piece.index].add(piece);
        }
    }
    let usage = running.usage();
    log_end(usage);
    let reply = texts.reply(choices, UsageField::Given(usage.into()));
    Ok(Completion { timings: Some(usage.into()), ..reply })
}

impl CompletionChoice {
    fn add(&mut self, piece: Self) {
        self.text += &piece.text;
        self.finish_reason = piece.finish_reason.or(self.finish_reason);
        if let (Some(all), Some(more)) = (&mut self.logprobs, piece.logprobs) {
            all.append(more);
        }
    }
}

/// The texts as they come.
async fn write(
    mut running: Running,
    mut texts: Texts,
    options: StreamOptions,
    writer: Writer,
) -> Result<(), Gone> {
    loop {
        let event = tokio::select! {
            event = running.next() => event,
            () = writer.closed() => return Err(Gone),
        };
        let pieces = match event {
            Ok(None) => break,
            Ok(Some((prompt, event))) => texts.pieces(prompt, event),
            Err(error) => Err(error),
        };
        match pieces {
            Ok(pieces) => {
                for piece in pieces {
                    let usage = texts.usage(options);
                    writer.send(&texts.reply(vec![piece], usage)).await?;
                }
            }
            Err(error) => {
                writer.fail(error).await;
                return Err(Gone);
            }
        }
    }
    let usage = running.usage();
    log_end(usage);
    if options.include_usage == Some(true) {
        let reply = texts.reply(Vec::new(), UsageField::Given(usage.into()));
        writer.send(&Completion { timings: Some(Timings::from(usage)), ..reply }).await?;
    }
    writer.done().await
}

impl Texts {
    fn usage(&self, options: StreamOptions) -> UsageField {
        let (prompt, cached) = self.started;
        match (options.include_usage, options.continuous_usage_stats) {
            (Some(true), Some(true)) => {
                UsageField::Given(UsageReply::new(prompt, cached, self.completion_tokens))
            }
            (Some(true), _) => UsageField::Null,
            _ => UsageField::Absent,
        }
    }
}
