//! What a model's logits are compared with: log-probabilities of llama-perplexity's format, or logits as
//! `dsv3 logits` writes them. Both are read row by row; sizes in a file are checked against its length before anything
//! is allocated by them.

mod log_probs;
mod logits;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dsv3_runtime::TokenId;

pub use log_probs::{LogProbFile, LogProbWriter};
pub use logits::LogitsFile;

use super::Windows;
use crate::Error;

/// An open file of base logits, with its rows in the order in which windows score them.
#[derive(Debug)]
pub enum Base {
    /// In llama-perplexity's format, 16 bits a token, with the text's tokens.
    LogProbs(LogProbFile),
    /// A tensor `logits` of one sequence, F32, `[tokens, vocab]`.
    Logits(LogitsFile),
}

/// The base's log-probabilities after one token, and how exact they are.
#[derive(Clone, Copy, Debug)]
pub struct BaseRow<'a> {
    /// Natural logarithms of the probabilities, `[vocab]`.
    pub log_probs: &'a [f64],
    /// Tokens at or below this log-probability are not counted: the file does not know them.
    pub floor: f64,
    /// From one log-probability that the file can hold to the next; 0 for floats.
    pub step: f64,
}

impl Base {
    /// Opens a file of either kind; its first bytes tell which.
    ///
    /// # Errors
    /// A file that cannot be read, is of neither kind, is shorter or longer than it says, or is of another
    /// vocabulary.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut magic = [0; log_probs::MAGIC.len()];
        let got = file.read(&mut magic).map_err(Error::io(path))?;
        if magic[..got] == *log_probs::MAGIC {
            return Ok(Self::LogProbs(LogProbFile::open(path, vocab_size)?));
        }
        Ok(Self::Logits(LogitsFile::open(path, vocab_size)?))
    }

    /// The text's tokens, where the file has them.
    pub fn tokens(&self) -> Option<&[TokenId]> {
        match self {
            Self::LogProbs(file) => Some(file.tokens()),
            Self::Logits(_) => None,
        }
    }

    /// The windows that the file's rows are of, in a text of so many tokens. `bos` is for files of several windows; a
    /// single sequence is as it is.
    ///
    /// # Errors
    /// A text that does not fit the file.
    pub fn windows(&self, tokens: usize, bos: Option<TokenId>) -> Result<Windows, Error> {
        match self {
            Self::LogProbs(file) => Windows::halves(tokens, file.window(), bos),
            Self::Logits(file) => {
                file.check_tokens(tokens)?;
                Windows::whole(tokens)
            }
        }
    }

    /// The next row that counts.
    ///
    /// # Errors
    /// If it cannot be read, or is no distribution.
    ///
    /// # Panics
    /// If all have been read.
    pub fn next_row(&mut self) -> Result<BaseRow<'_>, Error> {
        match self {
            Self::LogProbs(file) => file.next_row(),
            Self::Logits(file) => file.next_row(),
        }
    }
}

/// What is wrong with the content of a file.
fn format(path: &Path, message: String) -> Error {
    Error::Format { path: path.to_owned(), message }
}
