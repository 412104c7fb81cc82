//! From a model's text, as it comes, to its parts: thoughts, content, tool calls.
//!
//! Text may be cut anywhere, in the middle of a tag too. What may still become a tag is held back, everything else goes
//! on at once. Only the marks of the form are taken away, no other byte: a history of these parts is rendered to the
//! bytes that the model wrote, and so finds them in the prefix cache.

use std::mem;

use super::tags::{
    CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, END_FENCE, END_THINK, FENCE, SEPARATOR, THINK,
};
use super::{ChatFormat, ChatStart, ToolFormat};
use crate::random_seed;

/// The longest text before a call's arguments. Longer is no call.
const LONGEST_HEAD: usize = 512;
/// White space before a tag that is taken away with it. More is text.
const LONGEST_GAP: usize = 64;

/// One more piece of an answer. Texts are never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatDelta {
    /// Of the thoughts.
    Reasoning(String),
    /// Of the content.
    Content(String),
    /// A tool call begins.
    ToolCallStart {
        /// Its number in this answer, from 0.
        index: usize,
        /// A name of its own, by which its result can be told from others.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// Of a call's arguments: a piece of the string as the model wrote it, JSON or not.
    ToolCallArguments {
        /// The call's number.
        index: usize,
        /// The piece.
        delta: String,
    },
}

/// Takes the text of one answer apart. Nothing that a model writes is an error: a call whose beginning is not one comes
/// back as the text that it stands in, one that is cut off has the arguments that there are.
#[derive(Clone, Debug)]
pub struct ChatParser {
    format: ChatFormat,
    state: State,
    /// Text that nothing is known of yet.
    rest: String,
    /// Marks since the last piece, to be given back as text should no call follow them.
    marks: String,
    /// The text that they stand in.
    interrupted: Part,
    calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first tag of thoughts: what they are if there is one, and what if not.
    Opening {
        without: Part,
    },
    Text(Part),
    /// Behind the list's beginning, or a call's end.
    Between,
    /// Behind a call's beginning.
    Head,
    Arguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Reasoning,
    Content,
}

/// A piece of the text, or a mark of the form, which is no part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Delta(ChatDelta),
    Mark(String),
}

impl ChatParser {
    /// At the beginning of an answer.
    pub fn new(format: ChatFormat, start: ChatStart) -> Self {
        let state = match start {
            ChatStart::Reasoning if format.reasoning => State::Opening { without: Part::Reasoning },
            ChatStart::Open if format.reasoning => State::Opening { without: Part::Content },
            _ => State::Text(Part::Content),
        };
        Self {
            format,
            state,
            rest: String::new(),
            marks: String::new(),
            interrupted: Part::Content,
            calls: 0,
        }
    }

    /// Takes the next text; gives the pieces that are certain now.
    pub fn push(&mut self, text: &str) -> Vec<ChatDelta> {
        let mut pieces = Vec::new();
        self.read(text, &mut pieces);
        deltas(pieces)
    }

    /// Ends the answer: what was held back. The parser is then as a new one whose answer begins with content.
    pub fn finish(&mut self) -> Vec<ChatDelta> {
        let mut pieces = Vec::new();
        self.end(&mut pieces);
        deltas(pieces)
    }

    /// Whether a tool was called: the finish reason is then `tool_calls`.
    pub fn has_tool_calls(&self) -> bool {
        self.calls > 0
    }

    fn read(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.rest.push_str(text);
        while self.step(pieces) {}
    }

    fn end(&mut self, pieces: &mut Vec<Piece>) {
        let rest = mem::take(&mut self.rest);
        let marks = mem::take(&mut self.marks);
        match self.state {
            State::Arguments => {
                let end = rest.strip_suffix(self.end_fence()).map_or(rest.len(), str::len);
                self.arguments(rest[..end].to_owned(), pieces);
                mark(rest[end..].to_owned(), pieces);
            }
            State::Opening { without: Part::Reasoning } | State::Text(Part::Reasoning) => {
                text(Part::Reasoning, rest, pieces);
            }
            // The gap behind a call is a mark; behind a list that has no call it is text.
            State::Between if marks.is_empty() && rest.trim().is_empty() => mark(rest, pieces),
            State::Between | State::Head => text(self.interrupted, marks + &rest, pieces),
            State::Opening { .. } | State::Text(_) => text(Part::Content, rest, pieces),
        }
        self.state = State::Text(Part::Content);
        self.interrupted = Part::Content;
    }

    /// Reads on; whether there may be more to read.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Opening { without } => self.opening(without, pieces),
            State::Text(part) => self.text(part, pieces),
            State::Between => self.between(pieces),
            State::Head => self.head(pieces),
            State::Arguments => self.read_arguments(pieces),
        }
    }

    /// A tag of thoughts, also where the template has written one already.
    fn opening(&mut self, without: Part, pieces: &mut Vec<Piece>) -> bool {
        match after_gap(&self.rest, &[THINK]) {
            Gap::Unknown => return false,
            Gap::Tag(_, end) => {
                mark(self.take(end), pieces);
                self.state = State::Text(Part::Reasoning);
            }
            Gap::Other => self.state = State::Text(without),
        }
        true
    }

    fn text(&mut self, part: Part, pieces: &mut Vec<Piece>) -> bool {
        let calls: &[&str] =
            if self.format.tools == ToolFormat::None { &[] } else { &[CALLS_BEGIN, CALL_BEGIN] };
        let tags = match part {
            Part::Reasoning => [&[END_THINK], calls].concat(),
            Part::Content => calls.to_vec(),
        };
        match find(&self.rest, &tags) {
            Found::No { certain } => {
                text(part, self.take(certain), pieces);
                false
            }
            Found::Tag { at, tag: END_THINK } => {
                text(part, self.take(at), pieces);
                mark(self.take(END_THINK.len()), pieces);
                self.state = State::Text(Part::Content);
                true
            }
            // A call ends thoughts that nothing else has ended, once it is one.
            Found::Tag { at, tag } => {
                text(part, self.take(at), pieces);
                self.interrupted = part;
                self.marks = self.take(tag.len());
                self.state = if tag == CALL_BEGIN { State::Head } else { State::Between };
                true
            }
        }
    }

    fn between(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match after_gap(&self.rest, &[CALL_BEGIN, CALLS_END]) {
            Gap::Unknown => return false,
            Gap::Tag(CALL_BEGIN, end) => {
                let begin = self.take(end);
                self.marks.push_str(&begin);
                self.state = State::Head;
            }
            Gap::Tag(_, end) if self.marks.is_empty() => {
                mark(self.take(end), pieces);
                self.state = State::Text(Part::Content);
            }
            Gap::Tag(_, end) => {
                let end = self.take(end);
                self.marks.push_str(&end);
                self.give_up(pieces);
            }
            Gap::Other => self.give_up(pieces),
        }
        true
    }

    /// What looked like a call is text, which goes on.
    fn give_up(&mut self, pieces: &mut Vec<Piece>) {
        text(self.interrupted, mem::take(&mut self.marks), pieces);
        self.state = State::Text(self.interrupted);
    }

    fn head(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match read_head(&self.rest, self.format.tools) {
            Head::Unknown => return false,
            Head::None => self.give_up(pieces),
            Head::Name { start, end, arguments } => {
                mark(mem::take(&mut self.marks) + &self.take(start), pieces);
                let name = self.take(end - start);
                let (index, id) = (self.calls, format!("call_{:016x}{:08x}", random_seed(), self.calls));
                pieces.push(Piece::Delta(ChatDelta::ToolCallStart { index, id, name }));
                mark(self.take(arguments - end), pieces);
                self.calls += 1;
                self.interrupted = Part::Content;
                self.state = State::Arguments;
            }
        }
        true
    }

    fn read_arguments(&mut self, pieces: &mut Vec<Piece>) -> bool {
        // A call may end without its tag: with its list, or where the next one begins.
        let tags = [CALL_END, CALL_BEGIN, CALLS_END];
        let fence = self.end_fence();
        match find(&self.rest, &tags) {
            Found::No { certain } => {
                let certain = certain - held_fence(&self.rest[..certain], fence);
                let delta = self.take(certain);
                self.arguments(delta, pieces);
                false
            }
            Found::Tag { at, tag } => {
                let end = self.rest[..at].strip_suffix(fence).map_or(at, str::len);
                let delta = self.take(end);
                self.arguments(delta, pieces);
                let own = if tag == CALL_END { tag.len() } else { 0 };
                mark(self.take(at - end + own), pieces);
                self.state = State::Between;
                true
            }
        }
    }

    /// What stands behind arguments.
    fn end_fence(&self) -> &'static str {
        if self.format.tools == ToolFormat::DeepSeekV3 { END_FENCE } else { "" }
    }

    fn arguments(&self, delta: String, pieces: &mut Vec<Piece>) {
        if !delta.is_empty() {
            pieces.push(Piece::Delta(ChatDelta::ToolCallArguments { index: self.calls - 1, delta }));
        }
    }

    fn take(&mut self, length: usize) -> String {
        self.rest.drain(..length).collect()
    }
}

fn text(part: Part, text: String, pieces: &mut Vec<Piece>) {
    if !text.is_empty() {
        pieces.push(Piece::Delta(match part {
            Part::Reasoning => ChatDelta::Reasoning(text),
            Part::Content => ChatDelta::Content(text),
        }));
    }
}

fn mark(text: String, pieces: &mut Vec<Piece>) {
    if !text.is_empty() {
        pieces.push(Piece::Mark(text));
    }
}

/// Without the marks, and with pieces of one thing in one.
fn deltas(pieces: Vec<Piece>) -> Vec<ChatDelta> {
    let mut deltas: Vec<ChatDelta> = Vec::new();
    for piece in pieces {
        let Piece::Delta(delta) = piece else { continue };
        match (deltas.last_mut(), &delta) {
            (Some(ChatDelta::Reasoning(before)), ChatDelta::Reasoning(more))
            | (Some(ChatDelta::Content(before)), ChatDelta::Content(more)) => before.push_str(more),
            _ => deltas.push(delta),
        }
    }
    deltas
}

enum Found {
    /// Before `certain` there is none, and none begins.
    No {
        certain: usize,
    },
    Tag {
        at: usize,
        tag: &'static str,
    },
}

/// The first of these tags in a text. None of them begins another.
fn find(text: &str, tags: &[&'static str]) -> Found {
    let first = tags.iter().filter_map(|&tag| Some((text.find(tag)?, tag))).min();
    if let Some((at, tag)) = first {
        return Found::Tag { at, tag };
    }
    let held = tags.iter().map(|tag| held(text, tag)).max().unwrap_or(0);
    Found::No { certain: text.len() - held }
}

/// How many bytes at the end of a text are the beginning of this tag.
fn held(text: &str, tag: &str) -> usize {
    let longest = text.len().min(tag.len() - 1);
    (1..=longest).rev().find(|&length| text.as_bytes().ends_with(&tag.as_bytes()[..length])).unwrap_or(0)
}

/// How many bytes at the end of arguments may belong to the fence that ends them.
fn held_fence(arguments: &str, fence: &str) -> usize {
    if arguments.ends_with(fence) {
        return fence.len();
    }
    held(arguments, fence)
}

enum Gap {
    /// It may yet become one of the tags.
    Unknown,
    /// Which, and where it ends.
    Tag(&'static str, usize),
    Other,
}

/// What stands behind white space.
fn after_gap(text: &str, tags: &[&'static str]) -> Gap {
    let tail = text.trim_start();
    let gap = text.len() - tail.len();
    if gap > LONGEST_GAP {
        return Gap::Other;
    }
    if let Some(&tag) = tags.iter().find(|&&tag| tail.starts_with(tag)) {
        return Gap::Tag(tag, gap + tag.len());
    }
    if tags.iter().any(|tag| tag.starts_with(tail)) { Gap::Unknown } else { Gap::Other }
}

enum Head {
    Unknown,
    None,
    /// Where the name starts and ends, and where the arguments start.
    Name {
        start: usize,
        end: usize,
        arguments: usize,
    },
}

/// A call between its beginning and its arguments.
fn read_head(text: &str, format: ToolFormat) -> Head {
    let too_long = if text.len() > LONGEST_HEAD { Head::None } else { Head::Unknown };
    let Some(separator) = text.find(SEPARATOR) else {
        // Tags of calls never stand in a head.
        return if is_word_so_far(text) { too_long } else { Head::None };
    };
    let behind = separator + SEPARATOR.len();
    match format {
        ToolFormat::None => Head::None,
        ToolFormat::DeepSeekV31 if !is_word(&text[..separator]) => Head::None,
        ToolFormat::DeepSeekV31 => Head::Name { start: 0, end: separator, arguments: behind },
        ToolFormat::DeepSeekV3 => {
            if !is_word(&text[..separator]) {
                return Head::None;
            }
            let Some(line) = text[behind..].find('\n') else {
                return if text[behind..].is_empty() || is_word(&text[behind..]) {
                    too_long
                } else {
                    Head::None
                };
            };
            let (end, fence) = (behind + line, behind + line + 1);
            if !is_word(&text[behind..end]) {
                Head::None
            } else if text[fence..].starts_with(FENCE) {
                Head::Name { start: behind, end, arguments: fence + FENCE.len() }
            } else if FENCE.starts_with(&text[fence..]) {
                Head::Unknown
            } else {
                Head::None
            }
        }
    }
}

/// Whether a text can be the name of a tool or of a kind of tool.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(['\n', '<', '｜'])
}

/// Whether it can become one that a separator follows.
fn is_word_so_far(text: &str) -> bool {
    let word = &text[..text.len() - held(text, SEPARATOR)];
    word.is_empty() || is_word(word)
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
