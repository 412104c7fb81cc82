//! What the user says: lines edited in a terminal, or lines from a pipe.

use super::command;
use anyhow::{Context, Result, bail};
use rustyline::{
    Config, Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::MemHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};
use std::io::{BufRead, IsTerminal, Read, stdin, stdout};

/// The longest text from a pipe. More than any context holds.
const LONGEST: u64 = 64 << 20;
const PROMPT: &str = "> ";
/// Begins and ends a message of several lines.
const QUOTES: &str = "\"\"\"";

/// Where the user speaks.
pub(super) enum Input {
    /// With an editor of lines, and a history of this conversation's.
    Terminal(Box<Editor<Lines, MemHistory>>),
    /// Without.
    Pipe,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A text.
    Text(String),
    /// Ctrl-C.
    Interrupt,
    /// The end of the input, or Ctrl-D.
    End,
}

impl Input {
    /// The standard input, with an editor where a person sits before it.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub(super) fn open() -> Result<Self> {
        if !(stdin().is_terminal() && stdout().is_terminal()) {
            return Ok(Self::Pipe);
        }
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_history(config, MemHistory::new()).context("the terminal")?;
        editor.set_helper(Some(Lines));
        Ok(Self::Terminal(Box::new(editor)))
    }

    /// Whether a person sits before it.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// Waits for the next text.
    ///
    /// # Errors
    /// Input that cannot be read, is no UTF-8, or is too long.
    pub(super) fn read(&mut self) -> Result<Said> {
        let Self::Terminal(editor) = self else { return read_lines(&mut stdin().lock()) };
        match editor.readline(PROMPT) {
            Ok(text) => Ok(Said::Text(unquoted(&text))),
            Err(ReadlineError::Eof) => Ok(Said::End),
            Err(ReadlineError::Interrupted) => Ok(Said::Interrupt),
            Err(error) => Err(error).context("the terminal"),
        }
    }
}

/// Reads lines until a text is complete.
fn read_lines(input: &mut impl BufRead) -> Result<Said> {
    let mut text = String::new();
    loop {
        let left = (LONGEST + 1).saturating_sub(text.len() as u64);
        let length = input.by_ref().take(left).read_line(&mut text).context("stdin")?;
        if text.len() as u64 > LONGEST {
            bail!("stdin: expected messages of at most {LONGEST} bytes, got more");
        }
        let line = text.strip_suffix('\n').map_or(&text[..], |line| line.strip_suffix('\r').unwrap_or(line));
        if length == 0 && text.is_empty() {
            return Ok(Said::End);
        }
        if length == 0 || is_complete(line) {
            return Ok(Said::Text(unquoted(line)));
        }
    }
}

/// Whether a text needs no further line.
fn is_complete(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(inner) => inner.trim_end().ends_with(QUOTES),
        None => !text.ends_with('\\'),
    }
}

/// A text without the marks that made it one.
fn unquoted(text: &str) -> String {
    let Some(inner) = text.trim_start().strip_prefix(QUOTES) else {
        return text.replace("\\\r\n", "\n").replace("\\\n", "\n");
    };
    let inner = inner.trim_end();
    let inner = inner.strip_suffix(QUOTES).unwrap_or(inner);
    let inner = inner.strip_prefix('\n').unwrap_or(inner);
    inner.strip_suffix('\n').unwrap_or(inner).to_owned()
}

/// What the editor knows of lines: when they are complete, and the names of commands.
pub(super) struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let complete = is_complete(context.input());
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Completer for Lines {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..position];
        let fitting = command::NAMES.iter().filter(|name| begun.starts_with('/') && name.starts_with(begun));
        Ok((0, fitting.map(|&name| name.to_owned()).collect()))
    }
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}
impl Helper for Lines {}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(input: &str) -> Vec<String> {
        let mut input = input.as_bytes();
        let mut texts = Vec::new();
        while let Said::Text(text) = read_lines(&mut input).unwrap() {
            texts.push(text);
        }
        texts
    }

    #[test]
    fn a_text_may_have_several_lines() {
        assert_eq!(texts("a\nb\r\n\nc"), ["a", "b", "", "c"]);
        assert_eq!(texts("a\\\nb\\\r\nc\nd\n"), ["a\nb\nc", "d"]);
        assert_eq!(texts("\"\"\"\na\n\n b\\\n\"\"\"\nc\n"), ["a\n\n b\\", "c"]);
        assert_eq!(texts("\"\"\"a\"\"\"\n"), ["a"]);
        assert_eq!(texts("\"\"\"a\nb"), ["a\nb"], "what the end of the input cuts off");
        assert_eq!(texts("a\\"), ["a\\"]);
        assert_eq!(texts(""), [""; 0]);
    }

    #[test]
    fn what_is_no_text_is_an_error() {
        let error = read_lines(&mut &b"a\xFF\n"[..]).unwrap_err();
        assert!(crate::one_line(&error).starts_with("stdin: "), "{error:#}");
    }
}
