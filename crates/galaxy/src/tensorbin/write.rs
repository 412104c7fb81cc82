//! A file, being written.

use super::{Error, Header, Span};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use tempfile::NamedTempFile;

/// What the names of files in the making begin and end with.
const TEMPORARY: [&str; 2] = [".tensorbin-", ".tmp"];

/// Writes a file part by part, from any thread. It has its name only when it is whole: until then it is a temporary file
/// beside it, which goes away with this value.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: NamedTempFile,
    data_start: u64,
    data_bytes: u64,
    buffers: Vec<Span>,
    /// Bytes that each buffer has so far.
    written: Vec<AtomicU64>,
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
        let written = buffers.iter().map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            data_start: bytes.len() as u64,
            data_bytes: header.data_bytes(),
            buffers,
            written,
        })
    }

    /// Whether a file's name is that of one in the making: where nobody writes, of one that was cut off.
    pub fn is_temporary(name: &str) -> bool {
        let [start, end] = TEMPORARY;
        name.starts_with(start) && name.ends_with(end)
    }

    /// The file's name, once it is whole.
    pub fn path(&self) -> &Path {
        &self.path
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
    pub fn write(&self, buffer: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let span = self.buffers[buffer];
        let end = offset.checked_add(bytes.len() as u64);
        assert!(end.is_some_and(|end| end <= span.bytes), "{} bytes at {offset} of {span:?}", bytes.len());
        let place = self.data_start + span.offset + offset;
        write_all_at(self.file.as_file(), bytes, place).map_err(Error::io(&self.path))?;
        self.written[buffer].fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Sends what was written so far to the disk and waits for it, so that less is left for the end, and lets the system
    /// have the memory that it kept it in. Others may write meanwhile.
    ///
    /// # Errors
    /// A disk that is full or fails.
    pub fn flush(&self) -> Result<(), Error> {
        let file = self.file.as_file();
        file.sync_data().map_err(Error::io(&self.path))?;
        // Nobody here reads it again. Where the system knows no such advice, it finds out by itself.
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
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
        for (buffer, (span, written)) in self.buffers.iter().zip(self.written).enumerate() {
            assert_eq!(
                written.into_inner(),
                span.bytes,
                "bytes of buffer {buffer} of {}",
                self.path.display()
            );
        }
        let file = self.file.as_file();
        let sent = file.set_len(self.data_start + self.data_bytes).and_then(|()| file.sync_all());
        sent.map_err(Error::io(&self.path))?;
        self.file.persist(&self.path).map_err(|error| Error::io(&self.path)(error.error))?;
        Ok(())
    }
}

/// A temporary file, with the rights that any new file has.
fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    let [start, end] = TEMPORARY;
    let mut builder = tempfile::Builder::new();
    builder.prefix(start).suffix(end);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], place: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, place)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut place: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, place)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        (bytes, place) = (&bytes[written..], place + written as u64);
    }
    Ok(())
}
