//! Runs a session with random tokens, and takes the time.

use crate::session::{PREFILL_CHUNK, Session};
use anyhow::Result;
use dsv3_engine::{LanguageModel, PagePool, PageTable};
use dsv3_runtime::{DecodeStep, LogitRows, PageId, PrefillStep, TokenId};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::time::{Duration, Instant};

/// A session with its sequences.
pub(super) struct Driver<'a> {
    session: &'a mut Session,
    sequences: Vec<PageTable>,
    random: ChaCha8Rng,
}

impl<'a> Driver<'a> {
    /// With as many sequences of as many tokens as the session has room for.
    ///
    /// # Errors
    /// A session without room for one.
    pub(super) fn new(session: &'a mut Session, seed: u64) -> Result<Self> {
        let limits = session.limits();
        let pool = PagePool::new(&limits);
        let count = limits.rows * limits.page_count / limits.max_context.div_ceil(limits.page_size);
        let mut sequences: Vec<PageTable> = (0..count).map(|_| pool.table()).collect();
        for table in &mut sequences {
            table.grow_to(limits.max_context)?;
        }
        Ok(Self { session, sequences, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The session.
    pub(super) fn session(&self) -> &Session {
        self.session
    }

    /// Prefills random tokens of a sequence, in chunks, from position `start` on; the last gets logits.
    ///
    /// # Errors
    /// A failing model.
    pub(super) fn prefill(&mut self, sequence: usize, start: usize, tokens: usize) -> Result<Duration> {
        let tokens = self.tokens(tokens);
        let table = &self.sequences[sequence];
        let mut done = 0;
        let begin = Instant::now();
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            let is_last = done + chunk.len() == tokens.len();
            let logits = if is_last { LogitRows::Last } else { LogitRows::None };
            self.session.forward_prefill(
                chunk,
                &PrefillStep::new(start + done, table.pages(), logits).on_row(table.row()),
            )?;
            done += chunk.len();
        }
        Ok(begin.elapsed())
    }

    /// Decodes random tokens of the first `batch` sequences together, from position `start` on.
    ///
    /// # Errors
    /// A failing model.
    pub(super) fn decode(&mut self, batch: usize, start: usize, steps: usize) -> Result<Duration> {
        let tokens = self.tokens(batch * steps);
        let pages: Vec<&[PageId]> = self.sequences[..batch].iter().map(PageTable::pages).collect();
        let rows: Vec<usize> = self.sequences[..batch].iter().map(PageTable::row).collect();
        let begin = Instant::now();
        for (step, tokens) in tokens.chunks(batch).enumerate() {
            let positions = vec![start + step; batch];
            self.session.forward_decode(tokens, &DecodeStep::new(&positions, &pages).on_rows(&rows))?;
        }
        Ok(begin.elapsed())
    }

    fn tokens(&mut self, count: usize) -> Vec<TokenId> {
        let vocabulary = self.session.limits().vocab_size as u64;
        // Not quite uniform, by less than one in 2^32.
        (0..count).map(|_| TokenId((self.random.next_u64() % vocabulary) as u32)).collect()
    }
}
