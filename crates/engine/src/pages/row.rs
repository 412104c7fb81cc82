//! The pages of one row of a mesh: who holds them, and what is kept.

use std::collections::{BTreeMap, HashMap};

use dsv3_runtime::{PageId, TokenId};

use super::{KeptPage, PageKey};

/// The pages of one row.
#[derive(Debug)]
pub(super) struct Row {
    /// Pages that hold nothing of use. A stack: the page that was freed last is the likeliest to be in a processor's cache.
    free: Vec<PageId>,
    /// By page.
    states: Vec<State>,
    /// Kept pages by name.
    named: HashMap<PageKey, PageId>,
    /// Kept pages that no table holds, by when they were given back.
    unheld: BTreeMap<u64, PageId>,
    /// Counts what is given back.
    clock: u64,
    evicted: u64,
}

#[derive(Clone, Debug, Default)]
struct State {
    holders: u32,
    kept: Option<KeptPage>,
    /// The clock when it was given back last.
    given_back: u64,
}

impl Row {
    pub(super) fn new(count: u32) -> Self {
        Self {
            free: (0..count).rev().map(PageId).collect(),
            states: vec![State::default(); count as usize],
            named: HashMap::new(),
            unheld: BTreeMap::new(),
            clock: 0,
            evicted: 0,
        }
    }

    /// Pages that hold nothing of use.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages that no table holds.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.unheld.len()
    }

    /// How often a kept page has made place.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A page for one table to write, if there is one that no table holds.
    pub(super) fn take(&mut self) -> Option<PageId> {
        let page = self.free.pop().or_else(|| self.evict())?;
        self.states[page.0 as usize].holders = 1;
        Some(page)
    }

    /// The page that has not been held for the longest time; it is kept no more.
    fn evict(&mut self) -> Option<PageId> {
        let (_, page) = self.unheld.pop_first()?;
        let content =
            self.states[page.0 as usize].kept.take().expect("what is not held and not free is kept");
        self.named.remove(&content.key);
        self.evicted += 1;
        Some(page)
    }

    /// Whether a table holds the page.
    pub(super) fn is_held(&self, page: PageId) -> bool {
        self.states[page.0 as usize].holders > 0
    }

    /// One more table holds the page, which is held or kept.
    pub(super) fn hold(&mut self, page: PageId) {
        let state = &mut self.states[page.0 as usize];
        if state.holders == 0 {
            self.unheld.remove(&state.given_back);
        }
        state.holders += 1;
    }

    /// One table less holds the page.
    pub(super) fn release(&mut self, page: PageId) {
        let state = &mut self.states[page.0 as usize];
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        if state.kept.is_none() {
            self.free.push(page);
            return;
        }
        self.clock += 1;
        state.given_back = self.clock;
        self.unheld.insert(self.clock, page);
    }

    /// Keeps a held page, unless its content is kept already.
    pub(super) fn keep(&mut self, page: PageId, content: KeptPage) {
        let state = &mut self.states[page.0 as usize];
        if state.kept.is_none() && !self.named.contains_key(&content.key) {
            self.named.insert(content.key, page);
            state.kept = Some(content);
        }
    }

    /// The kept page with this name and these tokens.
    pub(super) fn find(&self, name: &PageKey, tokens: &[TokenId]) -> Option<PageId> {
        let page = *self.named.get(name)?;
        let content = self.states[page.0 as usize].kept.as_ref()?;
        (*content.tokens == *tokens).then_some(page)
    }

    /// All kept pages, those before others first.
    pub(super) fn kept_pages(&self) -> Vec<(PageId, KeptPage)> {
        let content =
            |page: &PageId| self.states[page.0 as usize].kept.as_ref().expect("a named page is kept");
        // What was used last comes first, of pages that stand at the same place.
        let mut pages: Vec<_> = self
            .named
            .values()
            .map(|page| (content(page).place, u64::MAX - self.states[page.0 as usize].given_back, page))
            .collect();
        pages.sort_unstable();
        pages.into_iter().map(|(_, _, &page)| (page, content(&page).clone())).collect()
    }
}
