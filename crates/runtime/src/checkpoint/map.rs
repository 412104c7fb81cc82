//! The one file of this crate with `unsafe`: read-only maps of files.

use crate::Error;
use memmap2::{Mmap, MmapOptions};
use std::{
    fs::{self, File},
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

    /// When the file was last written, as of the time it was mapped.
    pub fn modified(&self) -> SystemTime {
        self.modified
    }
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
    fn refuses_what_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = MappedFile::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("is not a regular file"), "{error}");
        let error = MappedFile::open(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent: No such file"), "{error}");
    }
}
