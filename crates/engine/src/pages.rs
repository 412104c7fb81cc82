//! Pages of the latent cache: a pool of free ones, and each sequence's table of those it holds.
//!
//! A table gives its pages back when it is dropped, so an error on any path loses none. The pool is shared through
//! a lock because tables of several sequences outlive each other in any order; it is taken once a page, not a token.

use std::sync::{Arc, Mutex, MutexGuard};

use dsv3_runtime::PageId;

use crate::{Error, ModelLimits};

/// The cache's pages. Clones share the same pages. Each row of a mesh has pages of its own, numbered from 0.
#[derive(Clone, Debug)]
pub struct PagePool {
    // By row, a stack: the page that was freed last is the likeliest to be in a processor's cache.
    free: Arc<Mutex<Vec<Vec<PageId>>>>,
    page_size: usize,
    page_count: usize,
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
        let free = vec![(0..count).rev().map(PageId).collect(); rows];
        Self { free: Arc::new(Mutex::new(free)), page_size, page_count }
    }

    /// An empty table that takes its pages from this pool.
    pub fn table(&self) -> PageTable {
        PageTable { pool: self.clone(), row: 0, pages: Vec::new() }
    }

    /// Pages that no table holds, of all rows.
    pub fn free_pages(&self) -> usize {
        self.lock().iter().map(Vec::len).sum()
    }

    /// Pages of each row, held ones included.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// Positions of one page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<PageId>>> {
        // No code that can panic runs under the lock, so a poisoned list is still a whole one.
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
    /// pages when the first was taken.
    ///
    /// # Errors
    /// [`Error::OutOfPages`], and the table is as it was.
    pub fn grow_to(&mut self, positions: usize) -> Result<(), Error> {
        let wanted = positions.div_ceil(self.pool.page_size);
        let needed = wanted.saturating_sub(self.pages.len());
        if needed == 0 {
            return Ok(());
        }
        let mut free = self.pool.lock();
        if self.pages.is_empty() {
            // Of rows with as many, the first.
            let most = (0..free.len()).rev().max_by_key(|&row| free[row].len());
            self.row = most.expect("a mesh has rows");
        }
        let free = &mut free[self.row];
        let Some(rest) = free.len().checked_sub(needed) else {
            return Err(Error::OutOfPages { needed, free: free.len(), total: self.pool.page_count });
        };
        self.pages.extend(free.drain(rest..).rev());
        Ok(())
    }

    /// Gives all pages back; the table can grow again.
    pub fn release(&mut self) {
        self.pool.lock()[self.row].extend(self.pages.drain(..).rev());
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
}
