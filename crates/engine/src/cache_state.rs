//! The kept pages on disk, so that a restart does not run again what was run before.
//!
//! One file: a line of magic and version; the SHA-256 of what the pages depend on; the sizes; then a record a page, those
//! before others first: the name of the page before it, how many stand before it, its tokens, its bytes, and the SHA-256
//! of all that. The file is made beside its place and put there when it is whole. What is read is checked to the last byte
//! before any of it is used.
//!
//! Tokens of prompts stand in it, so none but its owner may read it. Its name begins the hash of what the pages depend on:
//! who runs another model on the same directory does not lose it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use dsv3_runtime::TokenId;
use sha2::{Digest, Sha256};

use crate::files::create_private_directory;
use crate::{Error, KeptPage, LanguageModel, NewFile, PageKey, PagePool, PageTable};

/// The file's first bytes. The number changes with the layout.
const MAGIC: &[u8] = b"dsv3 prefix cache 3\n";
/// The beginning of the file's name in its directory.
const FILE: &str = "prefix-cache";
/// Bytes of the fingerprint's hash that the name goes on with: enough to tell apart what one directory is used for.
const NAMED_BY: usize = 6;
/// Length of a hash and of a name.
const HASH: usize = 32;

/// Where kept pages are saved, and what they depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheState {
    /// The directory.
    pub directory: PathBuf,
    /// All that decides which bytes a page holds for given tokens: the model, its formats, the cache's, the operator
    /// configs. A file that was saved with another is refused.
    pub fingerprint: String,
}

/// What was saved or restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Pages.
    pub pages: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

impl CacheState {
    /// The file.
    pub fn path(&self) -> PathBuf {
        let hash = self.hash();
        let name: String = hash[..NAMED_BY].iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(format!("{FILE}-{name}"))
    }

    /// Makes the directory, unless it is there; none but its owner may read it then.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create_directory(&self) -> Result<(), Error> {
        create_private_directory(&self.directory)
    }

    fn hash(&self) -> [u8; HASH] {
        Sha256::digest(self.fingerprint.as_bytes()).into()
    }

    /// What the file begins with.
    fn header(&self, sizes: Sizes, pages: u64) -> Vec<u8> {
        let hash = self.hash();
        let sizes = [sizes.tokens as u64, sizes.bytes as u64, pages].map(u64::to_le_bytes).concat();
        let sum = Sha256::new().chain_update(hash).chain_update(&sizes).finalize();
        [MAGIC, &hash[..], &sizes, &sum].concat()
    }

    /// Writes all kept pages of a pool. Where none are kept, what was saved before stays.
    ///
    /// # Errors
    /// A model whose pages cannot be read; a file that cannot be written.
    pub(crate) fn save(&self, pool: &PagePool, model: &mut impl LanguageModel) -> Result<CacheReport, Error> {
        let sizes = Sizes::of(pool, model)?;
        let pages = pool.kept_pages(0);
        if pages.is_empty() {
            return Ok(CacheReport::default());
        }
        self.create_directory()?;
        let mut file = NewFile::create_private(&self.path())?;
        let header = self.header(sizes, pages.len() as u64);
        file.write_all(&header)?;
        let mut record = Vec::with_capacity(sizes.record());
        for (page, content) in &pages {
            record.clear();
            record.extend_from_slice(content.before.bytes());
            record.extend_from_slice(&content.place.to_le_bytes());
            record.extend(content.tokens.iter().flat_map(|token| token.0.to_le_bytes()));
            model.read_page(*page, &mut record)?;
            let sum = Sha256::digest(&record);
            record.extend_from_slice(&sum);
            assert_eq!(record.len(), sizes.record(), "a page has the bytes that the model says");
            file.write_all(&record)?;
        }
        file.finish()?;
        let bytes = (header.len() + pages.len() * sizes.record()) as u64;
        Ok(CacheReport { pages: pages.len(), bytes })
    }

    /// Brings saved pages back, as many as there is room for, and keeps them. Nothing where there is no file.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is damaged or was saved for something else, which it names; the pool is as it
    /// was then.
    pub(crate) fn restore(
        &self,
        pool: &PagePool,
        model: &mut impl LanguageModel,
    ) -> Result<CacheReport, Error> {
        let sizes = Sizes::of(pool, model)?;
        let path = self.path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(CacheReport::default()),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let length = file.metadata().map_err(Error::io(&path))?.len();
        let mut reader = Reader { path: &path, file: BufReader::with_capacity(1 << 20, file) };
        let header = reader.take(self.header(sizes, 0).len())?;
        let pages = self.check_header(&path, &header, sizes, length)?;
        let mut restored: Vec<(PageTable, KeptPage)> = Vec::new();
        for number in 0..pages {
            let record = reader.take(sizes.record())?;
            let (record, sum) = record.split_at(record.len() - HASH);
            if Sha256::digest(record)[..] != *sum {
                return Err(damaged(&path, format!("page {number} is damaged")));
            }
            let mut table = pool.table();
            // The rest is checked all the same.
            if pool.usage().free > 0 && table.grow_to(1).is_ok() {
                let (content, bytes) = sizes.content(record);
                model.write_page(table.pages()[0], bytes)?;
                restored.push((table, content));
            }
        }
        let report = CacheReport { pages: restored.len(), bytes: length };
        for (table, content) in &restored {
            table.keep(0, content.clone());
        }
        // Those before others are given back last, and so stay longest.
        while restored.pop().is_some() {}
        Ok(report)
    }

    /// The number of pages of a file with this beginning.
    fn check_header(&self, path: &Path, header: &[u8], sizes: Sizes, length: u64) -> Result<u64, Error> {
        let count_at = header.len() - HASH - size_of::<u64>();
        let count = header[count_at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if !header.starts_with(MAGIC) {
            return Err(damaged(path, "it is no prefix cache of this version of dsv3".to_owned()));
        }
        if self.header(sizes, count) != header {
            return Err(damaged(path, "it was saved for another model, format or page size".to_owned()));
        }
        let expected = (sizes.record() as u64)
            .checked_mul(count)
            .and_then(|pages| pages.checked_add(header.len() as u64));
        if expected != Some(length) {
            return Err(damaged(path, format!("{count} pages take other than its {length} bytes")));
        }
        Ok(count)
    }
}

fn damaged(path: &Path, message: String) -> Error {
    Error::Format { path: path.to_owned(), message }
}

/// Reads a file whose errors have its name.
struct Reader<'a> {
    path: &'a Path,
    file: BufReader<File>,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length];
        let read = self.file.read_exact(&mut bytes);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged(self.path, "it ends too soon".to_owned()),
            _ => Error::io(self.path)(error),
        })?;
        Ok(bytes)
    }
}

/// The sizes of a page.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    bytes: usize,
}

impl Sizes {
    fn of(pool: &PagePool, model: &impl LanguageModel) -> Result<Self, Error> {
        let bytes = model.page_bytes().filter(|_| pool.rows() == 1).ok_or(Error::Parameter {
            parameter: "cache-state",
            value: "for a mesh".to_owned(),
            expected: "for one device: the cache of several cannot be saved",
        })?;
        Ok(Self { tokens: pool.page_size(), bytes })
    }

    /// Bytes of a record.
    fn record(self) -> usize {
        2 * HASH + (1 + self.tokens) * size_of::<u32>() + self.bytes
    }

    /// What a record without its sum says, and the page's bytes.
    fn content(self, record: &[u8]) -> (KeptPage, &[u8]) {
        let (before, rest) = record.split_first_chunk().expect("a record begins with a name");
        let (place, rest) = rest.split_first_chunk().expect("a record has a place");
        let (tokens, bytes) = rest.split_at(self.tokens * size_of::<u32>());
        let tokens: Box<[TokenId]> =
            tokens.as_chunks().0.iter().map(|bytes| TokenId(u32::from_le_bytes(*bytes))).collect();
        let before = PageKey::from_bytes(*before);
        let place = u32::from_le_bytes(*place);
        (KeptPage { key: before.next(&tokens), before, place, tokens }, bytes)
    }
}

#[cfg(test)]
mod tests {
    use dsv3_runtime::PageId;

    use super::*;
    use crate::ModelLimits;
    use crate::testing::{FakeModel, Next, VOCAB_SIZE, hashed};

    const LIMITS: ModelLimits =
        ModelLimits { vocab_size: VOCAB_SIZE, max_context: 64, page_size: 4, page_count: 8, rows: 1 };

    fn model() -> FakeModel<Next> {
        FakeModel::new(LIMITS, hashed)
    }

    fn state(directory: &Path) -> CacheState {
        CacheState { directory: directory.join("new"), fingerprint: "a model".to_owned() }
    }

    fn tokens() -> Vec<TokenId> {
        (0..12).map(TokenId).collect()
    }

    /// A pool that keeps three pages.
    fn filled(model: &mut FakeModel<Next>) -> PagePool {
        let pool = PagePool::new(&LIMITS);
        let mut table = pool.table();
        table.grow_to(12).unwrap();
        let names = PageKey::chain(PageKey::root(""), &tokens(), 4);
        for (place, tokens) in tokens().chunks(4).enumerate() {
            let before = place.checked_sub(1).map_or(PageKey::root(""), |before| names[before]);
            for (offset, &token) in tokens.iter().enumerate() {
                model.cache.insert((0, table.pages()[place], offset), token);
            }
            let content = KeptPage { key: names[place], before, place: place as u32, tokens: tokens.into() };
            table.keep(place, content);
        }
        drop(table);
        pool
    }

    fn cached(pool: &PagePool) -> Vec<PageId> {
        pool.cached_prefixes(&PageKey::chain(PageKey::root(""), &tokens(), 4), &tokens()).remove(0).pages
    }

    #[test]
    fn pages_come_back_with_their_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(directory.path());
        let mut model_before = model();
        let pool = filled(&mut model_before);
        assert_eq!(state.restore(&PagePool::new(&LIMITS), &mut model()).unwrap(), CacheReport::default());
        let saved = state.save(&pool, &mut model_before).unwrap();
        assert_eq!((saved.pages, saved.bytes), (3, std::fs::metadata(state.path()).unwrap().len()));

        let (pool, mut model) = (PagePool::new(&LIMITS), model());
        assert_eq!(state.restore(&pool, &mut model).unwrap(), saved);
        let pages = cached(&pool);
        assert_eq!((pages.len(), pool.usage().kept, pool.usage().free), (3, 3, 5));
        for (position, token) in tokens().into_iter().enumerate() {
            assert_eq!(model.cache[&(0, pages[position / 4], position % 4)], token);
        }
    }

    #[test]
    fn each_model_has_a_file_of_its_own_that_nobody_else_reads() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(directory.path());
        let mut model = model();
        let pool = filled(&mut model);
        let empty = PagePool::new(&LIMITS);
        assert_eq!(state.save(&empty, &mut model).unwrap(), CacheReport::default());
        assert!(!state.directory.exists(), "nothing is saved where nothing is kept");
        state.save(&pool, &mut model).unwrap();
        let other = CacheState { fingerprint: "another".to_owned(), ..state.clone() };
        other.save(&pool, &mut model).unwrap();
        let saved = state.save(&empty, &mut model).unwrap();
        assert_eq!(saved.pages, 0);
        assert_eq!(state.restore(&PagePool::new(&LIMITS), &mut model).unwrap().pages, 3);
        #[cfg(unix)]
        for (path, expected) in [(state.path(), 0o600), (state.directory, 0o700)] {
            let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).unwrap());
            assert_eq!(mode & 0o777, expected);
        }
    }

    #[test]
    fn what_there_is_no_room_for_stays_out_from_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(directory.path());
        let mut model_before = model();
        let pool = filled(&mut model_before);
        state.save(&pool, &mut model_before).unwrap();
        let pool = PagePool::new(&LIMITS);
        let mut held = pool.table();
        held.grow_to(4 * 6).unwrap();
        assert_eq!(state.restore(&pool, &mut model()).unwrap().pages, 2);
        assert_eq!(cached(&pool).len(), 2);
    }

    #[test]
    fn a_file_that_is_not_what_it_should_be_is_refused_by_name_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(directory.path());
        let mut model_before = model();
        let pool = filled(&mut model_before);
        state.save(&pool, &mut model_before).unwrap();
        let bytes = std::fs::read(state.path()).unwrap();
        let refused = |state: &CacheState| {
            let pool = PagePool::new(&LIMITS);
            let error = state.restore(&pool, &mut model()).unwrap_err().to_string();
            assert!(error.starts_with(&state.path().display().to_string()), "{error}");
            assert_eq!(pool.usage().free, 8);
            error
        };
        let other = CacheState { fingerprint: "another".to_owned(), ..state.clone() };
        std::fs::write(other.path(), &bytes).unwrap();
        assert!(refused(&other).ends_with("it was saved for another model, format or page size"));
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            std::fs::write(state.path(), damaged).unwrap();
            refused(&state);
        }
        for length in [0, 10, MAGIC.len() + 60, bytes.len() - 1] {
            std::fs::write(state.path(), &bytes[..length]).unwrap();
            refused(&state);
        }
        std::fs::write(state.path(), [&bytes[..], b"more"].concat()).unwrap();
        refused(&state);
    }
}
