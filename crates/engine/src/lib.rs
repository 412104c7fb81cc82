//! Text generation over any [`LanguageModel`]: sequences, pages, sampler, tokenizer and chat templates.
//!
//! The data of one request flows through the files in this order:
//!
//! ```text
//! messages --chat--> text --tokenizer--> ids --generate--> model (prefill in chunks, then token by token)
//!                                                            | logits
//!      text <--stop-- text pieces <--detokenizer-- id <--sampler
//! ```
//!
//! [`Engine`] runs many requests at once, each a sequence with its pages of the cache; [`EngineThread`] gives it a thread
//! of its own, and [`Generator`] is for who has one request after another. Nothing here knows DeepSeek or sockets: the
//! model is a trait, so that the tests run the whole loop over an automaton.
//!
//! ```
//! # use std::{ops::ControlFlow, path::Path, sync::Arc};
//! use dsv3_engine::*;
//!
//! fn ask(model: &mut impl LanguageModel, checkpoint: &Path, question: &str) -> Result<String, Error> {
//!     let tokenizer = Arc::new(Tokenizer::from_dir(checkpoint, model.limits().vocab_size)?);
//!     let prompt = match ChatTemplate::from_dir(checkpoint)? {
//!         Some(template) => {
//!             let text = template.render(&[Message::new("user", question)], &ChatOptions::default())?;
//!             tokenizer.encode(&text, Bos::AsWritten)?
//!         }
//!         None => tokenizer.encode(question, Bos::Add)?,
//!     };
//!     let defaults = GenerationConfig::from_dir(checkpoint)?;
//!     let request = Request::new(&defaults, &tokenizer, random_seed(), 256)?;
//!     let generation = Generator::new(model, &tokenizer, 512)?.generate(&prompt, &request, |event| {
//!         print!("{}", event.text_delta);
//!         ControlFlow::Continue(())
//!     })?;
//!     Ok(generation.text)
//! }
//! ```

#![forbid(unsafe_code)]

mod adjust;
mod cache_state;
mod chat;
mod detokenizer;
mod engine;
mod error;
pub mod eval;
mod files;
mod filter;
mod generate;
mod generation_config;
mod gguf;
mod logprobs;
mod model;
mod pages;
mod prompts;
mod ranks;
mod report;
mod sampler;
mod sequence;
mod stop;
mod structured;
mod tokenizer;
mod tokenizer_config;

#[cfg(test)]
mod golden;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use adjust::Penalties;
pub use cache_state::{CacheReport, CacheState};
pub use chat::tags;
pub use chat::{
    ChatAnswer, ChatDelta, ChatFormat, ChatOptions, ChatParser, ChatStart, ChatTemplate, Content,
    ContentPart, Message, ToolCall, ToolFormat,
};
pub use detokenizer::Detokenizer;
pub use engine::{
    Engine, EngineConfig, EngineHandle, EngineThread, Health, Histogram, Place, RequestId, Reuse, Snapshot,
    StepReport, StreamEvent, Submission, Ticket, Usage,
};
pub use error::Error;
use error::check_range;
pub use files::{NewFile, read_json, write_json};
pub use generate::{Generation, Generator, Rate, Timings};
pub use generation_config::GenerationConfig;
pub use gguf::GgufTokenizer;
pub use logprobs::{MOST_TOP_LOGPROBS, TokenLogprobs};
pub use model::{ChosenExperts, LanguageModel, ModelLimits};
pub use pages::{CachedPrefix, KeptPage, PageKey, PagePool, PageTable, PageUse};
pub use prompts::read_prompts;
pub use ranks::{LEADER, Leader, decode_message_bytes, follow, prefill_message_bytes};
pub use report::{GenerationRecord, RecordLog, Report, Statistics, default_output_path};
pub use sampler::{Sampler, SamplingParams, random_seed};
pub use sequence::{Event, Request, SampledToken};
pub use stop::{Finish, FinishReason, StopMatcher};
pub use structured::{Constraint, Guide, Guides};
pub use tokenizer::{Bos, Tokenizer};
pub use tokenizer_config::{NamedTemplate, TokenizerConfig};
