//! A file, being written.

use super::{Error, Header, Span};
use std::{
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Writes a file part by part. It has its name only when it is whole: until then it is a temporary file beside it, which
/// goes away with this value.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: NamedTempFile,
    data_start: u64,
    data_bytes: u64,
    buffers: Vec<Span>,
    /// Bytes that each buffer has so far.
    written: Vec<u64>,
}

impl Writer {
    /// Starts a file with a header. Its directory must be there.
    ///
    /// # Errors
    /// A directory that cannot be written to.
    pub fn create(path: &Path, header: &Header) -> Result<Self, Error> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mut file = temporary(dir).map_err(Error::io(path))?;
        let bytes = header.encode();
        file.write_all(&bytes).map_err(Error::io(path))?;
        let buffers = header.buffers();
        let written = vec![0; buffers.len()];
        Ok(Self {
            path: path.to_owned(),
            file,
            data_start: bytes.len() as u64,
            data_bytes: header.data_bytes(),
            buffers,
            written,
        })
    }

    /// The buffers that are to be written: those of [`Header::buffers`].
    pub fn buffers(&self) -> &[Span] {
        &self.buffers
    }

    /// Writes a part of a buffer, from its byte `offset` on. Parts may come in any order, each byte once.
    ///
    /// # Errors
    /// A disk that is full or fails.
    ///
    /// # Panics
    /// If there is no such buffer, or the part goes beyond it.
    pub fn write(&mut self, buffer: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let span = self.buffers[buffer];
        let end = offset.checked_add(bytes.len() as u64);
        assert!(end.is_some_and(|end| end <= span.bytes), "{} bytes at {offset} of {span:?}", bytes.len());
        let write = |file: &mut NamedTempFile| {
            file.seek(SeekFrom::Start(self.data_start + span.offset + offset))?;
            file.write_all(bytes)
        };
        write(&mut self.file).map_err(Error::io(&self.path))?;
        self.written[buffer] += bytes.len() as u64;
        Ok(())
    }

    /// Sends the file to the disk and gives it its name; a file of that name is replaced.
    ///
    /// # Errors
    /// A disk that is full or fails.
    ///
    /// # Panics
    /// If a buffer is not whole.
    pub fn finish(self) -> Result<(), Error> {
        for (buffer, (span, written)) in self.buffers.iter().zip(&self.written).enumerate() {
            assert_eq!(*written, span.bytes, "bytes of buffer {buffer} of {}", self.path.display());
        }
        let file = self.file.as_file();
        let sent = file.set_len(self.data_start + self.data_bytes).and_then(|()| file.sync_all());
        sent.map_err(Error::io(&self.path))?;
        self.file.persist(&self.path).map_err(|error| Error::io(&self.path)(error.error))?;
        Ok(())
    }
}

/// A temporary file, with the rights that any new file has.
fn temporary(dir: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tensorbin-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}
