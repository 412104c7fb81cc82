//! How requests begin.

use std::cmp::Reverse;

use super::{
    Engine, Reuse, StreamEvent, Submission,
    client::RequestId,
    task::{Forks, Names, PromptLogprobs, Task},
};
use crate::sequence::Sequence;
use crate::structured::Guide;
use crate::{CachedPrefix, LanguageModel};

impl<M: LanguageModel> Engine<M> {
    /// The first choice of a request, with the others.
    pub(super) fn task(&self, client: RequestId, submission: &Submission, guide: Option<&Guide>) -> Task {
        let request = &submission.request;
        let forks = (request.choices > 1).then(|| Forks::new(submission.clone(), guide.cloned()));
        let sequence = Sequence::new(submission, 0, guide.cloned(), (&self.pool, self.limits.context()));
        Task {
            forks,
            prompt_logprobs: request.prompt_logprobs.map(PromptLogprobs::new),
            ..Task::new(client, 0, sequence, Names::new(&request.cache_salt))
        }
    }

    /// Lets requests begin, in their order, as long as there is room. The first for which there is none holds up the
    /// others: a large one would never come to it otherwise.
    pub(super) fn admit(&mut self) {
        while let Some(mut task) = self.waiting.pop_front() {
            if self.ends_at_once(&mut task) {
                continue;
            }
            if self.running.len() + task.choices().len() > self.config.sequences
                || !self.take_pages(&mut task)
            {
                self.waiting.push_front(task);
                break;
            }
            self.start(&task);
            self.running.push(task);
        }
        self.remove_ended();
    }

    /// Ends choices that are full before they have begun, where nothing is to be known of the prompt.
    fn ends_at_once(&mut self, task: &mut Task) -> bool {
        if task.prompt_logprobs.is_some() || task.sequence.tokens().len() > task.sequence.prompt_len() {
            return false;
        }
        let Some(event) = task.sequence.end_at_limit() else { return false };
        let client = self.clients.get_mut(&task.client).expect("a task has a client");
        // All choices have one limit.
        task.choices().for_each(|choice| client.token(choice, event.clone()));
        true
    }

    /// Takes pages for all tokens and one more, on the row that has most of them in the cache already, or else most
    /// room; but not on one that would run too many more sequences than another, where that has room. Every sequence that
    /// runs there keeps a page to grow into.
    fn take_pages(&mut self, task: &mut Task) -> bool {
        let page_size = self.limits.page_size;
        let growing = |row| self.running.iter().filter(|other| other.sequence.pages.row() == row).count();
        let loads: Vec<usize> = (0..self.limits.rows).map(|row| self.load(row)).collect();
        let least = loads.iter().min().copied().unwrap_or(0);
        // Of a row with the least load, any number.
        let choices = task.choices().len();
        let is_ahead =
            |row: usize| loads[row] > least && loads[row] + choices > least + self.config.rows_apart;
        let rows = 0..self.limits.rows;
        let is_whole = task.prompt_logprobs.is_some() || self.config.reuse == Reuse::Off;
        let mut prefixes = if is_whole {
            rows.map(|row| CachedPrefix { row, pages: Vec::new() }).collect()
        } else {
            let names = task.names.of_prompt(&task.sequence, page_size);
            self.pool.cached_prefixes(names, task.sequence.tokens())
        };
        let room = |row| self.pool.available(row).saturating_sub(growing(row));
        prefixes
            .sort_by_key(|prefix| (is_ahead(prefix.row), Reverse((prefix.pages.len(), room(prefix.row)))));
        let positions = (task.sequence.tokens().len() + 1).min(self.limits.context());
        for prefix in prefixes {
            if task.sequence.pages.adopt_leaving(&prefix, positions, growing(prefix.row)).is_ok() {
                task.sequence.set_cached(prefix.pages.len() * page_size);
                task.names.begin_at(prefix.pages.len());
                return true;
            }
        }
        false
    }

    /// Sequences that run on a row, or will once their prompts have.
    fn load(&self, row: usize) -> usize {
        let there = self.running.iter().filter(|task| task.sequence.pages.row() == row);
        there.map(|task| task.choices().len()).sum()
    }

    /// Tells the client once.
    fn start(&mut self, task: &Task) {
        let client = self.clients.get_mut(&task.client).expect("a task has a client");
        if client.has_started {
            return;
        }
        client.has_started = true;
        let (prompt_tokens, cached_tokens) = (task.sequence.prompt_len(), task.sequence.cached());
        client.usage.cached_tokens = cached_tokens;
        client.usage.queued = client.submitted.elapsed();
        self.counts.begun(client.usage.queued, prompt_tokens, cached_tokens);
        client.send(StreamEvent::Started { prompt_tokens, cached_tokens });
    }
}
