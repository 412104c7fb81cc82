//! The one error type of this crate: everything that can be wrong with what comes from outside.

use std::path::PathBuf;

/// What went wrong, with the file, tensor or field at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operating-system error on a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file whose content is not what its format demands.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, expected and got.
        message: String,
    },
    /// A tensor that is absent, misshapen or of a type that is not supported.
    #[error("tensor {name}: {message}")]
    Tensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// What is wrong with it, expected and got.
        message: String,
    },
    /// A weight cache that cannot be used; the message says what to do.
    #[error("cache {}: {message}", path.display())]
    Cache {
        /// The cache's directory.
        path: PathBuf,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// A shape that does not divide over the mesh.
    #[error(transparent)]
    Shard(#[from] dsv3_mesh::ShardError),
    /// A collective that did not come about.
    #[error(transparent)]
    Transport(#[from] dsv3_mesh::TransportError),
    /// A request outside of what the model or its state can hold.
    #[error("{0}")]
    Request(String),
}

impl Error {
    /// Names the file of an operating-system error: `.map_err(Error::io(path))`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
