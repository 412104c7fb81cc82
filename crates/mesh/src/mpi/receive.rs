//! A view on its way in.

use super::{HEAD, INLINE, connection::Address, transfer::Transfer};
use crate::{
    Cause,
    transport::Label,
    view::{Buffer, View},
};
use std::mem;

/// First the label, the length and the first bytes; then, where there are more, the rest.
pub(super) enum Receive {
    /// The first message is awaited.
    Head { from: Address, transfer: Transfer<Vec<u8>> },
    /// It has come, and says that more follows, which goes behind the first bytes.
    Rest { label: Label, head: Vec<u8>, transfer: Transfer<Vec<u8>> },
    /// It has come and holds all.
    Whole { label: Label, head: Vec<u8>, length: usize },
    /// An error has been met.
    Failed,
}

impl Receive {
    /// Awaits a view of any length; `head` is the memory for its first message.
    pub(super) fn new(from: Address, head: Vec<u8>) -> Result<Self, Cause> {
        Ok(Self::Head { from, transfer: Transfer::receive(from, head, 0)? })
    }

    /// Whether all of it is there.
    pub(super) fn done(&mut self) -> Result<bool, Cause> {
        if let Self::Head { transfer, .. } = self
            && transfer.done()?
        {
            *self = mem::replace(self, Self::Failed).after_head()?;
        }
        match self {
            Self::Rest { transfer, .. } => transfer.done(),
            Self::Whole { .. } => Ok(true),
            Self::Head { .. } | Self::Failed => Ok(false),
        }
    }

    /// Whether its sender has begun to send a large one.
    pub(super) fn is_moving(&self) -> bool {
        matches!(self, Self::Rest { .. })
    }

    fn after_head(self) -> Result<Self, Cause> {
        let Self::Head { from, transfer } = self else { return Ok(self) };
        let head = transfer.into_memory();
        let word = |index: usize| {
            let bytes = head[8 * index..].first_chunk().expect("a head has four words");
            u64::from_ne_bytes(*bytes)
        };
        let (Some(label), Ok(length)) =
            (Label::from_words([word(0), word(1), word(2)]), usize::try_from(word(3)))
        else {
            return Err(Cause::Broken("its message is none of this program's".to_owned()));
        };
        if length <= INLINE {
            return Ok(Self::Whole { label, head, length });
        }
        let mut all = Vec::new();
        all.try_reserve_exact(length)
            .map_err(|_| Cause::Broken(format!("no memory for the {length} bytes that it sends")))?;
        all.extend(&head[HEAD..]);
        all.resize(length, 0);
        Ok(Self::Rest { label, head, transfer: Transfer::receive(from, all, INLINE)? })
    }

    /// The view, when all of it is there. The memory of its first message goes to `heads`.
    pub(super) fn finish(self, heads: &mut Vec<Vec<u8>>) -> (Label, View) {
        let (label, head, bytes) = match self {
            Self::Rest { label, head, transfer } => (label, head, transfer.into_memory()),
            Self::Whole { label, head, length } => {
                let bytes = head[HEAD..HEAD + length].to_vec();
                (label, head, bytes)
            }
            Self::Head { .. } | Self::Failed => panic!("a view is finished when it is there"),
        };
        heads.push(head);
        (label, View::whole(Buffer::from(bytes)))
    }
}
