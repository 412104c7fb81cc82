//! What can go wrong between ranks.

use crate::Rank;
use std::{fmt, time::Duration};

/// A rank, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The rank.
    pub rank: Rank,
    /// The name of its host, where ranks may run on several.
    pub host: Option<String>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.rank.0)?;
        self.host.as_ref().map_or(Ok(()), |host| write!(f, " on {host}"))
    }
}

/// A collective that did not come about, because of one rank. After it the mesh is of no use: the others fail, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{peer} {cause}")]
pub struct TransportError {
    /// The rank at fault.
    pub peer: Peer,
    /// What it did.
    pub cause: Cause,
}

/// What a rank did that ended a collective.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// It ended, though another waits for it.
    #[error("ended before {call}")]
    Gone {
        /// The collective and the devices that were to meet.
        call: String,
    },
    /// It panicked.
    #[error("panicked")]
    Panicked,
    /// It met an error of its own and said so.
    #[error("failed: {0}")]
    Failed(String),
    /// It did not come in time.
    #[error("did not come to {call} within {} s", .timeout.as_secs_f64())]
    Late {
        /// The collective and the devices that were to meet.
        call: String,
        /// How long the others waited.
        timeout: Duration,
    },
    /// It came with another collective, or with data of another shape.
    #[error("came to {got}, expected {expected}")]
    Disagrees {
        /// What the one that tells has.
        expected: String,
        /// What the rank at fault has.
        got: String,
    },
    /// What carries the bytes to or from it failed, or brought what no rank sends.
    #[error("cannot be reached: {0}")]
    Broken(String),
}
