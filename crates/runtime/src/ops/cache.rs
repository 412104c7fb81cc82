//! The paged cache of latents.

use crate::{Capacity, Error, PageId, Tensor, checkpoint::advise_huge_pages};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Config of the operators that write the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagedCacheConfig {
    /// Features of a cached token: the latent, then the rotated key part that all heads share.
    pub features: usize,
}

/// One layer's cache, `[pages, page size, features]` in f32. A page holds consecutive positions of one sequence.
#[derive(Clone, Debug)]
pub struct LatentCache {
    page_size: usize,
    features: usize,
    values: Vec<f32>,
}

impl LatentCache {
    /// An empty cache. Its memory is zeroed by the operating system, page by page as it is touched.
    ///
    /// # Errors
    /// A capacity of nothing, or of more than an address space.
    pub fn new(capacity: &Capacity, features: usize) -> Result<Self, Error> {
        let &Capacity { pages, page_size, .. } = capacity;
        let values = pages.checked_mul(page_size).and_then(|tokens| tokens.checked_mul(features));
        match values.filter(|&values| values > 0 && values <= isize::MAX as usize / size_of::<f32>()) {
            Some(values) => {
                let mut values = vec![0.0; values];
                advise_huge_pages(&mut values);
                Ok(Self { page_size, features, values })
            }
            None => {
                Err(Error::Request(format!("a cache of {pages} pages of {page_size} tokens cannot be made")))
            }
        }
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Features of a cached token.
    pub fn features(&self) -> usize {
        self.features
    }

    /// The first `length` positions of a sequence, page by page: the positions of each page and their values,
    /// `[positions, features]`.
    pub(crate) fn blocks<'a>(
        &'a self,
        pages: &'a [PageId],
        length: usize,
    ) -> impl Iterator<Item = (Range<usize>, &'a [f32])> {
        (0..length).step_by(self.page_size).zip(pages).map(move |(start, &PageId(page))| {
            let positions = start..length.min(start + self.page_size);
            let first = page as usize * self.page_size * self.features;
            (positions.clone(), &self.values[first..first + positions.len() * self.features])
        })
    }

    /// Checks that the pages cover positions `0..length` and lie in the cache.
    pub(crate) fn check(&self, pages: &[PageId], length: usize) -> Result<(), Error> {
        let total = self.values.len() / (self.page_size * self.features);
        if pages.len() * self.page_size < length {
            return Err(Error::Request(format!(
                "{} pages of {} tokens do not hold {length} positions",
                pages.len(),
                self.page_size
            )));
        }
        match pages.iter().find(|page| page.0 as usize >= total) {
            Some(PageId(page)) => {
                Err(Error::Request(format!("page {page} is beyond the cache of {total} pages")))
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, pages: &[PageId], position: usize, latent: &[f32]) {
        let page = pages[position / self.page_size].0 as usize;
        let first = (page * self.page_size + position % self.page_size) * self.features;
        self.values[first..first + self.features].copy_from_slice(latent);
    }
}

/// Writes one chunk of one sequence, at the positions from `start` on.
///
/// # Shapes
/// `latents` `[tokens, features]`.
///
/// # Errors
/// Pages that do not cover the chunk.
pub fn paged_fill_cache(
    cache: &mut LatentCache,
    latents: &Tensor,
    start: usize,
    pages: &[PageId],
    config: &PagedCacheConfig,
) -> Result<(), Error> {
    assert_eq!(
        (latents.cols(), cache.features),
        (config.features, config.features),
        "features of a cached token"
    );
    cache.check(pages, start + latents.rows())?;
    for row in 0..latents.rows() {
        cache.write(pages, start + row, latents.row(row));
    }
    Ok(())
}

/// Writes one token of each of several sequences, at each one's position.
///
/// # Shapes
/// `latents` `[users, features]`, `positions` `[users]`, `pages` `[users]`.
///
/// # Errors
/// Pages that do not cover the position.
pub fn paged_update_cache(
    cache: &mut LatentCache,
    latents: &Tensor,
    positions: &[usize],
    pages: &[&[PageId]],
    config: &PagedCacheConfig,
) -> Result<(), Error> {
    assert_eq!(
        (latents.cols(), cache.features),
        (config.features, config.features),
        "features of a cached token"
    );
    assert_eq!(
        (positions.len(), pages.len()),
        (latents.rows(), latents.rows()),
        "one position and page table a user"
    );
    for (user, (&position, pages)) in positions.iter().zip(pages).enumerate() {
        cache.check(pages, position + 1)?;
        cache.write(pages, position, latents.row(user));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity { max_context: 12, page_size: 3, pages: 4 };
    const CONFIG: PagedCacheConfig = PagedCacheConfig { features: 2 };

    fn latents(values: impl IntoIterator<Item = u16>) -> Tensor {
        let values: Vec<f32> = values.into_iter().flat_map(|v| [f32::from(v), -f32::from(v)]).collect();
        Tensor::from_vec(values.len() / 2, 2, values)
    }

    #[test]
    fn positions_are_read_back_in_order_over_scattered_pages() {
        let mut cache = LatentCache::new(&CAPACITY, 2).unwrap();
        let pages = [PageId(3), PageId(0), PageId(2)];
        paged_fill_cache(&mut cache, &latents(0..4), 0, &pages, &CONFIG).unwrap();
        paged_fill_cache(&mut cache, &latents(4..7), 4, &pages, &CONFIG).unwrap();
        paged_update_cache(&mut cache, &latents([7]), &[7], &[&pages], &CONFIG).unwrap();
        let blocks: Vec<_> = cache.blocks(&pages, 8).collect();
        assert_eq!(blocks.iter().map(|block| block.0.clone()).collect::<Vec<_>>(), [0..3, 3..6, 6..8]);
        let read: Vec<f32> = blocks.iter().flat_map(|block| block.1).copied().collect();
        assert_eq!(read, latents(0..8).into_vec());
    }

    #[test]
    fn a_cache_of_nothing_or_of_everything_is_refused() {
        for (page_size, pages) in [(0, 4), (3, 0), (usize::MAX, 2), (1 << 40, 1 << 20)] {
            assert!(LatentCache::new(&Capacity { max_context: 12, page_size, pages }, 2).is_err());
        }
    }

    #[test]
    fn pages_that_do_not_cover_a_step_are_refused() {
        let mut cache = LatentCache::new(&CAPACITY, 2).unwrap();
        let error = paged_fill_cache(&mut cache, &latents(0..4), 0, &[PageId(1)], &CONFIG).unwrap_err();
        assert_eq!(error.to_string(), "1 pages of 3 tokens do not hold 4 positions");
        let error =
            paged_update_cache(&mut cache, &latents([1]), &[0], &[&[PageId(4)]], &CONFIG).unwrap_err();
        assert_eq!(error.to_string(), "page 4 is beyond the cache of 4 pages");
    }
}
