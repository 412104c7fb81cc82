//! An answer as the user sees it: thoughts dimmed on a terminal, between their tags elsewhere.

use crate::output;
use anyhow::Result;
use dsv3_engine::ChatDelta;
use std::{
    fs::File,
    io::{IsTerminal, Write, stderr, stdout},
};

const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// What is said beside the answer: on a terminal dimmed, and with an empty line behind it.
pub(super) fn aside(text: &str) -> String {
    if dims(stderr().is_terminal()) { format!("{DIM}{text}{RESET}\n") } else { text.to_owned() }
}

/// Takes back what an answer that is left has set on the terminal. Where that fails nobody is there to see it.
pub(super) fn reset() {
    if dims(stdout().is_terminal()) {
        // Not to stdout, which who prints the answer may hold.
        let _ =
            File::options().write(true).open("/dev/tty").and_then(|mut tty| tty.write_all(RESET.as_bytes()));
    }
}

/// Whether to dim. A terminal's user who wants no colours is shown none.
fn dims(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints one answer.
pub(super) struct Printer {
    dims: bool,
    part: Part,
    /// Whether nothing of the part has been printed: white space that it begins with is not shown.
    is_new: bool,
    at_line_start: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    None,
    Thoughts,
    Content,
}

impl Printer {
    /// Before the answer.
    pub(super) fn new() -> Self {
        let dims = dims(stdout().is_terminal());
        Self { dims, part: Part::None, is_new: true, at_line_start: true }
    }

    /// Prints a piece.
    ///
    /// # Errors
    /// A failing write.
    pub(super) fn print(&mut self, delta: &ChatDelta) -> Result<()> {
        output::print(&self.shown(delta))
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// A failing write.
    pub(super) fn end(mut self) -> Result<()> {
        let text = self.leave();
        output::print(&text)
    }

    fn shown(&mut self, delta: &ChatDelta) -> String {
        let (part, text) = match delta {
            ChatDelta::Reasoning(text) => (Part::Thoughts, text.as_str()),
            ChatDelta::Content(text) => (Part::Content, text.as_str()),
            // No tools are offered, so none is called.
            ChatDelta::ToolCallStart { .. } | ChatDelta::ToolCallArguments { .. } => return String::new(),
        };
        let mut shown = String::new();
        if part != self.part {
            shown = self.leave();
            self.part = part;
            self.is_new = true;
        }
        let text = if self.is_new { text.trim_start() } else { text };
        if text.is_empty() {
            return shown;
        }
        if self.is_new && part == Part::Thoughts {
            shown += if self.dims { DIM } else { "<think>\n" };
        }
        self.is_new = false;
        self.at_line_start = text.ends_with('\n');
        shown + text
    }

    /// Ends the part, if anything was shown of it, with its line.
    fn leave(&mut self) -> String {
        let mut text = String::new();
        if self.part == Part::None || self.is_new {
            return text;
        }
        if !self.at_line_start {
            text.push('\n');
        }
        if self.part == Part::Thoughts {
            text += if self.dims { "\x1b[0m\n" } else { "</think>\n" };
        }
        self.at_line_start = true;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(dims: bool, deltas: &[ChatDelta]) -> String {
        let mut printer = Printer { dims, part: Part::None, is_new: true, at_line_start: true };
        let text: String = deltas.iter().map(|delta| printer.shown(delta)).collect();
        text + &printer.leave()
    }

    #[test]
    fn thoughts_are_set_off() {
        let thoughts = |text: &str| ChatDelta::Reasoning(text.to_owned());
        let content = |text: &str| ChatDelta::Content(text.to_owned());
        let answer =
            [thoughts("\n"), thoughts(" a"), thoughts("b\n"), content("\n\n"), content("c "), content("d")];
        assert_eq!(shown(false, &answer), "<think>\nab\n</think>\nc d\n");
        assert_eq!(shown(true, &answer), "\x1b[2mab\n\x1b[0m\nc d\n");
        assert_eq!(shown(true, &answer[..2]), "\x1b[2ma\n\x1b[0m\n");
        assert_eq!(shown(true, &[thoughts("\n"), content("x\n")]), "x\n");
        assert_eq!(shown(false, &[]), "");
    }
}
