//! A sequence that an engine runs, and what the engine remembers of it.

use std::ops::Range;
use std::time::Instant;

use super::{Reuse, Submission, client::RequestId};
use crate::sequence::Sequence;
use crate::structured::Guide;
use crate::{KeptPage, PageKey, PagePool, TokenLogprobs};

/// A sequence, waiting or running.
pub(super) struct Task {
    pub(super) client: RequestId,
    pub(super) choice: usize,
    pub(super) sequence: Sequence,
    /// The other choices of the request, which begin when the prompt has run.
    pub(super) forks: Option<Forks>,
    pub(super) names: Names,
    /// Of the prompt's tokens, where these were asked for.
    pub(super) prompt_logprobs: Option<PromptLogprobs>,
    /// How often in a row another prompt was run instead of this one.
    pub(super) passed_over: u32,
    /// When it had its last token.
    pub(super) last_token: Option<Instant>,
}

impl Task {
    /// A choice without others.
    pub(super) fn new(client: RequestId, choice: usize, sequence: Sequence, names: Names) -> Self {
        let (forks, prompt_logprobs) = (None, None);
        Self { client, choice, sequence, forks, names, prompt_logprobs, passed_over: 0, last_token: None }
    }

    /// Its own choice, and those that are to begin.
    pub(super) fn choices(&self) -> Range<usize> {
        self.choice..self.forks.as_ref().map_or(self.choice + 1, Forks::end)
    }

    /// Whether its prompt is not in the cache yet.
    pub(super) fn is_in_prompt(&self) -> bool {
        self.sequence.prompt_rest() > 0
    }
}

/// The choices of a request beside its first one. Until its prompt has run they have nothing of their own.
pub(super) struct Forks {
    submission: Submission,
    guide: Option<Guide>,
}

impl Forks {
    pub(super) fn new(submission: Submission, guide: Option<Guide>) -> Self {
        Self { submission, guide }
    }

    /// One more than the last of them.
    fn end(&self) -> usize {
        self.submission.request.choices
    }

    /// Makes their sequences, with pages from a pool for a context.
    pub(super) fn sequences(self, place: (&PagePool, usize)) -> impl Iterator<Item = (usize, Sequence)> {
        (1..self.end())
            .map(move |choice| (choice, Sequence::new(&self.submission, choice, self.guide.clone(), place)))
    }
}

/// The names of a sequence's whole pages.
#[derive(Clone)]
pub(super) struct Names {
    root: PageKey,
    pages: Vec<PageKey>,
    /// How many of them are kept.
    kept: usize,
}

impl Names {
    pub(super) fn new(salt: &str) -> Self {
        Self { root: PageKey::root(salt), pages: Vec::new(), kept: 0 }
    }

    /// The names of the prompt's pages that may be found in the cache: not that of the last token, whose logits are
    /// needed.
    pub(super) fn of_prompt(&mut self, sequence: &Sequence, page_size: usize) -> &[PageKey] {
        let tokens = &sequence.tokens()[..sequence.prompt_len() - 1];
        if self.pages.is_empty() {
            self.pages = PageKey::chain(self.root, tokens, page_size);
        }
        &self.pages[..self.pages.len().min(tokens.len() / page_size)]
    }

    /// Keeps the pages that have become full.
    pub(super) fn keep_full(&mut self, sequence: &Sequence, page_size: usize, reuse: Reuse) {
        let last = match reuse {
            Reuse::Off => 0,
            Reuse::Prompts => sequence.cached().min(sequence.prompt_len()),
            Reuse::All => sequence.cached(),
        };
        while (self.kept + 1) * page_size <= last {
            let place = self.kept;
            let before = place.checked_sub(1).map_or(self.root, |before| self.pages[before]);
            let tokens = &sequence.tokens()[place * page_size..][..page_size];
            if place == self.pages.len() {
                self.pages.push(before.next(tokens));
            }
            let content =
                KeptPage { key: self.pages[place], before, place: place as u32, tokens: tokens.into() };
            sequence.pages.keep(place, content);
            self.kept += 1;
        }
    }

    /// The first pages are found in the cache, or all are given up.
    pub(super) fn begin_at(&mut self, pages: usize) {
        self.kept = pages;
    }
}

/// The log probabilities of a prompt's tokens, as far as it has run.
pub(super) struct PromptLogprobs {
    pub(super) count: usize,
    pub(super) found: Vec<Option<TokenLogprobs>>,
}

impl PromptLogprobs {
    /// Of the first token there is none.
    pub(super) fn new(count: usize) -> Self {
        Self { count, found: vec![None] }
    }
}
