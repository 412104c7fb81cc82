//! The text to measure on, as tokens.

use crate::{
    args::eval::{BosArg, TextArgs},
    commands::read_token_ids,
    model::OpenModel,
};
use anyhow::{Context, Result, bail};
use dsv3_engine::{Bos, Error, Tokenizer};
use dsv3_runtime::TokenId;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// A text's tokens, and the begin-of-sequence token of windows.
pub(super) struct Input {
    /// The tokens; none where neither a text nor ids were given.
    pub(super) tokens: Option<Vec<TokenId>>,
    /// The file that they come from; empty where there is none.
    pub(super) file: PathBuf,
    /// What stands in place of a window's first token.
    pub(super) bos: Option<TokenId>,
}

impl Input {
    /// Reads what was given.
    ///
    /// # Errors
    /// A file that cannot be read; a checkpoint without the tokenizer, or without the BOS, that is needed.
    pub(super) fn read(model: &OpenModel, args: &TextArgs, bos: BosArg) -> Result<Self> {
        let text = args.text.as_deref().map(read_text).transpose()?;
        let ids = args.token_ids.as_deref().map(read_token_ids).transpose()?;
        let reader = TextReader::open(model, bos)?;
        let tokens = match text {
            Some(text) => Some(reader.tokens(&text)?),
            None => ids,
        };
        let file = args.text.as_ref().or(args.token_ids.as_ref()).cloned().unwrap_or_default();
        Ok(Self { tokens, file, bos: reader.bos })
    }
}

/// Turns texts into tokens.
pub(super) struct TextReader {
    tokenizer: Option<Tokenizer>,
    bos: Option<TokenId>,
}

impl TextReader {
    /// Of a checkpoint. One that has no tokenizer can still run token ids.
    ///
    /// # Errors
    /// A tokenizer that cannot be used, or that lacks the BOS that is asked for.
    pub(super) fn open(model: &OpenModel, bos: BosArg) -> Result<Self> {
        let tokenizer = match Tokenizer::from_dir(model.dir(), model.hf.vocab_size) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            result => Some(result?),
        };
        let bos = match (bos, &tokenizer) {
            (BosArg::Never, _) | (BosArg::Auto, None) => None,
            (BosArg::Auto, Some(tokenizer)) => tokenizer.leading_bos()?,
            (BosArg::Always, tokenizer) => match tokenizer.as_ref().and_then(Tokenizer::bos) {
                None => bail!("--bos always: the checkpoint's tokenizer names no begin-of-sequence token"),
                bos => bos,
            },
        };
        Ok(Self { tokenizer, bos })
    }

    /// The token that ends a text, by the tokenizer.
    pub(super) fn eos(&self) -> Option<TokenId> {
        self.tokenizer.as_ref().and_then(Tokenizer::eos)
    }

    /// The tokens of a text, with the BOS in front if there is one.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer, or a text that it refuses.
    pub(super) fn tokens(&self, text: &str) -> Result<Vec<TokenId>> {
        let Some(tokenizer) = &self.tokenizer else {
            bail!("the checkpoint's tokenizer.json is missing: give token ids with --token-ids");
        };
        let tokens = tokenizer.encode(text, Bos::AsWritten)?;
        let missing = self.bos.filter(|bos| tokens.first() != Some(bos));
        Ok(missing.into_iter().chain(tokens).collect())
    }
}

fn read_text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    if text.is_empty() {
        bail!("{}: the text is empty", path.display());
    }
    Ok(text)
}
