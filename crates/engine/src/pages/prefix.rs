//! What a page holds, by name: a page is known by its tokens and by those of all pages before it.

use std::fmt;

use dsv3_runtime::TokenId;
use sha2::{Digest, Sha256};

/// The name of a page's content: a hash of the page's tokens and of the name of the page before it, and so of a whole
/// prefix. Strong enough that nobody can make a prompt that has the name of another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey([u8; 32]);

impl PageKey {
    /// What stands before the first page. Prefixes are found only by who gives the same salt.
    pub fn root(salt: &str) -> Self {
        Self(Sha256::new().chain_update(b"dsv3 prefix\0").chain_update(salt).finalize().into())
    }

    /// The name of the page after this one, if it holds these tokens.
    pub fn next(&self, tokens: &[TokenId]) -> Self {
        let mut hash = Sha256::new().chain_update(self.0);
        for token in tokens {
            hash.update(token.0.to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The names of all whole pages of a sequence.
    pub fn chain(root: Self, tokens: &[TokenId], page_size: usize) -> Vec<Self> {
        let names = tokens.chunks_exact(page_size).scan(root, |before, page| {
            *before = before.next(page);
            Some(*before)
        });
        names.collect()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// A page that is kept for whoever has the same prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPage {
    /// Its name.
    pub key: PageKey,
    /// The name of the page before it, or the root.
    pub before: PageKey,
    /// How many pages stand before it in its sequence.
    pub place: u32,
    /// What it holds. Compared when it is found: no one reads another's page for a hash alone.
    pub tokens: Box<[TokenId]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn a_page_is_named_by_all_before_it_and_by_the_salt() {
        let (one, other) = (PageKey::root(""), PageKey::root("other"));
        let names = PageKey::chain(one, &tokens(&[1, 2, 3, 4, 5]), 2);
        assert_eq!(names.len(), 2, "whole pages only");
        assert_eq!(names[1], one.next(&tokens(&[1, 2])).next(&tokens(&[3, 4])));
        assert_ne!(names[1], PageKey::chain(one, &tokens(&[9, 2, 3, 4]), 2)[1]);
        assert_ne!(names[0], PageKey::chain(other, &tokens(&[1, 2]), 2)[0]);
        assert_eq!(PageKey::from_bytes(*names[0].bytes()), names[0]);
    }
}
