//! What a line means: something to say, or a command.

use anyhow::{Result, bail};
use std::path::Path;

/// The commands, by name.
pub(super) const NAMES: [&str; 9] =
    ["/exit", "/help", "/load", "/new", "/params", "/quit", "/regenerate", "/save", "/system"];

/// What `/help` says.
pub(super) const HELP: &str = r#"/system [TEXT]         show the system message, or set it; the conversation stays
/params [NAME VALUE]   show how answers are chosen, or change it: temperature, top_p,
                       top_k, min_p, repetition_penalty, seed, max_new_tokens,
                       variables of the chat template
/regenerate            answer once more
/new                   begin another conversation; the system message stays
/save FILE             write the conversation as a JSON list of messages
/load FILE             go on with a conversation
/help                  show this
/exit                  leave; so do Ctrl-D, and Ctrl-C twice

A line that ends with \ goes on in the next; lines between """ and """ are one
message. A message that begins with / is written with //. Ctrl-C stops an answer;
what there is of it stays."#;

/// What a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    /// An empty line.
    Nothing,
    /// A message.
    Say(&'a str),
    /// `/help`.
    Help,
    /// `/system`, with a text to set it.
    System(Option<&'a str>),
    /// `/save`.
    Save(&'a Path),
    /// `/load`.
    Load(&'a Path),
    /// `/params`, with a name and a value to set one.
    Params(Option<(&'a str, &'a str)>),
    /// `/new`.
    New,
    /// `/regenerate`.
    Regenerate,
    /// `/exit`.
    Exit,
}

impl<'a> Command<'a> {
    /// Reads a text.
    ///
    /// # Errors
    /// A command that does not exist, or lacks something.
    pub(super) fn parse(text: &'a str) -> Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::Nothing);
        }
        if let Some(rest) = text.strip_prefix("//") {
            return Ok(Self::Say(&text[text.len() - rest.len() - 1..]));
        }
        if !text.starts_with('/') {
            return Ok(Self::Say(text));
        }
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        let file = || match rest {
            Some(name) => Ok(Path::new(name)),
            None => bail!("{name} needs the name of a file"),
        };
        Ok(match name {
            "/help" => Self::Help,
            "/system" => Self::System(rest),
            "/save" => Self::Save(file()?),
            "/load" => Self::Load(file()?),
            "/params" => match rest.map(|rest| rest.split_once(char::is_whitespace)) {
                None => Self::Params(None),
                Some(Some((name, value))) => Self::Params(Some((name, value.trim()))),
                Some(None) => bail!("/params needs a name and a value"),
            },
            "/new" => Self::New,
            "/regenerate" => Self::Regenerate,
            "/exit" | "/quit" => Self::Exit,
            _ => bail!("{name} is no command: /help lists them, and // begins a message with /"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_begins_a_command_and_two_a_message() {
        for (text, command) in [
            ("", Command::Nothing),
            (" \n", Command::Nothing),
            (" hi /x", Command::Say(" hi /x")),
            ("//usr is a path", Command::Say("/usr is a path")),
            ("/help", Command::Help),
            ("/system", Command::System(None)),
            ("/system  Be\nbrief. ", Command::System(Some("Be\nbrief."))),
            ("/save a b.json", Command::Save(Path::new("a b.json"))),
            ("/load x", Command::Load(Path::new("x"))),
            ("/params ", Command::Params(None)),
            ("/params top_p  0.5", Command::Params(Some(("top_p", "0.5")))),
            ("/new", Command::New),
            ("/regenerate", Command::Regenerate),
            ("/quit", Command::Exit),
        ] {
            assert_eq!(Command::parse(text).unwrap(), command, "{text}");
        }
        for text in ["/", "/hlep", "/save", "/load ", "/params x"] {
            assert!(Command::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn help_names_all_commands() {
        assert!(NAMES.iter().all(|&name| HELP.contains(name) || name == "/quit"));
        assert!(
            NAMES
                .iter()
                .all(|name| { Command::parse(name).is_ok() || Command::parse(&format!("{name} x")).is_ok() })
        );
    }
}
