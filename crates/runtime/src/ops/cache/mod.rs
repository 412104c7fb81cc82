//! The paged cache of latents.

mod format;
mod over_rows;

use crate::{Capacity, Error, PageId, Tensor, zeros_in_large_pages};
use dsv3_kernels::{Kernels, KeyRows, LANES, MatrixMut, MatrixRef, MatrixView, read_halves};
use format::{Plane, Storage};
use serde::{Deserialize, Serialize};
use std::ops::Range;

pub use format::{CacheFormat, LatentShape};
pub use over_rows::{ContextCopy, SequenceConfig, paged_fill_cache_over_rows};

/// Config of the operators that write the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagedCacheConfig {
    /// Features of a cached token: the latent, then the rotated key part that all heads share.
    pub features: usize,
}

impl PagedCacheConfig {
    fn assert_fits(&self, cache: &LatentCache, latents: &Tensor) {
        let features = (self.features, self.features);
        assert_eq!((latents.cols(), cache.features()), features, "features of a cached token");
    }
}

/// One layer's cache, `[pages, page size, features]`. A page holds consecutive positions of one sequence.
#[derive(Clone, Debug)]
pub struct LatentCache {
    page_size: usize,
    shape: LatentShape,
    format: CacheFormat,
    planes: Vec<Plane>,
    bytes: Vec<u8>,
}

impl LatentCache {
    /// An empty cache. Its memory is zeroed by the operating system, page by page as it is touched.
    ///
    /// # Errors
    /// A capacity of nothing, or of more than an address space.
    pub fn new(capacity: &Capacity, shape: LatentShape, format: CacheFormat) -> Result<Self, Error> {
        let &Capacity { pages, page_size, .. } = capacity;
        let planes = Plane::of(format, shape);
        let row: usize = planes.iter().map(Plane::row_bytes).sum();
        let bytes = pages.checked_mul(page_size).and_then(|tokens| tokens.checked_mul(row));
        match bytes.filter(|&bytes| bytes > 0 && bytes <= isize::MAX as usize) {
            Some(bytes) => {
                let bytes = zeros_in_large_pages(bytes);
                Ok(Self { page_size, shape, format, planes, bytes })
            }
            None => {
                Err(Error::Request(format!("a cache of {pages} pages of {page_size} tokens cannot be made")))
            }
        }
    }

    /// Bytes that the cache holds for a token, in one layer.
    pub fn bytes_per_token(shape: LatentShape, format: CacheFormat) -> usize {
        Plane::of(format, shape).iter().map(Plane::row_bytes).sum()
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Features of a cached token.
    pub fn features(&self) -> usize {
        self.shape.features()
    }

    /// How it is stored.
    pub fn format(&self) -> CacheFormat {
        self.format
    }

    /// Values from a row of a panel to the next, for [`read`](Self::read): room for whole blocks.
    pub(crate) fn panel_stride(&self) -> usize {
        let cols = self.planes.iter().map(|plane| plane.first + plane.cols).max().unwrap_or(0);
        panel_stride(cols)
    }

    /// Brings positions of a sequence into `panel`, `[positions, features]` by [`panel_stride`](Self::panel_stride).
    pub(crate) fn read(
        &self,
        pages: &[PageId],
        positions: Range<usize>,
        kernels: &Kernels,
        panel: &mut [f32],
    ) {
        let stride = self.panel_stride();
        let mut rest = &mut panel[..positions.len() * stride];
        let mut position = positions.start;
        while position < positions.end {
            let (page, first) = (pages[position / self.page_size], position % self.page_size);
            let count = (self.page_size - first).min(positions.end - position);
            let (rows, left) = rest.split_at_mut(count * stride);
            // In this order, because whole blocks may reach into the features of the next plane.
            for plane in &self.planes {
                let bytes = self.plane_rows(page, plane, first..first + count);
                match plane.storage {
                    Storage::Matrix(format) => {
                        let matrix = MatrixView::from_bytes(format, bytes, count, plane.cols, None);
                        let out = MatrixMut::strided(&mut rows[plane.first..], count, plane.cols, stride);
                        kernels.dequantize(&matrix, out);
                    }
                    Storage::Halves => {
                        let stored = bytes.chunks_exact(plane.row_bytes());
                        for (stored, out) in stored.zip(rows.chunks_exact_mut(stride)) {
                            read_halves(stored, &mut out[plane.first..][..plane.cols]);
                        }
                    }
                }
            }
            rest = left;
            position += count;
        }
    }

    /// The bytes from `position` to `end` or to the end of its page, to be asked for from memory ahead of time.
    pub(crate) fn stored(&self, pages: &[PageId], position: usize, end: usize) -> &[u8] {
        let Some(plane) = self.planes.first().filter(|_| position < end) else { return &[] };
        let row = position % self.page_size;
        let rows = (self.page_size - row).min(end - position);
        let start = self.plane_start(pages[position / self.page_size], plane) + row * plane.row_bytes();
        &self.bytes[start..start + rows * plane.row_bytes()]
    }

    /// Where a block ends that is given at once by [`rows`](Self::rows): one of `length` positions from a multiple of it on,
    /// and of one page.
    pub(crate) fn block_end(&self, position: usize, length: usize) -> usize {
        let next = |size: usize| (position / size + 1) * size;
        next(length).min(next(self.page_size))
    }

    /// What attention reads where it lies, if it does.
    fn in_place(&self) -> Option<&Plane> {
        match &self.planes[..] {
            [plane @ Plane { storage: Storage::Halves, .. }] => Some(plane),
            _ => None,
        }
    }

    /// Values of the panel that [`rows`](Self::rows) takes for so many positions.
    pub(crate) fn panel(&self, positions: usize) -> usize {
        if self.in_place().is_some() { 0 } else { positions * self.panel_stride() }
    }

    /// The latents of some positions of a page, `[positions, features]`: where they lie, if attention reads them there, or in
    /// f32 in `panel`, which holds them by [`panel_stride`](Self::panel_stride).
    ///
    /// # Shapes
    /// `panel` `[panel(positions)]` or more.
    pub(crate) fn rows<'a>(
        &'a self,
        pages: &[PageId],
        positions: Range<usize>,
        kernels: &Kernels,
        panel: &'a mut [f32],
    ) -> KeyRows<'a> {
        if let Some(plane) = self.in_place() {
            let (page, first) = (pages[positions.start / self.page_size], positions.start % self.page_size);
            return KeyRows::halves(self.plane_rows(page, plane, first..first + positions.len()), plane.cols);
        }
        let (count, stride) = (positions.len(), self.panel_stride());
        self.read(pages, positions, kernels, panel);
        KeyRows::f32(MatrixRef::strided(panel, count, self.features(), stride))
    }

    /// Rows of a plane of a page, as they are stored.
    fn plane_rows(&self, page: PageId, plane: &Plane, rows: Range<usize>) -> &[u8] {
        assert!(rows.end <= self.page_size, "rows {rows:?} of a page of {}", self.page_size);
        let (start, row) = (self.plane_start(page, plane), plane.row_bytes());
        &self.bytes[start + rows.start * row..start + rows.end * row]
    }

    fn plane_start(&self, page: PageId, plane: &Plane) -> usize {
        let before: usize =
            self.planes.iter().take_while(|other| other.first < plane.first).map(Plane::row_bytes).sum();
        page.0 as usize * self.page_bytes() + before * self.page_size
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_size * self.planes.iter().map(Plane::row_bytes).sum::<usize>()
    }

    /// Copies a page.
    ///
    /// # Errors
    /// A page that the cache does not have.
    pub fn copy_page(&mut self, from: PageId, to: PageId) -> Result<(), Error> {
        self.check(&[from, to], 0)?;
        let size = self.page_bytes();
        let start = from.0 as usize * size;
        self.bytes.copy_within(start..start + size, to.0 as usize * size);
        Ok(())
    }

    /// Appends the bytes of a page, as they are stored.
    ///
    /// # Errors
    /// A page that the cache does not have.
    pub fn read_page(&self, page: PageId, out: &mut Vec<u8>) -> Result<(), Error> {
        self.check(&[page], 0)?;
        out.extend_from_slice(self.page(page));
        Ok(())
    }

    /// Takes the bytes of a page off the front of `bytes`.
    ///
    /// # Errors
    /// A page that the cache does not have; fewer bytes than a page has.
    pub fn write_page(&mut self, page: PageId, bytes: &mut &[u8]) -> Result<(), Error> {
        self.check(&[page], 0)?;
        let size = self.page_bytes();
        let Some((front, rest)) = bytes.split_at_checked(size) else {
            return Err(Error::Request(format!("{} bytes are left for a page of {size}", bytes.len())));
        };
        self.bytes[page.0 as usize * size..][..size].copy_from_slice(front);
        *bytes = rest;
        Ok(())
    }

    /// Checks that the pages cover positions `0..length` and lie in the cache.
    pub(crate) fn check(&self, pages: &[PageId], length: usize) -> Result<(), Error> {
        let total = self.bytes.len() / self.page_bytes();
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
        for index in 0..self.planes.len() {
            let plane = self.planes[index];
            let row = position % self.page_size;
            let start = self.plane_start(pages[position / self.page_size], &plane) + row * plane.row_bytes();
            plane.store(
                &latent[plane.first..][..plane.features],
                &mut self.bytes[start..][..plane.row_bytes()],
            );
        }
    }
}

/// Values from a row of `cols` to the next in a panel: an odd number of lines, so that a column of a panel spreads over all
/// sets of the first cache.
pub(super) fn panel_stride(cols: usize) -> usize {
    (cols.div_ceil(LANES) | 1) * LANES
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
    config.assert_fits(cache, latents);
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
    config.assert_fits(cache, latents);
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
    const SHAPE: LatentShape = LatentShape { kv_lora_rank: 1, qk_rope_head_dim: 1 };

    fn latents(values: impl IntoIterator<Item = u16>) -> Tensor {
        let values: Vec<f32> = values.into_iter().flat_map(|v| [f32::from(v), -f32::from(v)]).collect();
        Tensor::from_vec(values.len() / 2, 2, values)
    }

    fn read(cache: &LatentCache, pages: &[PageId], positions: Range<usize>) -> Vec<f32> {
        let stride = cache.panel_stride();
        let mut panel = vec![f32::NAN; positions.len() * stride];
        cache.read(pages, positions, Kernels::best(), &mut panel);
        panel.chunks(stride).flat_map(|row| &row[..cache.features()]).copied().collect()
    }

    #[test]
    fn positions_are_read_back_in_order_over_scattered_pages() {
        let pages = [PageId(3), PageId(0), PageId(2)];
        for format in CacheFormat::ALL {
            let mut cache = LatentCache::new(&CAPACITY, SHAPE, format).unwrap();
            paged_fill_cache(&mut cache, &latents(0..4), 0, &pages, &CONFIG).unwrap();
            paged_fill_cache(&mut cache, &latents(4..7), 4, &pages, &CONFIG).unwrap();
            paged_update_cache(&mut cache, &latents([7]), &[7], &[&pages], &CONFIG).unwrap();
            for positions in [0..8, 0..3, 2..4, 5..8, 7..8] {
                let expected = latents(positions.start as u16..positions.end as u16).into_vec();
                let got = read(&cache, &pages, positions.clone());
                // One value a block: q8 gives it back up to the scale's rounding; a half after another, up to its own and for
                // zero 2^-64 and a half.
                let (bound, zero) = match format {
                    CacheFormat::Bf16 => (1.0 / 255.0, 2f32.powi(-64) * (1.0 + 1.0 / 128.0)),
                    _ => (1.0 / 1024.0, 0.0),
                };
                let near = |(got, value): (&f32, &f32)| (got - value).abs() <= value.abs() * bound + zero;
                assert!(got.iter().zip(&expected).all(near), "{format} {positions:?}: {got:?}");
                if format == CacheFormat::F32 {
                    assert_eq!(got, expected, "{format} {positions:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_asked_for_ahead_ends_with_the_page() {
        let cache = LatentCache::new(&CAPACITY, SHAPE, CacheFormat::Bf16).unwrap();
        let pages = [PageId(1), PageId(2)];
        assert_eq!(cache.stored(&pages, 1, 6).len(), 2 * 6);
        assert_eq!(cache.stored(&pages, 3, 5).len(), 2 * 6);
        assert_eq!(cache.stored(&pages, 6, 6).len(), 0);
    }

    #[test]
    fn a_page_is_copied_and_brought_back() {
        for format in CacheFormat::ALL {
            let mut cache = LatentCache::new(&CAPACITY, SHAPE, format).unwrap();
            paged_fill_cache(&mut cache, &latents(1..4), 0, &[PageId(1)], &CONFIG).unwrap();
            let expected = read(&cache, &[PageId(1)], 0..3);
            cache.copy_page(PageId(1), PageId(3)).unwrap();
            assert_eq!(read(&cache, &[PageId(3)], 0..3), expected);
            let mut bytes = Vec::new();
            cache.read_page(PageId(1), &mut bytes).unwrap();
            assert_eq!(bytes.len(), cache.page_bytes());
            cache.write_page(PageId(2), &mut &bytes[..]).unwrap();
            assert_eq!(read(&cache, &[PageId(2)], 0..3), expected);
            assert!(cache.write_page(PageId(2), &mut &bytes[1..]).is_err());
            assert!(cache.copy_page(PageId(0), PageId(4)).is_err());
        }
    }

    #[test]
    fn a_token_takes_the_bytes_of_its_format() {
        let shape = LatentShape { kv_lora_rank: 512, qk_rope_head_dim: 64 };
        let bytes = CacheFormat::ALL.map(|format| LatentCache::bytes_per_token(shape, format));
        assert_eq!(bytes, [2304, 1154, 512 / 32 * 34 + 128]);
    }

    #[test]
    fn a_cache_of_nothing_or_of_everything_is_refused() {
        for (page_size, pages) in [(0, 4), (3, 0), (usize::MAX, 2), (1 << 40, 1 << 20)] {
            let capacity = Capacity { max_context: 12, page_size, pages };
            assert!(LatentCache::new(&capacity, SHAPE, CacheFormat::F32).is_err());
        }
    }

    #[test]
    fn pages_that_do_not_cover_a_step_are_refused() {
        let mut cache = LatentCache::new(&CAPACITY, SHAPE, CacheFormat::F32).unwrap();
        let error = paged_fill_cache(&mut cache, &latents(0..4), 0, &[PageId(1)], &CONFIG).unwrap_err();
        assert_eq!(error.to_string(), "1 pages of 3 tokens do not hold 4 positions");
        let error =
            paged_update_cache(&mut cache, &latents([1]), &[0], &[&[PageId(4)]], &CONFIG).unwrap_err();
        assert_eq!(error.to_string(), "page 4 is beyond the cache of 4 pages");
    }
}
