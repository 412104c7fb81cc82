//! Tensor names: the dotted path of a module in a checkpoint, with or without the checkpoint.

use super::{Checkpoint, RawTensor, TensorInfo};
use crate::Error;
use std::fmt::{self, Display};

/// The dotted path of a module, such as `model.layers.3.mlp`. It makes names; it needs no checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(String);

impl Prefix {
    /// The empty path, under which all names lie.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path of a part of this module: a field's name or an index.
    #[must_use]
    pub fn enter(&self, part: impl Display) -> Self {
        Self(self.name(part))
    }

    /// The full name of something that lies here: `Prefix::root().enter("lm_head").name("weight")` is
    /// `lm_head.weight`.
    pub fn name(&self, leaf: impl Display) -> String {
        if self.0.is_empty() { leaf.to_string() } else { format!("{}.{leaf}", self.0) }
    }

    /// The path, without a trailing dot; empty at the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A module's place in a checkpoint: what lies there, by its short name.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    checkpoint: &'a Checkpoint,
    prefix: Prefix,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, prefix: Prefix::root() }
    }

    /// The place of a part of this module.
    #[must_use]
    pub fn enter(&self, part: impl Display) -> Self {
        Self { checkpoint: self.checkpoint, prefix: self.prefix.enter(part) }
    }

    /// The path of this place.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The full name of something that lies here.
    pub fn name(&self, leaf: impl Display) -> String {
        self.prefix.name(leaf)
    }

    /// Whether a tensor of this short name lies here.
    pub fn contains(&self, leaf: impl Display) -> bool {
        self.get(leaf).is_some()
    }

    /// The tensor of this short name, by its header.
    pub fn get(&self, leaf: impl Display) -> Option<&'a TensorInfo> {
        self.checkpoint.get(&self.name(leaf))
    }

    /// The tensor of this short name.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn tensor(&self, leaf: impl Display) -> Result<RawTensor, Error> {
        self.checkpoint.tensor(&self.name(leaf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dotted_paths() {
        let root = Prefix::root();
        assert_eq!(root.name("weight"), "weight");
        let layer = root.enter("model").enter("layers").enter(3);
        assert_eq!(layer.name("input_layernorm.weight"), "model.layers.3.input_layernorm.weight");
        assert_eq!(layer.as_str(), "model.layers.3");
        assert_eq!(format!("[{layer:>16}]"), "[  model.layers.3]");
    }
}
