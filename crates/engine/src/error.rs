//! The one error type of this crate: everything that can be wrong with files, prompts and requests.

use std::path::PathBuf;

use dsv3_runtime::TokenId;

/// What went wrong, with the file, field, position or parameter at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operating-system error on a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file whose content is not what its format demands.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, expected and got.
        message: String,
    },
    /// One field of a JSON file that is not what it should be.
    #[error("{}: {field}: {message}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's path in the file, as `prompts[3].prompt`.
        field: String,
        /// What is wrong with it, expected and got.
        message: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] dsv3_runtime::Error),
    /// The tokenizer could not encode a text.
    #[error("the tokenizer cannot encode the text: {0}")]
    Encode(String),
    /// The chat template refused the messages by its own `raise_exception`; the message is the template's.
    #[error("the chat template refuses the messages: {0}")]
    TemplateRaised(String),
    /// The chat template failed on these messages.
    #[error("the chat template {template} fails: {message}")]
    Template {
        /// Which of the checkpoint's templates.
        template: String,
        /// What the template engine said.
        message: String,
    },
    /// The chat template leaves a message out, because it does not know its role.
    #[error("messages[{index}]: the chat template has no role {role:?} and would leave the message out")]
    UnknownRole {
        /// Which message.
        index: usize,
        /// Its role.
        role: String,
    },
    /// A content part that is not text.
    #[error("messages[{index}]: a content part of type {kind:?} is not supported, only \"text\" is")]
    ContentPart {
        /// Which message.
        index: usize,
        /// The part's type.
        kind: String,
    },
    /// A last message that an answer cannot continue.
    #[error("the last message cannot be continued: {0}")]
    Continue(&'static str),
    /// A prompt without tokens.
    #[error("the prompt is empty: there is nothing to continue")]
    EmptyPrompt,
    /// A prompt's id that the model has no embedding for.
    #[error("prompt token {position} has id {}, but the model's vocabulary has {vocab_size} ids", token.0)]
    TokenOutOfVocabulary {
        /// Where in the prompt.
        position: usize,
        /// The id.
        token: TokenId,
        /// The number of ids the model knows.
        vocab_size: usize,
    },
    /// A prompt that the model's state cannot hold.
    #[error("the prompt has {prompt} tokens, but the context holds {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the context.
        context: usize,
    },
    /// A text that is too short to be measured.
    #[error("the text has {tokens} token{}, but {needed} are needed", if *tokens == 1 { "" } else { "s" })]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// The fewest that would do.
        needed: usize,
    },
    /// Not enough free pages in the latent cache.
    #[error("the cache is out of pages: {needed} more needed, {free} of {total} free")]
    OutOfPages {
        /// Pages that were asked for.
        needed: usize,
        /// Pages that are free.
        free: usize,
        /// Pages of the cache.
        total: usize,
    },
    /// A parameter of a request that is outside of its range.
    #[error("{parameter} is {value}, but must be {expected}")]
    Parameter {
        /// The parameter's name.
        parameter: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A constraint on the answer's form that cannot be kept.
    #[error("{field}: {message}")]
    Constraint {
        /// Which kind of constraint: `json_schema`, `regex` or `grammar`.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// As many requests wait as may.
    #[error("the queue is full: {waiting} requests wait, and no more than {limit} may")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
        /// Requests that may wait.
        limit: usize,
    },
    /// An engine that ends takes no more requests.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// An engine whose model has failed takes no more requests.
    #[error("the engine has failed: {0}")]
    Failed(String),
    /// A logit from which no probability can be made.
    #[error("the model's logit of token {} is {value}", token.0)]
    Logit {
        /// The first such token.
        token: TokenId,
        /// NaN or +inf.
        value: f32,
    },
    /// Logits that are all -inf.
    #[error("all of the model's logits are -inf: no token can be chosen")]
    NoToken,
}

impl Error {
    /// Names the file of an operating-system error: `.map_err(Error::io(path))`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Whether a parameter is in its range.
pub(crate) fn check_range(
    parameter: &'static str,
    value: impl ToString + Copy,
    is_in_range: bool,
    expected: &'static str,
) -> Result<(), Error> {
    if is_in_range { Ok(()) } else { Err(Error::Parameter { parameter, value: value.to_string(), expected }) }
}
