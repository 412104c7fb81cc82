//! The commands, a file each.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod config;
pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod plan;
pub(crate) mod serve;

use anyhow::{Context, Result, bail};
use dsv3_runtime::TokenId;
use std::{fs, path::Path};

/// Reads a JSON file with a list of token ids. Whether the model has them is for the model to say.
///
/// # Errors
/// A file that cannot be read, or is something else; the message names it.
fn read_token_ids(path: &Path) -> Result<Vec<TokenId>> {
    let name = || path.display().to_string();
    let json = fs::read(path).with_context(name)?;
    let ids: Vec<TokenId> = serde_json::from_slice(&json)
        .with_context(|| format!("{}: expected a JSON list of token ids", path.display()))?;
    if ids.is_empty() {
        bail!("{}: the list of token ids is empty: there is nothing to continue", path.display());
    }
    Ok(ids)
}
