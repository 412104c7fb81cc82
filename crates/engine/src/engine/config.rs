//! What an engine is told when it starts.

use std::time::Duration;

use crate::{CacheState, Error, check_range};

/// How an engine shares its model among requests.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Requests that wait to begin, at most. One more is refused.
    pub queue: usize,
    /// Sequences that run at once, at most; a request of several choices is several.
    pub sequences: usize,
    /// Tokens of a prompt that run at once, at most.
    pub prefill_chunk: usize,
    /// How long a chunk of a prompt may take where others wait for their next token. Chunks are made smaller, down to a
    /// page, until they take no longer. None: all chunks are `prefill_chunk` long.
    pub gap: Option<Duration>,
    /// Which cached pages a request may begin with.
    pub reuse: Reuse,
    /// By how many sequences a row of a mesh may be ahead of the one that runs fewest, for a prompt whose beginning it has
    /// cached: all that begin alike would run on one row otherwise.
    pub rows_apart: usize,
    /// Where an [`EngineThread`](crate::EngineThread) finds its cached pages when it starts, and leaves them when it ends.
    pub cache_state: Option<CacheState>,
}

/// Which cached pages a request may begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// None: each prompt is run.
    Off,
    /// Those that a prompt has filled.
    Prompts,
    /// Those that were filled by generating, too. The bits of what is cached there are those of decode steps, and a prompt
    /// that was run would have others: the same request may then, seldom, get another answer.
    All,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            queue: 256,
            sequences: 64,
            prefill_chunk: 512,
            gap: Some(Duration::from_secs(1)),
            reuse: Reuse::Prompts,
            rows_apart: 4,
            cache_state: None,
        }
    }
}

impl EngineConfig {
    /// One sequence after another, without a cache between them.
    pub fn single(prefill_chunk: usize) -> Self {
        let (gap, reuse, cache_state) = (None, Reuse::Off, None);
        Self { queue: 1, sequences: 1, prefill_chunk, gap, reuse, rows_apart: 0, cache_state }
    }

    /// Whether anything can be run.
    ///
    /// # Errors
    /// [`Error::Parameter`] for what is 0.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let positive = |name, value: usize| check_range(name, value, value > 0, "at least 1");
        positive("queue", self.queue)?;
        positive("sequences", self.sequences)?;
        positive("prefill_chunk", self.prefill_chunk)
    }
}
