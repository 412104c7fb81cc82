//! What goes out: notes to stderr, results to stdout.

use anyhow::{Context, Result};
use indicatif::HumanCount;
use serde::Serialize;
use std::{
    fmt::Arguments,
    io::{self, Write},
};

/// Who reads stdout has read enough: `dsv3 generate … | head`.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub(crate) struct ClosedStdout;

/// Says something to the user. Who closed stderr does not want to hear it.
pub(crate) fn note(message: Arguments<'_>) {
    // In one piece: other processes of a job may write to the same place.
    let _ = io::stderr().write_all(format!("{message}\n").as_bytes());
}

/// Writes a result to stdout and sends it off.
///
/// # Errors
/// [`ClosedStdout`], or another failing write.
pub(crate) fn print(text: &str) -> Result<()> {
    print_to(&mut io::stdout().lock(), text)
}

fn print_to(stdout: &mut impl Write, text: &str) -> Result<()> {
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClosedStdout.into()),
        result => result.context("stdout"),
    }
}

/// A number of things: `1 weight`, `1,412 weights`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", HumanCount(number), if number == 1 { "" } else { "s" })
}

/// A value as indented JSON, with a line end.
pub(crate) fn pretty_json(value: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!(
            [0, 1, 1412].map(|number| count(number, "weight")),
            ["0 weights", "1 weight", "1,412 weights"]
        );
    }

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_stdout_is_told_from_a_failing_one() {
        assert!(print_to(&mut Failing(io::ErrorKind::BrokenPipe), "x").unwrap_err().is::<ClosedStdout>());
        let full = print_to(&mut Failing(io::ErrorKind::StorageFull), "x").unwrap_err();
        assert!(!full.is::<ClosedStdout>());
        assert_eq!(full.to_string(), "stdout");
    }
}
