//! A chunk whose tokens lie on several rows of a mesh, of a sequence that one of them caches.

use super::{LatentCache, PagedCacheConfig, paged_fill_cache};
use crate::{Capacity, Device, Error, PageId, PrefillStep, Tensor};
use dsv3_mesh::{AllGatherConfig, Axis, Rank};
use serde::{Deserialize, Serialize};

/// Config of [`paged_fill_cache_over_rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceConfig {
    /// Brings the chunk's latents together, those of all rows.
    pub all_gather: AllGatherConfig,
}

/// What a row needs to know of a sequence that another row caches: a copy for one chunk.
#[derive(Debug)]
pub struct ContextCopy {
    /// The positions up to the chunk's end.
    pub cache: LatentCache,
    /// Its pages, in order of position.
    pub pages: Vec<PageId>,
}

/// Writes one chunk on the row that caches the sequence, and gives every other row a copy of the whole context, byte for
/// byte.
///
/// # Shapes
/// `latents` `[tokens of this row, features]`.
///
/// # Errors
/// Pages that do not cover the chunk; another rank that does not come.
pub fn paged_fill_cache_over_rows(
    cache: &mut LatentCache,
    latents: Tensor,
    step: &PrefillStep<'_>,
    config: &PagedCacheConfig,
    sequence: &SequenceConfig,
    device: &Device,
) -> Result<Option<ContextCopy>, Error> {
    let latents = device.all_gather(latents, &sequence.all_gather)?; // [chunk, features]
    let (shape, rank) = (device.mesh().shape(), device.mesh().rank());
    let root = Rank(step.row * shape.size(Axis::Columns) + shape.coordinate(rank, Axis::Columns));
    let known = step.context.div_ceil(cache.page_size);
    // On every row: all have the same pages, and none may wait for one that has refused them.
    cache.check(step.pages, step.context + latents.rows())?;
    if rank == root {
        if known > 0 {
            let pages = step.pages[..known].iter().flat_map(|&page| cache.page(page)).copied();
            device.mesh().broadcast(Some(pages.collect()), root, Axis::Rows)?;
        }
        paged_fill_cache(cache, &latents, step.context, step.pages, config)?;
        return Ok(None);
    }
    let mut copy = ContextCopy::new(cache, step.context + latents.rows())?;
    if known > 0 {
        let pages = device.mesh().broadcast(None, root, Axis::Rows)?;
        let (expected, got) = (known * cache.page_bytes(), pages.len());
        if expected != got {
            let message =
                format!("expected {known} pages of the row {}, {expected} bytes, got {got}", step.row);
            return Err(Error::Request(message));
        }
        copy.cache.bytes[..got].copy_from_slice(&pages);
    }
    paged_fill_cache(&mut copy.cache, &latents, step.context, &copy.pages, config)?;
    Ok(Some(copy))
}

impl ContextCopy {
    /// Room for as many positions, stored as in `like`.
    fn new(like: &LatentCache, positions: usize) -> Result<Self, Error> {
        let pages = positions.div_ceil(like.page_size);
        let capacity = Capacity { max_context: positions, page_size: like.page_size, pages };
        let cache = LatentCache::new(&capacity, like.shape, like.format)?;
        Ok(Self { cache, pages: (0..pages as u32).map(PageId).collect() })
    }
}

impl LatentCache {
    pub(super) fn page(&self, page: PageId) -> &[u8] {
        &self.bytes[page.0 as usize * self.page_bytes()..][..self.page_bytes()]
    }
}
