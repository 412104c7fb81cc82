//! The record beside the files of what they were made from, and which of them are whole.
//!
//! A file has its name only once it is whole and on disk, and then a line here. What has no line was not made by this
//! program from this checkpoint, whatever its name, and is made anew. The first line says what all were made from: a cache
//! is never mixed from two checkpoints.

use super::Error;
use crate::block_float::Rounding;
use dsv3_runtime::{
    Fingerprint,
    json_lines::{add_line, cut, whole_lines},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

/// The record's file, which TT-NN does not look for.
pub(super) const JOURNAL_FILE: &str = ".dsv3-convert.jsonl";
/// Version of what this program makes of a checkpoint: another one's files are not gone on with.
const FORMAT_VERSION: u32 = 1;

/// What all files of a cache were made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Origin {
    format_version: u32,
    rounding: String,
    fingerprint: Fingerprint,
    /// For messages; a checkpoint that was moved is the same.
    checkpoint: PathBuf,
}

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    bytes: u64,
}

/// The record as it was found, before anything is written.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    /// Bytes of it that are whole lines.
    length: u64,
    /// Whole files and their lengths.
    whole: HashMap<String, u64>,
    /// Whether it says more than is to be believed.
    is_stale: bool,
}

/// The record, open.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Whole files and their lengths.
    whole: HashMap<String, u64>,
}

/// What of a record is distrusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distrust {
    /// Nothing: files are gone on with.
    Nothing,
    /// Some files, which are made anew beside the others: these must be of the same origin.
    Some,
    /// All of it, whatever it is of.
    All,
}

impl Origin {
    pub(super) fn new(checkpoint: &Path, fingerprint: Fingerprint, rounding: Rounding) -> Self {
        let rounding = match rounding {
            Rounding::Host => "host",
            Rounding::Device => "device",
        };
        Self {
            format_version: FORMAT_VERSION,
            rounding: rounding.to_owned(),
            fingerprint,
            checkpoint: checkpoint.to_owned(),
        }
    }

    /// How another origin differs from this one; none where the files can be gone on with.
    fn difference(&self, other: &Self) -> Option<String> {
        if self.format_version != other.format_version {
            return Some(format!("version {} of this format", other.format_version));
        }
        if self.fingerprint != other.fingerprint {
            let place = other.checkpoint.display();
            return Some(match self.checkpoint == other.checkpoint {
                true => format!("{place} in another state: a file of it has changed since"),
                false => format!("another checkpoint, {place}"),
            });
        }
        (self.rounding != other.rounding).then(|| format!("the same with {} rounding", other.rounding))
    }
}

impl Record {
    /// The record in a cache's directory; an empty one where there is none, or where all of it is distrusted. Writes
    /// nothing.
    ///
    /// # Errors
    /// A cache of another origin that is not to be replaced whole, or a file that cannot be read.
    pub(super) fn read(dir: &Path, origin: &Origin, distrust: Distrust) -> Result<Self, Error> {
        let path = dir.join(JOURNAL_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let mut record = Self { path, length: 0, whole: HashMap::new(), is_stale: distrust == Distrust::All };
        if record.is_stale {
            return Ok(record);
        }
        let mut lines = whole_lines(&text);
        if let Some(line) = lines.next() {
            let other = |other| {
                let path = dir.to_owned();
                match distrust {
                    Distrust::Some => Error::Mixed { path, other },
                    _ => Error::Origin { path, other },
                }
            };
            let first: Origin = serde_json::from_slice(line)
                .map_err(|_| other("something that this version cannot read".to_owned()))?;
            if let Some(difference) = origin.difference(&first) {
                return Err(other(difference));
            }
            record.length += line.len() as u64;
        }
        for line in lines {
            // A program that was cut off may have left half a line.
            let Ok(Entry { path, bytes }) = serde_json::from_slice(line) else { break };
            record.whole.insert(path, bytes);
            record.length += line.len() as u64;
        }
        Ok(record)
    }

    /// Distrusts what it says of a file.
    pub(super) fn forget(&mut self, path: &str) {
        self.is_stale |= self.whole.remove(path).is_some();
    }

    /// Whether a file is recorded with this length.
    pub(super) fn has(&self, path: &str, bytes: u64) -> bool {
        self.whole.get(path) == Some(&bytes)
    }

    /// Opens it to go on with, without what is distrusted.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn open(self, origin: &Origin) -> Result<Journal, Error> {
        let Self { path, length, whole, is_stale } = self;
        let file = match is_stale {
            true => rewritten(&path, origin, &whole),
            false => continued(&path, origin, length),
        };
        Ok(Journal { file: file.map_err(Error::io(&path))?, path, whole })
    }
}

/// A record, open behind its last whole line, or begun.
fn continued(path: &Path, origin: &Origin, length: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    cut(&mut file, length)?;
    if length == 0 {
        add_line(&mut file, origin)?;
    }
    Ok(file)
}

/// A record in place of the one that is there, which stays until this is whole.
fn rewritten(path: &Path, origin: &Origin, whole: &HashMap<String, u64>) -> io::Result<File> {
    let unfinished = path.with_extension("tmp");
    let mut file = File::create(&unfinished)?;
    add_line(&mut file, origin)?;
    for (path, &bytes) in whole {
        add_line(&mut file, &Entry { path: path.clone(), bytes })?;
    }
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    Ok(file)
}

impl Journal {
    /// Whether there is a record in a directory.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join(JOURNAL_FILE).exists()
    }

    /// Whether a file is recorded with this length.
    pub(super) fn has(&self, path: &str, bytes: u64) -> bool {
        self.whole.get(path) == Some(&bytes)
    }

    /// Records a file that is whole and on disk.
    pub(super) fn add(&mut self, path: &str, bytes: u64) -> Result<(), Error> {
        let entry = Entry { path: path.to_owned(), bytes };
        add_line(&mut self.file, &entry).map_err(Error::io(&self.path))?;
        self.whole.insert(entry.path, bytes);
        Ok(())
    }
}
