//! Bytes that are shared, never copied: a range of a mapped file or of memory.

use super::MappedFile;
use std::{fmt, ops::Range, sync::Arc};

/// A range of a mapped file, or of memory that it owns. A clone or a [`slice`](Self::slice) copies a pointer and keeps
/// the whole file mapped.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    start: usize,
    end: usize,
}

#[derive(Clone)]
enum Owner {
    File(Arc<MappedFile>),
    Memory(Arc<Vec<u8>>),
}

impl Bytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let all = match &self.owner {
            Owner::File(file) => file.bytes(),
            Owner::Memory(memory) => memory,
        };
        &all[self.start..self.end]
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The mapped file that they lie in, and their range in it; none where they lie in memory of their own.
    pub fn mapped(&self) -> Option<(&Arc<MappedFile>, Range<usize>)> {
        match &self.owner {
            Owner::File(file) => Some((file, self.start..self.end)),
            Owner::Memory(_) => None,
        }
    }

    /// Asks the system to read them soon where they lie in a file, and does not wait.
    pub fn will_need(&self) {
        if let Some((file, range)) = self.mapped() {
            file.will_need(range);
        }
    }

    /// A part of the bytes, sharing them.
    ///
    /// # Panics
    /// If the range does not lie within them.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "the range {range:?} does not lie within {} bytes",
            self.len()
        );
        Self { owner: self.owner.clone(), start: self.start + range.start, end: self.start + range.end }
    }
}

impl From<Arc<MappedFile>> for Bytes {
    fn from(file: Arc<MappedFile>) -> Self {
        Self { start: 0, end: file.len(), owner: Owner::File(file) }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(memory: Vec<u8>) -> Self {
        Self { start: 0, end: memory.len(), owner: Owner::Memory(Arc::new(memory)) }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, start, end } = self;
        match owner {
            Owner::File(file) => write!(f, "Bytes({}, {start}..{end})", file.path().display()),
            Owner::Memory(memory) => write!(f, "Bytes(memory of {} bytes, {start}..{end})", memory.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_slices_share_the_memory() {
        let all = Bytes::from((0..10).collect::<Vec<u8>>());
        let part = all.slice(2..8).slice(1..4);
        assert_eq!(part.as_slice(), [3, 4, 5]);
        assert_eq!(part.as_slice().as_ptr(), all.as_slice()[3..].as_ptr());
        assert_eq!((part.len(), part.is_empty(), part.slice(3..3).is_empty()), (3, false, true));
        assert_eq!(format!("{part:?}"), "Bytes(memory of 10 bytes, 3..6)");
    }

    #[test]
    fn a_slice_outlives_its_parent_and_says_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = Arc::new(MappedFile::open(&path).unwrap());
        let part = Bytes::from(file).slice(4..7);
        assert_eq!(part.as_slice(), b"456");
        assert_eq!(part.mapped().map(|(_, range)| range), Some(4..7));
        assert_eq!(format!("{part:?}"), format!("Bytes({}, 4..7)", path.display()));
    }

    #[test]
    #[should_panic(expected = "the range 2..5 does not lie within 4 bytes")]
    fn a_slice_cannot_leave_its_parent() {
        // The memory has ten bytes, but the parent only four of them.
        let _ = Bytes::from(vec![0; 10]).slice(0..4).slice(2..5);
    }
}
