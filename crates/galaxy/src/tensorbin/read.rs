//! A file, opened to be read.

use super::{EXTENSION, Error, Header, HeaderError};
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// The most bytes of a header that are read. That of a mesh of 128 devices has 13,000.
const MAX_HEADER: u64 = 1 << 26;

/// What the format before this one starts with.
const OLDER: u64 = u64::MAX;

/// An open file. Its header has been read and checked, its data has not been touched.
#[derive(Debug)]
pub struct TensorBin {
    path: PathBuf,
    file: File,
    header: Header,
    data_start: u64,
    file_bytes: u64,
}

impl TensorBin {
    /// Whether a path ends as names of these files do. Their content does not tell: the format has no magic number.
    pub fn is_named(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(EXTENSION))
    }

    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// A file that cannot be read, or whose header is not what the format demands.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fault = |field: &str, message: String| HeaderError::new(field, message).in_file(path);
        // Asked before opening: opening a pipe would wait for a writer.
        if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
            return Err(fault("file", "is not a regular file".to_owned()));
        }
        let mut file = File::open(path).map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut length = [0; 8];
        if file_bytes < length.len() as u64 {
            return Err(fault("header length", format!("expected 8 bytes, the file has {file_bytes}")));
        }
        file.read_exact(&mut length).map_err(Error::io(path))?;
        let length = match u64::from_le_bytes(length) {
            OLDER => {
                let message = "is of the older .bin format, which TT-NN wrote until August 2025";
                return Err(fault("header length", message.to_owned()));
            }
            length if length > file_bytes - 8 => {
                let message = format!("claims {length} bytes, the file has {} more", file_bytes - 8);
                return Err(fault("header length", message));
            }
            length if length > MAX_HEADER => {
                return Err(fault("header length", format!("expected {MAX_HEADER} at most, got {length}")));
            }
            length => length,
        };
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::io(path))?;
        let data_start = 8 + length;
        let header = Header::decode(&header, file_bytes - data_start).map_err(|error| error.in_file(path))?;
        Ok(Self { path: path.to_owned(), file, header, data_start, file_bytes })
    }

    /// What the file says of its tensor.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where in the file its data starts.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// The file's length.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The bytes of a shard, by its place in the header.
    ///
    /// # Errors
    /// A file that cannot be read.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn read_shard(&mut self, shard: usize) -> Result<Vec<u8>, Error> {
        let span = self.header.shards[shard].span;
        // Opening has checked that the file has these bytes.
        let length = usize::try_from(span.bytes).map_err(|_| {
            let message = format!("its {} bytes exceed this machine's address space", span.bytes);
            HeaderError::new(format!("shards[{shard}].buffer"), message).in_file(&self.path)
        })?;
        let mut bytes = vec![0; length];
        let mut read = |file: &mut File| {
            file.seek(SeekFrom::Start(self.data_start + span.offset))?;
            file.read_exact(&mut bytes)
        };
        read(&mut self.file).map_err(Error::io(&self.path))?;
        Ok(bytes)
    }
}
