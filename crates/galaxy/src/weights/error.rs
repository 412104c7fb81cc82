//! What can be wrong with a conversion.

use crate::tensorbin::{self, HeaderError};
use dsv3_mesh::MeshShape;
use std::{io, path::PathBuf};

/// A conversion that cannot be done, or could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model that upstream's modules cannot run, or that does not divide over the mesh.
    #[error("a Galaxy mesh of {mesh}: {field}: {cause}")]
    Model {
        /// The mesh.
        mesh: MeshShape,
        /// The field of config.json, or the file that cannot be.
        field: String,
        /// What is wrong with it.
        cause: Cause,
    },
    /// Layers that the model does not have.
    #[error("layer {layer}: this model has the layers 0 to {last}")]
    Layer {
        /// The layer that was asked for.
        layer: usize,
        /// The last one that there is.
        last: usize,
    },
    /// A number of layers that the model does not have.
    #[error("{asked} layers: expected 1 to {of}, which this model has")]
    Layers {
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        of: usize,
    },
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] dsv3_runtime::Error),
    /// An operating-system error on a file of the cache.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file that cannot be written because there is no room left for it.
    #[error("{}: {source}; the files that are whole are kept: make room, and the same command goes on with the rest", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Too little room to begin with.
    #[error("{}: the files need {needed} bytes more, the disk has {free} free; make room, or convert some layers with --layers", path.display())]
    NoRoom {
        /// The cache's directory.
        path: PathBuf,
        /// Bytes that are to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A cache that was made from something else.
    #[error("{}: was begun from {other}; give another directory, or --force to make it anew", path.display())]
    Origin {
        /// The cache's directory.
        path: PathBuf,
        /// What it was made from or for.
        other: String,
    },
    /// A cache that was made from something else, of which only some files were to be made anew.
    #[error("{}: was begun from {other}, and --force of some layers would mix the two; leave out --layers to make all anew, or give another directory", path.display())]
    Mixed {
        /// The cache's directory.
        path: PathBuf,
        /// What it was made from or for.
        other: String,
    },
    /// Another process that writes the same cache.
    #[error("{}: another process is writing this cache", path.display())]
    Busy {
        /// The cache's directory.
        path: PathBuf,
    },
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// A size that does not divide.
    #[error("expected a multiple of {of}, got {got}")]
    NotMultiple {
        /// What it must be a multiple of.
        of: usize,
        /// What it is.
        got: usize,
    },
    /// A value that upstream's modules do not have.
    #[error("expected {expected}, got {got}")]
    Unsupported {
        /// What they have.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A file that cannot be.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

impl Error {
    /// Names the file of an operating-system error, and tells a full disk from others.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::Full { path, source }
            }
            _ => Self::Io { path, source },
        }
    }
}

impl From<tensorbin::Error> for Error {
    fn from(error: tensorbin::Error) -> Self {
        match error {
            tensorbin::Error::Io { path, source } => Self::io(path)(source),
            tensorbin::Error::Header { path, source } => {
                Self::Io { path, source: io::Error::new(io::ErrorKind::InvalidData, source) }
            }
        }
    }
}
