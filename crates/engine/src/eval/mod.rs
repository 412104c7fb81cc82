//! What a model is worth, in figures: perplexity of a text, divergence from other logits, accuracy under teacher
//! forcing.
//!
//! The measures are llama.cpp's `llama-perplexity`'s and those of the original's teacher-forced demo, so that figures
//! can be compared: [`Windows`] cuts a text as it does, [`LogProbFile`] is its file of base log-probabilities. All
//! sums are in f64, and over the vocabulary in order of the ids.
//!
//! ```text
//! text --tokenizer--> ids --Windows--> Feed (prefill in chunks) --logits--> PerplexityRun, Divergence
//!                                                                              | Base: LogProbFile, LogitsFile
//! Reference --prompt--> Feed (prefill, then the given tokens one by one) --logits--> TeacherForcing
//! ```

mod base;
mod distribution;
mod divergence;
mod feed;
mod perplexity;
mod statistics;
mod teacher_forcing;
mod windows;

pub use base::{Base, BaseRow, LogProbFile, LogProbWriter, LogitsFile};
pub use distribution::{Distribution, top_tokens};
pub use divergence::{Comparison, Divergence, DivergenceReport};
pub use feed::Feed;
pub use perplexity::{PerplexityReport, perplexity};
pub use statistics::{Mean, percentile};
pub use teacher_forcing::{Accuracy, Entry, Reference, TeacherForcing};
pub use windows::{Window, Windows};
