//! From what was typed, piped or written into a file to the ids that the model continues.

use super::super::read_token_ids;
use crate::{
    args::{Cli, GenerateArgs},
    model::OpenModel,
    output::note,
};
use anyhow::{Context, Result, bail};
use clap::{CommandFactory, error::ErrorKind};
use dsv3_engine::{
    Bos, ChatOptions, ChatStart, ChatTemplate, Message, Tokenizer, TokenizerConfig, read_prompts,
};
use dsv3_runtime::TokenId;
use std::{
    io::{IsTerminal, Read, stdin},
    path::Path,
    sync::Arc,
};

/// The longest prompt that is read from stdin. More text than any context holds.
const LONGEST_STDIN: u64 = 64 << 20;
/// A tokenizer without tokens, for checkpoints without a tokenizer: ids go in, ids come out, and all text is empty.
const NO_TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {}, "merges": []}}"#;

/// The prompts as they were given.
pub(super) enum Texts {
    /// To be tokenized.
    Texts(Vec<String>),
    /// Token ids, and what to call them.
    Tokens(String, Vec<TokenId>),
}

/// A prompt that is ready to run.
pub(super) struct Prompt {
    /// What to call it in an error.
    pub(super) name: String,
    /// As it was given.
    pub(super) text: String,
    /// What the model continues.
    pub(super) tokens: Vec<TokenId>,
    /// Whether it ends with an opened `<think>`, which then is no part of the model's own text.
    pub(super) opens_thoughts: bool,
}

impl Prompt {
    /// Its beginning, for a header.
    pub(super) fn title(&self) -> String {
        const SHOWN: usize = 60;
        let line = self.text.lines().next().unwrap_or_default();
        let mut title: String = line.chars().take(SHOWN).collect();
        if title.len() < self.text.len() {
            title.push_str(" ...");
        }
        title
    }
}

impl Texts {
    /// From the arguments, the file that they name, or stdin.
    ///
    /// # Errors
    /// A usage error where there is no prompt and nobody pipes one; a file that cannot be used.
    pub(super) fn read(args: &GenerateArgs) -> Result<Self> {
        if let Some(path) = &args.token_ids {
            return Ok(Self::Tokens(path.display().to_string(), read_token_ids(path)?));
        }
        if let Some(path) = &args.prompts_file {
            return Ok(Self::Texts(read_prompts(path, args.num_prompts)?));
        }
        if !args.prompts.is_empty() {
            return Ok(Self::Texts(args.prompts.clone()));
        }
        if stdin().is_terminal() {
            return Err(no_prompt().into());
        }
        let mut text = String::new();
        stdin().lock().take(LONGEST_STDIN + 1).read_to_string(&mut text).context("the prompt on stdin")?;
        if text.len() as u64 > LONGEST_STDIN {
            bail!("the prompt on stdin: expected at most {LONGEST_STDIN} bytes, got more");
        }
        // The line end that `echo` adds is not meant.
        let end =
            text.strip_suffix('\n').map_or(text.len(), |line| line.strip_suffix('\r').unwrap_or(line).len());
        text.truncate(end);
        Ok(Self::Texts(vec![text]))
    }
}

/// The usage error of `dsv3 generate` on a terminal.
fn no_prompt() -> clap::Error {
    let mut command = Cli::command();
    command.build();
    let generate = command.find_subcommand_mut("generate").expect("it is the command that runs");
    let message = "no prompt: give one as an argument, with --prompts-file, or on stdin";
    generate.error(ErrorKind::MissingRequiredArgument, message)
}

/// What turns texts into tokens.
pub(super) struct Reader {
    /// The checkpoint's, or one without tokens.
    pub(super) tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    system: Option<String>,
}

impl Reader {
    /// Opens the checkpoint's tokenizer and chat template, as far as the arguments need them.
    ///
    /// # Errors
    /// Files that cannot be used, or are missing where they are needed.
    pub(super) fn open(model: &OpenModel, args: &GenerateArgs) -> Result<Self> {
        let path = model.dir().join("tokenizer.json");
        let has_tokenizer = path.exists();
        if !has_tokenizer && args.token_ids.is_none() {
            bail!("{} is missing: without it a prompt can only be given as --token-ids", path.display());
        }
        if !has_tokenizer && !args.sampling.stop.is_empty() {
            bail!("{} is missing: without it no text can be compared with --stop", path.display());
        }
        let tokenizer = if has_tokenizer {
            Tokenizer::from_dir(model.dir(), model.hf.vocab_size)?
        } else {
            note(format_args!("{} is missing: there is no text, --json shows the token ids", path.display()));
            no_tokenizer()?
        };
        let wants_template = !args.raw && args.token_ids.is_none();
        let template = if wants_template { ChatTemplate::from_dir(model.dir())? } else { None };
        if wants_template && template.is_none() {
            if args.system.is_some() {
                bail!("{} has no chat template: there is no place for --system", model.dir().display());
            }
            note(format_args!("the checkpoint has no chat template: prompts are continued as plain text"));
        }
        Ok(Self { tokenizer: Arc::new(tokenizer), template, system: args.system.clone() })
    }

    /// The prompts, ready to run.
    ///
    /// # Errors
    /// A prompt that is empty, or that template or tokenizer refuse.
    pub(super) fn prompts(&self, texts: Texts) -> Result<Vec<Prompt>> {
        let texts = match texts {
            Texts::Tokens(name, tokens) => {
                let text = self.tokenizer.decode(&tokens, false);
                return Ok(vec![Prompt { name, text, tokens, opens_thoughts: false }]);
            }
            Texts::Texts(texts) => texts,
        };
        texts
            .into_iter()
            .enumerate()
            .map(|(index, text)| {
                let name = format!("prompt {}", index + 1);
                self.prompt(name.clone(), text).context(name)
            })
            .collect()
    }

    fn prompt(&self, name: String, text: String) -> Result<Prompt, dsv3_engine::Error> {
        if text.is_empty() {
            return Err(dsv3_engine::Error::EmptyPrompt);
        }
        let Some(template) = &self.template else {
            let tokens = self.tokenizer.encode(&text, Bos::Add)?;
            return Ok(Prompt { name, text, tokens, opens_thoughts: false });
        };
        let system = self.system.iter().map(|system| Message::new("system", system.as_str()));
        let messages: Vec<Message> = system.chain([Message::new("user", text.as_str())]).collect();
        let rendered = template.render(&messages, &ChatOptions::default())?;
        let tokens = self.tokenizer.encode(&rendered, Bos::AsWritten)?;
        let opens_thoughts = ChatStart::after(&rendered) == ChatStart::Reasoning;
        Ok(Prompt { name, text, tokens, opens_thoughts })
    }
}

fn no_tokenizer() -> Result<Tokenizer, dsv3_engine::Error> {
    let config = TokenizerConfig::default();
    Tokenizer::parse(Path::new("tokenizer.json"), NO_TOKENIZER.as_bytes(), &config, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_tokenizer_ids_are_no_text() {
        let tokenizer = no_tokenizer().unwrap();
        assert_eq!(tokenizer.decode(&[TokenId(0), TokenId(7)], false), "");
        assert_eq!((tokenizer.id_count(), tokenizer.eos()), (0, None));
    }

    #[test]
    fn the_usage_error_shows_the_usage_of_generate() {
        let text = no_prompt().to_string();
        assert!(text.starts_with("error: no prompt"), "{text}");
        assert!(text.contains("Usage: dsv3 generate [OPTIONS] [PROMPT]..."), "{text}");
    }

    #[test]
    fn a_title_is_the_beginning_of_the_first_line() {
        let prompt = |text: &str| Prompt {
            name: String::new(),
            text: text.to_owned(),
            tokens: Vec::new(),
            opens_thoughts: false,
        };
        assert_eq!(prompt("short").title(), "short");
        assert_eq!(prompt("one\ntwo").title(), "one ...");
        assert_eq!(prompt(&"é".repeat(70)).title(), "é".repeat(60) + " ...");
    }
}
