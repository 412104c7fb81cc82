//! What can be wrong with a file.

use std::{io, path::PathBuf};

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operating-system error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file whose content is not what the format demands.
    #[error("{}: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
}

/// A field of a header that is absent or has a value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct HeaderError {
    /// The field, as in `tensor_spec.tensor_layout.data_type`.
    pub field: String,
    /// What is wrong with it, expected and got.
    pub message: String,
}

impl Error {
    /// Names the file of an operating-system error.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl HeaderError {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    pub(super) fn in_file(self, path: impl Into<PathBuf>) -> Error {
        Error::Header { path: path.into(), source: self }
    }
}
