//! The one file of this crate with `unsafe`: read-only maps of files, and what the system is asked about memory.

use crate::Error;
use memmap2::{Mmap, MmapOptions};
use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A whole file mapped read-only. Mapping reads nothing; the kernel brings pages in as they are touched.
///
/// The file must keep its length and its content for as long as it is mapped. Nothing that a process can do enforces
/// this on POSIX: if another one truncates the file, touching the lost pages ends this one (`SIGBUS`); if another one
/// overwrites it in place, weights change under the reader. Programs that *replace* a file (write another one, rename
/// it over the first, as downloaders and this crate's cache do) are harmless: the map keeps the old one.
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
    modified: SystemTime,
}

impl MappedFile {
    /// Maps the file at `path`; symbolic links are followed.
    ///
    /// # Errors
    /// If `path` is not a regular file or the system cannot open or map it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // Asked before opening: opening a pipe would wait for a writer.
        if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
            return Err(Error::Format { path: path.into(), message: "is not a regular file".into() });
        }
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        let modified = metadata.modified().map_err(Error::io(path))?;
        let length = usize::try_from(metadata.len()).map_err(|_| Error::Format {
            path: path.into(),
            message: format!("its {} bytes exceed this machine's address space", metadata.len()),
        })?;
        // SAFETY: the map is private to this type, which hands out shared slices only, bound to its own lifetime, and
        // it is made over the length that the open file has now, so every page of it has bytes behind it. What remains
        // is that someone else truncates or overwrites the file later. That cannot be excluded, only asked for: the
        // type's documentation says so, and the consequences there are those of every program that maps weights.
        let map = unsafe { MmapOptions::new().len(length).map(&file) }.map_err(Error::io(path))?;
        // Where the file system has large folios (ext4, xfs, btrfs), what is read from now on comes in pages of 2 MB,
        // each mapped by one fault. Elsewhere this is refused, and nothing is lost.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { path: path.into(), map, modified })
    }

    /// The file's content.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file's length in bytes when it was mapped.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the system to read a range soon, and does not wait. It may do less, or nothing. Linux reads pages of 4 kB then,
    /// where [`populate`](Self::populate) gets huge ones: for what is read once.
    ///
    /// # Panics
    /// If the range does not lie within the file.
    pub fn will_need(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {self:?}");
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
    }

    /// Reads a range into memory and enters it into this process's page table; waits until that is done.
    ///
    /// # Errors
    /// If it cannot be read, or the system lacks memory for it.
    ///
    /// # Panics
    /// If the range does not lie within the file.
    pub fn populate(&self, range: Range<usize>) -> Result<(), Error> {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {self:?}");
        #[cfg(target_os = "linux")]
        match self.map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()) {
            // A kernel before 5.14 does not know this advice.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            result => return result.map_err(Error::io(&self.path)),
        }
        let touched = self.map[range].iter().step_by(page_size()).fold(0, |sum, byte| sum ^ byte);
        std::hint::black_box(touched);
        Ok(())
    }

    /// How many bytes of a range are in memory now, in whole pages; none where the system does not tell. Linux tells
    /// only the file's owner, and who may write it: for others everything is in memory.
    ///
    /// # Panics
    /// If the range does not lie within the file.
    pub fn resident_bytes(&self, range: Range<usize>) -> Option<usize> {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {self:?}");
        #[cfg(target_os = "linux")]
        {
            let page = page_size();
            let start = range.start / page * page;
            let mut pages = vec![0_u8; (range.end - start).div_ceil(page)];
            // SAFETY: the map starts at a page, and so does the address, which lies in the map or at its end; the
            // length, rounded up to pages as the call does, stays within the map's pages; the vector has a byte for
            // each of them. Nothing else is written.
            let code = unsafe {
                let address = self.map.as_ptr().add(start).cast_mut().cast();
                libc::mincore(address, range.end - start, pages.as_mut_ptr())
            };
            (code == 0).then(|| pages.iter().filter(|&state| state & 1 == 1).count() * page)
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Reads a range into memory, in whole pages, and keeps it there for as long as the file is mapped.
    ///
    /// # Errors
    /// What the system says where it refuses, most often for its limit ([`lock_limit`]).
    ///
    /// # Panics
    /// If the range does not lie within the file.
    pub fn lock(&self, range: Range<usize>) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {self:?}");
        #[cfg(unix)]
        {
            let start = range.start / page_size() * page_size();
            // SAFETY: the address lies in the map or at its end, and is the start of a page, for the map's start is one;
            // the length, rounded up to pages as the call does, stays within the map's pages. What is locked stays
            // mapped as it was, and unmapping it unlocks it.
            let code = unsafe { libc::mlock(self.map.as_ptr().add(start).cast(), range.end - start) };
            if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        }
        #[cfg(not(unix))]
        Err(io::ErrorKind::Unsupported.into())
    }

    /// When the file was last written, as of the time it was mapped.
    pub fn modified(&self) -> SystemTime {
        self.modified
    }
}

/// Bytes that this process may keep in memory (`RLIMIT_MEMLOCK`); none where there is no limit or none is known.
pub fn lock_limit() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the second argument is an exclusive reference to what the call fills in.
        let code = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
        (code == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Zeros that no memory stands behind yet: the system gives each page when it is first written, near to who writes it,
/// and in pages of 2 MB where it has them: fewer faults, and fewer misses of the processor's address cache.
pub fn zeros_in_large_pages(length: usize) -> Vec<u8> {
    let mut memory = vec![0; length];
    advise_huge_pages(&mut memory);
    memory
}

/// Asks the system for pages of 2 MB under memory that is not written yet. Where they are not to be had nothing changes.
fn advise_huge_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        let page = page_size();
        let range = memory.as_mut_ptr_range();
        let start = range.start.addr().next_multiple_of(page);
        let end = range.end.addr() / page * page;
        if start < end {
            let address = range.start.with_addr(start).cast();
            // SAFETY: the range is of whole pages that lie within memory that the caller holds exclusively; the advice
            // changes how it is mapped, not what it holds.
            unsafe { libc::madvise(address, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Bytes of a page.
fn page_size() -> usize {
    #[cfg(unix)]
    {
        // SAFETY: the call reads a constant of the system.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page has a size")
    }
    #[cfg(not(unix))]
    4096
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedFile({}, {} bytes)", self.path.display(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_content_length_and_emptiness() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"weights").unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!((file.bytes(), file.len(), file.is_empty()), (&b"weights"[..], 7, false));
        assert_eq!(file.path(), path);
        assert_eq!(file.modified(), fs::metadata(&path).unwrap().modified().unwrap());

        fs::write(dir.path().join("empty"), b"").unwrap();
        assert!(MappedFile::open(&dir.path().join("empty")).unwrap().is_empty());
    }

    #[test]
    fn a_replaced_file_stays_mapped_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("file"), dir.path().join("file.tmp"));
        fs::write(&path, b"old").unwrap();
        let file = MappedFile::open(&path).unwrap();
        fs::write(&new, b"newer").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(file.bytes(), b"old");
    }

    #[test]
    fn what_has_been_populated_is_resident() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![7; 3 * page_size() + 5]).unwrap();
        let file = MappedFile::open(&path).unwrap();
        file.will_need(0..file.len());
        file.populate(10..file.len()).unwrap();
        if let Some(bytes) = file.resident_bytes(10..file.len()) {
            assert_eq!(bytes, 4 * page_size());
            assert_eq!(file.resident_bytes(page_size() + 1..page_size() + 2), Some(page_size()));
            assert_eq!(file.resident_bytes(9..9), Some(page_size()));
        }
        assert!(file.bytes().iter().all(|&byte| byte == 7));
    }

    #[test]
    fn a_small_file_can_be_locked_where_the_limit_allows_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"weights").unwrap();
        let result = MappedFile::open(&path).unwrap().lock(3..7);
        assert!(result.is_ok() || lock_limit().is_some_and(|limit| limit < 1 << 16), "{result:?}");
    }

    #[test]
    fn advice_leaves_values_alone() {
        for length in [0, 1, 1000, 3 << 20] {
            let mut memory = vec![1.5_f32; length];
            advise_huge_pages(&mut memory);
            assert!(memory.iter().all(|&value| value == 1.5));
        }
    }

    #[test]
    fn refuses_what_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = MappedFile::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("is not a regular file"), "{error}");
        let error = MappedFile::open(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent: No such file"), "{error}");
    }
}
