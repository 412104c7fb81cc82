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
//! [`Sequence`] holds all that belongs to one request, its [`PageTable`] included, and never touches the model;
//! [`Generator`] drives one sequence at a time. Nothing here knows DeepSeek, threads or sockets: the model is a
//! trait of two functions, so that the tests run the whole loop over an automaton.
//!
//! ```
//! # use std::{ops::ControlFlow, path::Path};
//! use dsv3_engine::*;
//!
//! fn ask(model: &mut impl LanguageModel, checkpoint: &Path, question: &str) -> Result<String, Error> {
//!     let tokenizer = Tokenizer::from_dir(checkpoint, model.limits().vocab_size)?;
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

mod chat;
mod detokenizer;
mod error;
pub mod eval;
mod files;
mod filter;
mod generate;
mod generation_config;
mod gguf;
mod model;
mod pages;
mod prompts;
mod ranks;
mod report;
mod sampler;
mod sequence;
mod stop;
mod tokenizer;
mod tokenizer_config;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod testing;

pub use chat::{
    ChatAnswer, ChatDelta, ChatFormat, ChatOptions, ChatParser, ChatStart, ChatTemplate, Content,
    ContentPart, Message, ToolCall, ToolFormat,
};
pub use detokenizer::Detokenizer;
pub use error::Error;
pub use files::{NewFile, read_json, write_json};
pub use generate::{Generation, Generator, Rate, Timings};
pub use generation_config::GenerationConfig;
pub use gguf::GgufTokenizer;
pub use model::{LanguageModel, ModelLimits};
pub use pages::{PagePool, PageTable};
pub use prompts::read_prompts;
pub use ranks::{LEADER, Leader, decode_message_bytes, follow, prefill_message_bytes};
pub use report::{GenerationRecord, RecordLog, Report, Statistics, default_output_path};
pub use sampler::{Sampler, SamplingParams, logprob, random_seed};
pub use sequence::{Event, Request, SampledToken, Sequence};
pub use stop::{Finish, FinishReason, StopMatcher};
pub use tokenizer::{Bos, Tokenizer};
pub use tokenizer_config::{NamedTemplate, TokenizerConfig};
