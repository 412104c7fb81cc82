//! What a step runs.

use std::time::Instant;

use dsv3_runtime::{DecodeStep, LogitRows, PageId, PrefillStep, Tensor, TokenId};

use super::{
    Engine, StreamEvent,
    task::{PromptLogprobs, Task},
};
use crate::sequence::Sequence;
use crate::{CachedPrefix, Error, Finish, LanguageModel, TokenLogprobs};

/// How often in a row the shortest prompt is run while others wait. Then comes the one that has waited longest.
const PASSED_OVER: u32 = 3;
/// Tokens of a chunk at most where each has logits, `[tokens, vocab]`.
const CHUNK_WITH_LOGITS: usize = 64;

impl<M: LanguageModel> Engine<M> {
    /// Runs a chunk of one prompt; how many tokens it had. The prompt's last chunk gives each choice its first token.
    ///
    /// # Errors
    /// If the model fails.
    pub(super) fn run_prompt(&mut self) -> Result<usize, Error> {
        let Some(index) = self.next_prompt() else { return Ok(0) };
        let somebody_waits = self.clients.len() > 1;
        let task = &mut self.running[index];
        let cached = task.sequence.cached();
        let mut size = self.chunks.size(cached, somebody_waits);
        if task.prompt_logprobs.is_some() {
            size = size.min(CHUNK_WITH_LOGITS);
        }
        let (range, rows) =
            task.sequence.prefill_chunk(size, self.limits.page_size).expect("the prompt has not run");
        let is_last = rows == LogitRows::Last;
        let rows = if task.prompt_logprobs.is_some() { LogitRows::All } else { rows };
        let pages = &task.sequence.pages;
        let step = PrefillStep::new(range.start, pages.pages(), rows).on_row(pages.row());
        let start = Instant::now();
        let logits = self.model.forward_prefill(&task.sequence.tokens()[range.clone()], &step)?;
        let time = start.elapsed();
        self.chunks.measured(range.start, range.len(), time);
        self.counts.chunk(time);
        task.sequence.set_cached(range.end);
        task.names.keep_full(&task.sequence, self.limits.page_size, self.config.reuse);
        if let Some(client) = self.clients.get_mut(&task.client) {
            client.usage.prefill.tokens += range.len();
            client.usage.prefill.time += time;
        }
        let added = match &mut task.prompt_logprobs {
            Some(found) => found.add(&logits, &task.sequence.tokens()[range.start + 1..]),
            None => Ok(()),
        };
        if let Err(error) = added {
            let client = task.client;
            self.fail(client, error);
            return Ok(range.len());
        }
        if is_last {
            self.begin_answers(index, logits.row(logits.rows() - 1))?;
            self.drop_failed();
        }
        Ok(range.len())
    }

    /// The prompt that is run next: the one with the least to run, but after some of these the one that has waited longest.
    /// The count is one for all prompts: were it each one's own, several that are overdue would leave no turn to the
    /// shortest, nor to those behind them.
    fn next_prompt(&mut self) -> Option<usize> {
        let prompts = || self.running.iter().enumerate().filter(|(_, task)| task.is_in_prompt());
        let is_overdue = self.shortest_first >= PASSED_OVER;
        let (index, _) = if is_overdue {
            // Of those that have waited as long, the first to begin.
            prompts().rev().max_by_key(|(_, task)| task.passed_over)?
        } else {
            prompts().min_by_key(|(_, task)| task.sequence.prompt_rest())?
        };
        let somebody_waits = prompts().nth(1).is_some();
        self.shortest_first = if somebody_waits && !is_overdue { self.shortest_first + 1 } else { 0 };
        for (other, task) in self.running.iter_mut().enumerate() {
            let waits = other != index && task.is_in_prompt();
            task.passed_over = if waits { task.passed_over.saturating_add(1) } else { 0 };
        }
        Some(index)
    }

    /// Chooses the first token of each choice. Choices share the prompt's pages, but for the last one, where they go on:
    /// they have copies of it.
    fn begin_answers(&mut self, index: usize, logits: &[f32]) -> Result<(), Error> {
        let task = &mut self.running[index];
        if let Some(found) = task.prompt_logprobs.take() {
            let client = self.clients.get_mut(&task.client).expect("a task has a client");
            client.send(StreamEvent::PromptLogprobs(found.found));
        }
        if task.sequence.tokens().len() > task.sequence.prompt_len() {
            return Ok(()); // its answer has begun before, and is run again
        }
        let (client, names, prompt) = (task.client, task.names.clone(), task.sequence.prompt_len());
        let whole = prompt / self.limits.page_size;
        let (shared, last) = task.sequence.pages.pages().split_at(whole);
        let (shared, last) =
            (CachedPrefix { row: task.sequence.pages.row(), pages: shared.to_vec() }, last.first().copied());
        let (pool, context) = (self.pool.clone(), self.limits.context());
        let forks = task.forks.take().into_iter();
        for (choice, mut sequence) in forks.flat_map(|forks| forks.sequences((&pool, context))) {
            let has_pages = sequence.pages.adopt(&shared, prompt).is_ok();
            if let (true, Some(from), Some(&to)) = (has_pages, last, sequence.pages.pages().get(whole)) {
                self.model.copy_page(shared.row, from, to)?;
            }
            let fork = Task::new(client, choice, sequence, names.clone());
            if has_pages {
                self.running.push(fork);
                let last = self.running.len() - 1;
                self.running[last].sequence.set_cached(prompt);
                self.accept(last, logits);
            } else {
                // It runs the prompt for itself when there is room.
                self.waiting.push_front(fork);
            }
        }
        self.accept(index, logits);
        Ok(())
    }

    /// Runs a token of every sequence whose prompt has run; how many these were.
    ///
    /// # Errors
    /// If the model fails.
    pub(super) fn run_decode(&mut self) -> Result<usize, Error> {
        self.reserve_pages();
        let is_running = |task: &Task| !task.is_in_prompt() && task.sequence.finish().is_none();
        let batch: Vec<usize> =
            (0..self.running.len()).filter(|&index| is_running(&self.running[index])).collect();
        if batch.is_empty() {
            return Ok(0);
        }
        let sequences = || batch.iter().map(|&index| &self.running[index].sequence);
        let tokens: Vec<TokenId> = sequences().map(Sequence::next_token).collect();
        let positions: Vec<usize> = sequences().map(Sequence::cached).collect();
        let pages: Vec<&[PageId]> = sequences().map(|sequence| sequence.pages.pages()).collect();
        let rows: Vec<usize> = sequences().map(|sequence| sequence.pages.row()).collect();
        let step = DecodeStep::new(&positions, &pages).on_rows(&rows);
        let start = Instant::now();
        let logits = self.model.forward_decode(&tokens, &step)?;
        let (got, expected) = ((logits.rows(), logits.cols()), (batch.len(), self.limits.vocab_size));
        assert_eq!(got, expected, "the model's logits have another shape than its limits say");
        for (row, &index) in batch.iter().enumerate() {
            let task = &mut self.running[index];
            task.sequence.set_cached(task.sequence.cached() + 1);
            task.names.keep_full(&task.sequence, self.limits.page_size, self.config.reuse);
            if task.sequence.is_caught_up() {
                self.accept(index, logits.row(row));
            }
        }
        self.counts.decoded(batch.len());
        self.count_decode(&batch, start);
        self.drop_failed();
        Ok(batch.len())
    }

    /// Adds a step's time once to each client that had a part in it.
    fn count_decode(&mut self, batch: &[usize], start: Instant) {
        let time = start.elapsed();
        let mut clients: Vec<_> = batch.iter().map(|&index| self.running[index].client).collect();
        for id in &clients {
            if let Some(client) = self.clients.get_mut(id) {
                client.usage.decode.tokens += 1;
            }
        }
        clients.sort_unstable();
        clients.dedup();
        for id in clients {
            if let Some(client) = self.clients.get_mut(&id) {
                client.usage.decode.time += time;
            }
        }
    }

    /// Makes room for one more position of every sequence that generates, the first to begin first. Where there is none,
    /// the last to begin on the same row gives up its pages.
    fn reserve_pages(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let task = &mut self.running[index];
            let needs = !task.is_in_prompt() && task.sequence.finish().is_none();
            if !needs || task.sequence.pages.grow_to(task.sequence.cached() + 1).is_ok() {
                index += 1;
                continue;
            }
            let row = task.sequence.pages.row();
            let on_row = |task: &Task| task.sequence.finish().is_none() && task.sequence.pages.row() == row;
            let last = self.running.iter().rposition(on_row).expect("the one that needs a page is there");
            let mut task = self.running.remove(last);
            task.sequence.give_up_pages();
            task.names.begin_at(0);
            // The prompt is run again from its beginning, and so are they.
            if let Some(found) = &mut task.prompt_logprobs {
                *found = PromptLogprobs::new(found.count);
            }
            self.counts.preemptions += 1;
            self.waiting.push_front(task);
        }
    }

    /// Chooses a sequence's next token, and tells its client.
    fn accept(&mut self, index: usize, logits: &[f32]) {
        let task = &mut self.running[index];
        let client = self.clients.get_mut(&task.client).expect("a task has a client");
        let event = match task.sequence.end_at_limit() {
            Some(event) => Ok(event),
            None => task.sequence.accept(logits, &self.tokenizer),
        };
        let now = Instant::now();
        match task.last_token.replace(now) {
            Some(last) => self.counts.next_token(now - last),
            None if task.choice == 0 => {
                client.usage.time_to_first_token = client.submitted.elapsed();
                self.counts.first_token(client.usage.time_to_first_token);
            }
            None => {}
        }
        match event {
            Ok(event) => {
                let is_token = !matches!(event.finish, Some(Finish::MaxNewTokens | Finish::GrammarEnd));
                self.counts.generated_tokens += u64::from(event.token.is_some() || is_token);
                client.token(task.choice, event);
            }
            Err(error) => self.failures.push((task.client, error)),
        }
    }

    /// Ends the requests whose tokens could not be chosen.
    fn drop_failed(&mut self) {
        for (id, error) in std::mem::take(&mut self.failures) {
            self.fail(id, error);
        }
    }
}

impl PromptLogprobs {
    /// Of the tokens that come after each row of the logits. After the last row of a prompt comes what is generated.
    ///
    /// # Errors
    /// As [`TokenLogprobs::of`].
    fn add(&mut self, logits: &Tensor, next: &[TokenId]) -> Result<(), Error> {
        for (row, &token) in (0..logits.rows()).zip(next) {
            self.found.push(Some(TokenLogprobs::of(logits.row(row), token, self.count)?));
        }
        Ok(())
    }
}
