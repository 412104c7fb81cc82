//! An engine over HTTP, as OpenAI's clients expect it.
//!
//! ```text
//! socket --serve--> routes --body, request--> prepare (template, tokenizer; on threads of their own)
//!                                                | Submission
//!   client <--reply, stream-- answer <--events-- engine (its own thread; nothing async)
//! ```
//!
//! This crate is the only place with async code. It knows an [`EngineHandle`](dsv3_engine::EngineHandle), a tokenizer and a
//! chat template, and no model: the tests serve an automaton, without a socket. The engine's thread never waits for a
//! client: events go into a channel of a bounded length, and who does not read is cut off. A client that goes away drops its
//! request's tickets, which cancels it within one step.

#![forbid(unsafe_code)]

mod answer;
mod app;
mod auth;
mod body;
mod config;
mod error;
mod grammar;
mod hosts;
mod log;
mod metrics;
mod page;
mod prepare;
mod reply;
mod request;
mod routes;
mod serve;
mod stream;

#[cfg(test)]
mod tests;

pub use app::ModelInfo;
pub use config::{Limits, LogFormat, ServerConfig};
pub use error::ApiError;
pub use request::check_body;
pub use serve::{Ended, Loaded, ServeError, Server};
