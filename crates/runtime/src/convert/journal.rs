//! The file that written weights go to, and a journal beside it of those that are whole: what is cut off goes on from
//! there.
//!
//! A weight enters the journal after its bytes are on disk, so a journal never promises what is not there, whatever
//! ended the program or the machine. To wait for the disk at every weight would be slow for small ones; waiting each
//! time an eighth more has been written, and 256 MB at most, loses no more than that.

use crate::{
    Error, Extent, Location, SavedWeight,
    json_lines::{add_line, cut, whole_lines},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The file that written tensors go to, one after another.
pub(crate) const WEIGHTS_FILE: &str = "weights.bin";
/// The journal; it goes when the cache is whole.
const JOURNAL_FILE: &str = "journal.jsonl";
/// Written tensors start at multiples of this, a cache line.
const ALIGNMENT: u64 = 64;
/// Bytes that wait for the disk before they enter the journal: a share of all, between these.
const LEAST_PENDING: u64 = 1 << 16;
const MOST_PENDING: u64 = 1 << 28;
const PENDING_SHARE: u64 = 8;

/// What a journal's weights were made from and for. Another origin is another conversion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin(pub(crate) String);

/// The data file in the making.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    data: File,
    /// Absent where nothing is to be gone on with.
    journal: Option<File>,
    journal_path: PathBuf,
    /// Bytes of whole weights.
    length: u64,
    /// Of them, those on disk.
    synced: u64,
    /// Whole weights that are not in the journal yet.
    pending: Vec<SavedWeight>,
}

impl Journal {
    /// An empty data file in `dir`, without a journal.
    pub(super) fn without(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(WEIGHTS_FILE);
        let data = File::create(&path).map_err(Error::io(&path))?;
        let journal_path = dir.join(JOURNAL_FILE);
        Ok(Self { path, data, journal: None, journal_path, length: 0, synced: 0, pending: Vec::new() })
    }

    /// The data file in `dir`, cut to what its journal vouches for, and the weights that are whole. Without a journal
    /// of this origin both begin anew.
    pub(super) fn open(dir: &Path, origin: &Origin) -> Result<(Self, Vec<SavedWeight>), Error> {
        let (path, journal_path) = (dir.join(WEIGHTS_FILE), dir.join(JOURNAL_FILE));
        let text = fs::read(&journal_path).unwrap_or_default();
        let on_disk = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let Vouched { weights, length, text_length } = vouched(&text, origin, on_disk);
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(Error::io(path))
        };
        let (mut data, mut journal) = (open(&path)?, open(&journal_path)?);
        cut(&mut data, length).map_err(Error::io(&path))?;
        cut(&mut journal, text_length).map_err(Error::io(&journal_path))?;
        if text_length == 0 {
            add_line(&mut journal, origin).map_err(Error::io(&journal_path))?;
        }
        let pending = Vec::new();
        Ok((
            Self { path, data, journal: Some(journal), journal_path, length, synced: length, pending },
            weights,
        ))
    }

    /// Whether an interrupted run left something in `dir` to go on with.
    pub(crate) fn has_entries(dir: &Path) -> bool {
        fs::read(dir.join(JOURNAL_FILE))
            .is_ok_and(|text| text.iter().filter(|&&byte| byte == b'\n').count() > 1)
    }

    /// Removes the journal of a cache that is whole.
    pub(crate) fn remove(dir: &Path) -> Result<(), Error> {
        let path = dir.join(JOURNAL_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
            _ => Ok(()),
        }
    }

    /// Bytes of the whole weights.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Begins a weight: gives where it will lie.
    pub(super) fn begin(&mut self) -> Result<u64, Error> {
        let offset = self.length.next_multiple_of(ALIGNMENT);
        let padding = vec![0; (offset - self.length) as usize];
        self.data.write_all(&padding).map_err(Error::io(&self.path))?;
        Ok(offset)
    }

    /// Adds bytes to the weight that was begun.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.data.write_all(bytes).map_err(Error::io(&self.path))
    }

    /// Ends the weight that was begun.
    pub(super) fn end(&mut self, weight: &SavedWeight) -> Result<(), Error> {
        let last = weight.scales.as_ref().map_or(&weight.data, |scales| &scales.data);
        self.length = last.offset + last.length;
        if self.journal.is_some() {
            self.pending.push(weight.clone());
            let limit = (self.length / PENDING_SHARE).clamp(LEAST_PENDING, MOST_PENDING);
            if self.length - self.synced >= limit {
                self.sync()?;
            }
        }
        Ok(())
    }

    /// Waits until all whole weights are on disk and in the journal.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if let Err(error) = self.data.sync_data() {
            // The system tells a failed write once: a second try could succeed without the bytes.
            self.pending.clear();
            return Err(Error::io(&self.path)(error));
        }
        self.synced = self.length;
        let Some(journal) = &mut self.journal else { return Ok(()) };
        for weight in self.pending.drain(..) {
            add_line(journal, &weight).map_err(Error::io(&self.journal_path))?;
        }
        journal.sync_data().map_err(Error::io(&self.journal_path))
    }

    /// Where a weight of this many bytes lies that began at `offset`.
    pub(super) fn extent(offset: u64, length: u64) -> Extent {
        Extent { location: Location::Cache, file: WEIGHTS_FILE.into(), offset, length }
    }
}

/// A failure loses only what was not whole.
impl Drop for Journal {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            // The error that counts is the one that led here.
            let _ = self.sync();
        }
    }
}

/// What a journal and the data file agree on.
#[derive(Default)]
struct Vouched {
    weights: Vec<SavedWeight>,
    /// Bytes of the data file up to the end of the last weight.
    length: u64,
    /// Bytes of the journal up to the end of its line.
    text_length: u64,
}

/// Reads as much of a journal as is sound: a program that was cut off may have left half a line.
fn vouched(text: &[u8], origin: &Origin, on_disk: u64) -> Vouched {
    let mut sound = Vouched::default();
    for line in whole_lines(text) {
        if sound.text_length == 0 {
            if serde_json::from_slice::<Origin>(line).ok().as_ref() != Some(origin) {
                return sound;
            }
        } else {
            let Ok(weight) = serde_json::from_slice::<SavedWeight>(line) else { return sound };
            let start = sound.length.next_multiple_of(ALIGNMENT);
            let (Some(end), Ok(())) = (end_of(&weight, start), weight.validate()) else { return sound };
            if end > on_disk {
                return sound;
            }
            sound.length = end;
            sound.weights.push(weight);
        }
        sound.text_length += line.len() as u64;
    }
    sound
}

/// Where a weight ends that lies from `start` on, its scales behind its elements; none where it does not lie so.
fn end_of(weight: &SavedWeight, start: u64) -> Option<u64> {
    let extents = [Some(&weight.data), weight.scales.as_ref().map(|scales| &scales.data)];
    extents.into_iter().flatten().try_fold(start, |start, Extent { location, file, offset, length }| {
        let is_ours = *location == Location::Cache && file == Path::new(WEIGHTS_FILE);
        offset.checked_add(*length).filter(|_| is_ours && *offset == start)
    })
}
