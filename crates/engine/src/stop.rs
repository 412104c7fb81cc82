//! Why a generation ends, and the search for stop strings in text that arrives in pieces.
//!
//! A stop string may begin in one token and end three tokens later. Text that may still become one is held back;
//! text that is part of one is never handed out, unless the whole of it is asked for.

use dsv3_runtime::TokenId;
use serde::{Serialize, Serializer};

use crate::Error;

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model chose an end-of-sequence token.
    EndOfSequence(TokenId),
    /// The text came to this stop string.
    StopString(String),
    /// The answer has the form that it must have, and nothing may follow.
    GrammarEnd,
    /// As many tokens as were asked for.
    MaxNewTokens,
    /// The context is full.
    ContextEnd,
    /// The caller did not want more.
    Cancelled,
}

impl Finish {
    /// The reason in the few words that the OpenAI interface has.
    pub fn reason(&self) -> FinishReason {
        match self {
            Self::EndOfSequence(_) | Self::StopString(_) | Self::GrammarEnd => FinishReason::Stop,
            Self::MaxNewTokens | Self::ContextEnd => FinishReason::Length,
            Self::Cancelled => FinishReason::Abort,
        }
    }
}

/// Serialises as the reason.
impl Serialize for Finish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.reason().serialize(serializer)
    }
}

/// `stop` and `length` as in the OpenAI interface, `abort` as vLLM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model or a stop string ended it.
    Stop,
    /// A limit ended it.
    Length,
    /// The caller ended it.
    Abort,
}

/// Finds the first stop string in a text that arrives in pieces; one pass, nothing is searched twice.
///
/// First is the one that *ends* first, and of several that end together the longest: the choice depends on the text
/// alone, not on where its pieces are cut.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Whether the string that is found is handed out.
    include: bool,
    /// Text that is a prefix of some stop string, and so neither handed out nor dropped yet.
    held: String,
}

/// One stop string as a Knuth-Morris-Pratt automaton.
#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    /// `borders[i]`: the longest proper prefix of the text that is also a suffix of `text[..=i]`.
    borders: Vec<usize>,
    /// How many bytes of the pattern the text so far ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher of these strings; with none, all text passes at once. The one that is found is handed out at last, if
    /// asked for.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an empty string, which would stop every text before it begins.
    pub fn new(strings: &[String], include: bool) -> Result<Self, Error> {
        if strings.iter().any(String::is_empty) {
            let expected = "strings that are not empty";
            return Err(Error::Parameter { parameter: "stop", value: "\"\"".to_owned(), expected });
        }
        let patterns = strings.iter().map(|text| Pattern::new(text)).collect();
        Ok(Self { patterns, include, held: String::new() })
    }

    /// Takes the next piece of text. What can be handed out is appended to `out`. The stop string, if the text has
    /// come to one: the rest of the piece is dropped, and nothing more may be pushed.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<String> {
        let before = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            let mut stop: Option<&Pattern> = None;
            for pattern in &mut self.patterns {
                let complete = pattern.advance(byte);
                if complete && stop.is_none_or(|longest| longest.text.len() < pattern.text.len()) {
                    stop = Some(pattern);
                }
            }
            if let Some(pattern) = stop {
                let left_out = if self.include { 0 } else { pattern.text.len() };
                self.held.truncate(before + index + 1 - left_out);
                out.push_str(&self.held);
                self.held.clear();
                return Some(pattern.text.clone());
            }
        }
        let undecided = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        // A pattern begins with a whole character, so this is a character boundary.
        out.extend(self.held.drain(..self.held.len() - undecided));
        None
    }

    /// The text that was held back for a stop string that did not come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len()];
        for index in 1..bytes.len() {
            let mut border = borders[index - 1];
            while border > 0 && bytes[index] != bytes[border] {
                border = borders[border - 1];
            }
            borders[index] = border + usize::from(bytes[index] == bytes[border]);
        }
        Self { text: text.to_owned(), borders, matched: 0 }
    }

    /// Takes one byte of the text; whether the pattern is complete with it.
    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(pieces: &[&str], stops: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops, false).unwrap();
        let mut outputs = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let stop = matcher.push(piece, &mut out);
            outputs.push(out);
            if stop.is_some() {
                return (outputs, stop);
            }
        }
        outputs.push(matcher.finish());
        (outputs, None)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_not_handed_out() {
        let (outputs, stop) = run(&["one\n", "\nQue", "stion: two"], &["\n\nQuestion:"]);
        assert_eq!(outputs, ["one", "", ""]);
        assert_eq!(stop.as_deref(), Some("\n\nQuestion:"));
    }

    #[test]
    fn text_that_does_not_become_a_stop_string_is_released() {
        let (outputs, stop) = run(&["a##", "#", "b#"], &["####"]);
        assert_eq!(outputs, ["a", "", "###b", "#"]);
        assert_eq!(stop, None);
    }

    #[test]
    fn a_false_start_inside_a_start_is_seen() {
        let (outputs, stop) = run(&["aab", "aac"], &["aac"]);
        assert_eq!(outputs.concat(), "aab");
        assert_eq!(stop.as_deref(), Some("aac"));
    }

    #[test]
    fn the_string_that_ends_first_wins_and_of_those_the_longest() {
        assert_eq!(run(&["xabcd"], &["abcd", "bc"]), (vec!["xa".to_owned()], Some("bc".to_owned())));
        assert_eq!(run(&["xabc"], &["bc", "abc"]), (vec!["x".to_owned()], Some("abc".to_owned())));
    }

    #[test]
    fn a_stop_string_may_be_part_of_the_text() {
        let mut matcher = StopMatcher::new(&["END".to_owned()], true).unwrap();
        let mut out = String::new();
        assert_eq!(matcher.push("a E", &mut out), None);
        assert_eq!(out, "a ");
        assert_eq!(matcher.push("ND b", &mut out).as_deref(), Some("END"));
        assert_eq!(out, "a END");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        let error = StopMatcher::new(&[String::new()], false).unwrap_err();
        assert!(matches!(error, Error::Parameter { parameter: "stop", .. }), "{error}");
    }

    #[test]
    fn reasons_serialise_as_the_interface_names_them() {
        let json = |finish: Finish| serde_json::to_string(&finish).unwrap();
        assert_eq!(json(Finish::EndOfSequence(TokenId(1))), "\"stop\"");
        assert_eq!(json(Finish::StopString("x".to_owned())), "\"stop\"");
        assert_eq!(json(Finish::MaxNewTokens), "\"length\"");
        assert_eq!(json(Finish::ContextEnd), "\"length\"");
        assert_eq!(json(Finish::Cancelled), "\"abort\"");
    }

    /// The definition: the shortest prefix that ends with a stop string, less the longest one that it ends with.
    fn naive(text: &str, stops: &[String]) -> (String, Option<String>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let prefix = &text[..end];
            let stop =
                stops.iter().filter(|stop| prefix.ends_with(stop.as_str())).max_by_key(|stop| stop.len());
            if let Some(stop) = stop {
                return (prefix[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_text_up_to_the_first_stop_string(
            pieces in prop::collection::vec("[abé😀]{0,4}", 0..30),
            stops in prop::collection::vec("[abé😀]{1,4}", 0..4),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (outputs, stop) = run(&pieces, &borrowed);
            let (text, expected) = naive(&pieces.concat(), &stops);
            prop_assert_eq!(outputs.concat(), text);
            prop_assert_eq!(stop, expected);
        }
    }
}
