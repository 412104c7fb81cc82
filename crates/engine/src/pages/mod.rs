//! Pages of the latent cache: a pool of free ones, each sequence's table of those it holds, and those that are kept for
//! sequences to come.
//!
//! A page may be held by several tables: sequences that begin alike share the pages of their beginning, and nobody
//! writes into a page that another holds. A table gives its pages back when it is dropped, so an error on any path loses
//! none. A page that nobody holds any more is free, or, if it was [kept](PageTable::keep), it waits for a sequence with
//! the same prefix until its place is needed: first goes the one that was held longest ago, and of a sequence's pages the
//! last.
//!
//! The pool is shared through a lock because tables of several sequences outlive each other in any order; it is taken
//! once a page, not a token.

mod prefix;
mod row;

use std::sync::{Arc, Mutex, MutexGuard};

use dsv3_runtime::{PageId, TokenId};

use crate::{Error, ModelLimits};
pub use prefix::{KeptPage, PageKey};
use row::Row;

/// The cache's pages. Clones share the same pages. Each row of a mesh has pages of its own, numbered from 0.
#[derive(Clone, Debug)]
pub struct PagePool {
    rows: Arc<Mutex<Vec<Row>>>,
    page_size: usize,
    page_count: usize,
}

/// How many pages are used for what, of all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageUse {
    /// All there are.
    pub total: usize,
    /// Those that sequences hold.
    pub held: usize,
    /// Those that are kept and that nobody holds.
    pub kept: usize,
    /// Those that hold nothing of use.
    pub free: usize,
    /// How often a kept page has had to make place, since the start.
    pub evicted: u64,
}

/// A sequence's beginning that is in the cache already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CachedPrefix {
    /// The row of the mesh that caches it.
    pub row: usize,
    /// Its pages, in order of position.
    pub pages: Vec<PageId>,
}

impl PagePool {
    /// The pages that a model has, all free.
    ///
    /// # Panics
    /// If a page has no positions, there are no rows, or the pages of a row exceed the range of [`PageId`].
    pub fn new(limits: &ModelLimits) -> Self {
        let &ModelLimits { page_count, page_size, rows, .. } = limits;
        assert!(page_size > 0 && rows > 0, "a page holds a position or more, a mesh has a row or more");
        let count = u32::try_from(page_count).expect("page ids are 32 bits wide");
        let rows = (0..rows).map(|_| Row::new(count)).collect();
        Self { rows: Arc::new(Mutex::new(rows)), page_size, page_count }
    }

    /// An empty table that takes its pages from this pool.
    pub fn table(&self) -> PageTable {
        PageTable { pool: self.clone(), row: 0, pages: Vec::new() }
    }

    /// Pages that no table holds, of all rows.
    pub fn free_pages(&self) -> usize {
        self.lock().iter().map(Row::available).sum()
    }

    /// Pages of a row that no table holds.
    pub fn available(&self, row: usize) -> usize {
        self.lock()[row].available()
    }

    /// What the pages are used for.
    pub fn usage(&self) -> PageUse {
        let rows = self.lock();
        let (total, free) = (rows.len() * self.page_count, rows.iter().map(Row::free).sum());
        let kept = rows.iter().map(Row::available).sum::<usize>() - free;
        let evicted = rows.iter().map(Row::evicted).sum();
        PageUse { total, held: total - kept - free, kept, free, evicted }
    }

    /// Pages of each row, held ones included.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// Positions of one page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Rows of the mesh.
    pub fn rows(&self) -> usize {
        self.lock().len()
    }

    /// On each row, as much as is kept of a sequence's beginning: pages with these names, which hold these tokens.
    ///
    /// # Shapes
    /// `names` `[pages]`, of `tokens` `[pages * page size or more]`.
    pub fn cached_prefixes(&self, names: &[PageKey], tokens: &[TokenId]) -> Vec<CachedPrefix> {
        let pages = || names.iter().zip(tokens.chunks_exact(self.page_size));
        let prefix = |row: &Row| pages().map_while(|(name, tokens)| row.find(name, tokens)).collect();
        self.lock()
            .iter()
            .enumerate()
            .map(|(row, pages)| CachedPrefix { row, pages: prefix(pages) })
            .collect()
    }

    /// All pages that are kept on a row, those before others first.
    pub fn kept_pages(&self, row: usize) -> Vec<(PageId, KeptPage)> {
        self.lock()[row].kept_pages()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Row>> {
        // No code that can panic runs under the lock, so a poisoned list is still a whole one.
        self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The pages of one sequence, in order of position. Dropping it gives them back.
#[derive(Debug)]
pub struct PageTable {
    pool: PagePool,
    row: usize,
    pages: Vec<PageId>,
}

impl PageTable {
    /// Takes pages until `positions` are covered; all of them or none. All lie on one row: the one with the most free
    /// pages when the first was taken, unless it was [chosen](Self::adopt).
    ///
    /// # Errors
    /// [`Error::OutOfPages`], and the table is as it was.
    pub fn grow_to(&mut self, positions: usize) -> Result<(), Error> {
        let wanted = positions.div_ceil(self.pool.page_size);
        let needed = wanted.saturating_sub(self.pages.len());
        if needed == 0 {
            return Ok(());
        }
        let mut rows = self.pool.lock();
        if self.pages.is_empty() {
            // Of rows with as many, the first.
            let most = (0..rows.len()).rev().max_by_key(|&row| rows[row].available());
            self.row = most.expect("a mesh has rows");
        }
        let row = &mut rows[self.row];
        let free = row.available();
        if free < needed {
            return Err(Error::OutOfPages { needed, free, total: self.pool.page_count });
        }
        self.pages.extend((0..needed).map(|_| row.take().expect("as many are available")));
        Ok(())
    }

    /// Begins with pages that are kept, or that another table holds too, and then takes more until `positions` are
    /// covered, on the same row; all or none.
    ///
    /// # Errors
    /// [`Error::OutOfPages`], and the table is empty.
    ///
    /// # Panics
    /// If the table holds pages.
    pub fn adopt(&mut self, prefix: &CachedPrefix, positions: usize) -> Result<(), Error> {
        self.adopt_leaving(prefix, positions, 0)
    }

    /// As [`adopt`](Self::adopt), where that leaves `spare` pages of the row that no table holds. Where it does not,
    /// nothing has happened: no kept page has made place.
    ///
    /// # Errors
    /// [`Error::OutOfPages`], and the table is empty.
    ///
    /// # Panics
    /// If the table holds pages.
    pub fn adopt_leaving(
        &mut self,
        prefix: &CachedPrefix,
        positions: usize,
        spare: usize,
    ) -> Result<(), Error> {
        assert!(self.pages.is_empty(), "a sequence begins once");
        let needed = positions.div_ceil(self.pool.page_size).saturating_sub(prefix.pages.len());
        let mut rows = self.pool.lock();
        let row = &mut rows[prefix.row];
        let free = row.available() - prefix.pages.iter().filter(|&&page| !row.is_held(page)).count();
        if free < needed.saturating_add(spare) {
            return Err(Error::OutOfPages { needed, free, total: self.pool.page_count });
        }
        prefix.pages.iter().for_each(|&page| row.hold(page));
        self.row = prefix.row;
        self.pages.extend(&prefix.pages);
        self.pages.extend((0..needed).map(|_| row.take().expect("as many are available")));
        Ok(())
    }

    /// Keeps the page at this place for sequences to come, unless another page has its name already. It must be full, and
    /// is not written any more.
    pub fn keep(&self, place: usize, content: KeptPage) {
        self.pool.lock()[self.row].keep(self.pages[place], content);
    }

    /// Gives all pages back; the table can grow again.
    pub fn release(&mut self) {
        let mut rows = self.pool.lock();
        self.pages.drain(..).rev().for_each(|page| rows[self.row].release(page));
    }

    /// The pages, in order of position.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// The row of the mesh that the pages lie on.
    pub fn row(&self) -> usize {
        self.row
    }

    /// Positions that the pages cover.
    pub fn capacity(&self) -> usize {
        self.pages.len() * self.pool.page_size
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn limits(page_count: usize, page_size: usize, rows: usize) -> ModelLimits {
        ModelLimits { vocab_size: 1, max_context: page_count * page_size, page_size, page_count, rows }
    }

    fn pool(page_count: usize, page_size: usize) -> PagePool {
        PagePool::new(&limits(page_count, page_size, 1))
    }

    #[test]
    fn a_sequence_stays_on_the_row_that_had_the_most_room() {
        let pool = PagePool::new(&limits(4, 8, 2));
        let mut tables: Vec<_> = (0..3).map(|_| pool.table()).collect();
        for (table, pages) in tables.iter_mut().zip([2, 1, 1]) {
            table.grow_to(8 * pages).unwrap();
        }
        assert_eq!(tables.iter().map(PageTable::row).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!(tables[1].pages(), [PageId(0)]);
        assert_eq!(tables[2].pages(), [PageId(1)]);
        // Row 1 has two pages left, row 0 as many: neither has three.
        let error = tables[0].grow_to(8 * 5).unwrap_err().to_string();
        assert!(error.contains('3') && error.contains('2'), "{error}");
        tables[0].release();
        assert_eq!(pool.free_pages(), 6);
    }

    #[test]
    fn a_table_grows_by_whole_pages_in_order() {
        let pool = pool(4, 8);
        let mut table = pool.table();
        table.grow_to(0).unwrap();
        assert!(table.pages().is_empty());
        table.grow_to(1).unwrap();
        table.grow_to(8).unwrap();
        assert_eq!(table.pages(), [PageId(0)]);
        table.grow_to(17).unwrap();
        assert_eq!(table.pages(), [PageId(0), PageId(1), PageId(2)]);
        assert_eq!((table.capacity(), pool.free_pages()), (24, 1));
    }

    #[test]
    fn a_pool_that_runs_out_says_so_and_takes_nothing() {
        let pool = pool(3, 4);
        let mut first = pool.table();
        first.grow_to(8).unwrap();
        let mut second = pool.table();
        let error = second.grow_to(5).unwrap_err();
        assert!(matches!(error, Error::OutOfPages { needed: 2, free: 1, total: 3 }), "{error}");
        assert!(second.pages().is_empty());
        drop(first);
        second.grow_to(12).unwrap();
        assert_eq!(pool.free_pages(), 0);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Grow(usize, usize),
        Release(usize),
        Replace(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..5_usize, 0..60_usize).prop_map(|(table, positions)| Operation::Grow(table, positions)),
            (0..5_usize).prop_map(Operation::Release),
            (0..5_usize).prop_map(Operation::Replace),
        ]
    }

    proptest! {
        #[test]
        fn no_page_is_held_twice_and_all_come_back(operations in prop::collection::vec(operation(), 0..80)) {
            let pool = pool(12, 7);
            let mut tables: Vec<_> = (0..5).map(|_| pool.table()).collect();
            for operation in operations {
                match operation {
                    Operation::Grow(table, positions) => {
                        let before = tables[table].pages().to_vec();
                        match tables[table].grow_to(positions) {
                            Ok(()) => prop_assert!(tables[table].capacity() >= positions),
                            Err(_) => prop_assert_eq!(tables[table].pages(), &before[..]),
                        }
                        prop_assert!(tables[table].pages().starts_with(&before), "held pages never move");
                    }
                    Operation::Release(table) => tables[table].release(),
                    Operation::Replace(table) => tables[table] = pool.table(),
                }
                let held: Vec<_> = tables.iter().flat_map(PageTable::pages).collect();
                let distinct: HashSet<_> = held.iter().collect();
                prop_assert_eq!(distinct.len(), held.len(), "a page is held twice");
                prop_assert!(held.iter().all(|page| page.0 < 12));
                prop_assert_eq!(held.len() + pool.free_pages(), 12, "a page is lost");
            }
            drop(tables);
            prop_assert_eq!(pool.free_pages(), 12);
        }
    }

    fn ids(ids: std::ops::Range<u32>) -> Vec<TokenId> {
        ids.map(TokenId).collect()
    }

    /// Keeps all pages of a table, which hold these tokens.
    fn keep(table: &PageTable, tokens: &[TokenId]) -> Vec<PageKey> {
        let size = table.pool.page_size;
        let names = PageKey::chain(PageKey::root(""), tokens, size);
        for (place, (&key, tokens)) in names.iter().zip(tokens.chunks(size)).enumerate() {
            let before = place.checked_sub(1).map_or(PageKey::root(""), |before| names[before]);
            table.keep(place, KeptPage { key, before, place: place as u32, tokens: tokens.into() });
        }
        names
    }

    #[test]
    fn kept_pages_are_found_by_their_tokens_and_held_together() {
        let pool = pool(4, 2);
        let tokens = ids(0..6);
        let mut first = pool.table();
        first.grow_to(6).unwrap();
        let names = keep(&first, &tokens);
        let held = first.pages().to_vec();
        let found =
            |names: &[PageKey], tokens: &[TokenId]| pool.cached_prefixes(names, tokens).remove(0).pages;
        assert_eq!(found(&names, &tokens), held, "also while they are held");
        drop(first);
        assert_eq!((pool.usage().kept, pool.usage().free, pool.free_pages()), (3, 1, 4));
        assert_eq!(found(&names[..2], &tokens), held[..2]);
        assert!(found(&names, &ids(1..7)).is_empty(), "a name with other tokens is not the page");

        let prefix = CachedPrefix { row: 0, pages: held[..2].to_vec() };
        let (mut one, mut two) = (pool.table(), pool.table());
        one.adopt(&prefix, 5).unwrap();
        two.adopt(&prefix, 6).unwrap();
        assert_eq!(
            (one.pages()[..2].to_vec(), two.pages()[..2].to_vec()),
            (held[..2].to_vec(), held[..2].to_vec())
        );
        assert_ne!(one.pages()[2], two.pages()[2]);
        assert_eq!(pool.usage(), PageUse { total: 4, held: 4, kept: 0, free: 0, evicted: 1 });
        assert_eq!(found(&names, &tokens), held[..2], "the third has made place");
        let mut third = pool.table();
        let error = third.adopt(&prefix, 6).unwrap_err();
        assert!(matches!(error, Error::OutOfPages { needed: 1, free: 0, total: 4 }), "{error}");
        drop((one, two));
        assert_eq!((pool.usage().kept, pool.usage().free), (2, 2));
    }

    #[test]
    fn who_gets_no_pages_takes_none_from_the_cache() {
        let pool = pool(5, 2);
        let tokens = ids(0..8);
        let mut first = pool.table();
        first.grow_to(8).unwrap();
        keep(&first, &tokens);
        let prefix = CachedPrefix { row: 0, pages: first.pages()[..2].to_vec() };
        drop(first);
        let mut table = pool.table();
        let error = table.adopt_leaving(&prefix, 8, 2).unwrap_err();
        assert!(matches!(error, Error::OutOfPages { needed: 2, free: 3, total: 5 }), "{error}");
        assert_eq!(pool.usage(), PageUse { total: 5, held: 0, kept: 4, free: 1, evicted: 0 });
        table.adopt_leaving(&prefix, 8, 1).unwrap();
        assert_eq!(pool.usage(), PageUse { total: 5, held: 4, kept: 1, free: 0, evicted: 1 });
    }

    #[test]
    fn the_page_that_was_held_longest_ago_makes_place_and_of_a_sequence_the_last() {
        let pool = pool(4, 1);
        let (mut old, mut new) = (pool.table(), pool.table());
        old.grow_to(2).unwrap();
        new.grow_to(2).unwrap();
        let (olds, news) = (keep(&old, &ids(0..2)), keep(&new, &ids(10..12)));
        drop(old);
        drop(new);
        let cached =
            |names: &[PageKey], tokens: Vec<TokenId>| pool.cached_prefixes(names, &tokens)[0].pages.len();
        let counts = || (cached(&olds, ids(0..2)), cached(&news, ids(10..12)));
        let mut table = pool.table();
        for expected in [(1, 2), (0, 2), (0, 1), (0, 0)] {
            table.grow_to(table.capacity() + 1).unwrap();
            assert_eq!(counts(), expected);
        }
    }

    #[test]
    fn tables_that_share_pages_give_them_back_once() {
        let pool = pool(3, 2);
        let mut first = pool.table();
        first.grow_to(5).unwrap();
        let mut second = pool.table();
        second.adopt(&CachedPrefix { row: 0, pages: first.pages()[..2].to_vec() }, 4).unwrap();
        drop(first);
        assert_eq!(pool.free_pages(), 1);
        drop(second);
        assert_eq!(pool.free_pages(), 3);
    }

    /// What a table of the next test does: begins with what is kept of a sequence, grows to more of its pages and keeps
    /// them, or is dropped.
    #[derive(Clone, Debug)]
    enum Turn {
        Begin(usize, usize, usize),
        End(usize),
    }

    fn turn() -> impl Strategy<Value = Turn> {
        prop_oneof![
            3 => (0..4_usize, 0..3_usize, 1..6_usize)
                .prop_map(|(table, sequence, pages)| Turn::Begin(table, sequence, pages)),
            1 => (0..4_usize).prop_map(Turn::End),
        ]
    }

    proptest! {
        /// Three sequences that have their first pages in common, two of them more.
        #[test]
        fn kept_pages_know_their_place_and_come_behind_those_before_them(turns in prop::collection::vec(turn(), 0..60)) {
            let pool = pool(9, 1);
            let tokens = |sequence: usize| -> Vec<TokenId> {
                let splits = [9, 3, 1];
                (0..6).map(|place| TokenId(if place < splits[sequence] { place } else { 100 * sequence as u32 + place }))
                    .collect()
            };
            let mut tables: Vec<_> = (0..4).map(|_| pool.table()).collect();
            for turn in turns {
                match turn {
                    Turn::End(table) => tables[table].release(),
                    Turn::Begin(table, sequence, pages) => {
                        let table = &mut tables[table];
                        table.release();
                        let tokens = &tokens(sequence)[..pages];
                        let names = PageKey::chain(PageKey::root(""), tokens, 1);
                        let prefix = pool.cached_prefixes(&names, tokens).remove(0);
                        if table.adopt(&prefix, pages).is_ok() {
                            keep(table, tokens);
                        }
                    }
                }
                let kept = pool.kept_pages(0);
                let by_name = |name| kept.iter().position(|(_, content)| content.key == name);
                for (index, (_, content)) in kept.iter().enumerate() {
                    let before = |&at: &usize| by_name(kept[at].1.before);
                    let walk: Vec<usize> = std::iter::successors(Some(index), before).collect();
                    prop_assert!(walk.is_sorted_by(|later, earlier| later > earlier), "{walk:?}");
                    let first = &kept[*walk.last().unwrap()].1;
                    prop_assert_eq!(content.place as usize, first.place as usize + walk.len() - 1);
                    if first.before == PageKey::root("") {
                        prop_assert_eq!(content.place as usize, walk.len() - 1, "the whole chain is kept");
                    }
                }
            }
        }
    }
}
