//! Reading and writing of small files, with errors that name the file and the JSON field.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::Error;

/// The whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::io(path))
}

/// The whole file, or `None` if there is none.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// The bytes as text; `path` is for the error only.
pub(crate) fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes)
        .map_err(|error| Error::Format { path: path.to_owned(), message: format!("not UTF-8 text: {error}") })
}

/// Parses JSON; `path` is for the error only, so that embedded files go the same way.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let message = error.inner().to_string();
        // "." is the root: the file as a whole, or a syntax error before any field.
        if field == "." {
            Error::Format { path: path.to_owned(), message }
        } else {
            Error::Field { path: path.to_owned(), field, message }
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Error::Format { path: path.to_owned(), message: error.to_string() })?;
    Ok(value)
}

/// A file in the making: it has no name until it is whole. Dropped before that, it leaves nothing, and what was at its
/// place before stays; so does a process that is killed. Where the file system knows no files without a name, it lies
/// under a temporary one beside its place.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    writer: BufWriter<Place>,
}

/// Where the bytes go meanwhile.
#[derive(Debug)]
enum Place {
    /// Into a file without a name, in the directory of the one that they are to replace.
    Nameless(File),
    /// Beside the file that they are to replace.
    Temporary(NamedTempFile),
    /// Straight into what is no plain file and cannot be replaced: a pipe, a device.
    Direct(File),
}

impl Write for Place {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Temporary(file) => file.write(bytes),
            Self::Nameless(file) | Self::Direct(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Temporary(file) => file.flush(),
            Self::Nameless(file) | Self::Direct(file) => file.flush(),
        }
    }
}

impl NewFile {
    /// Begins a file that is to lie at `path`; of a link, where it leads. A pipe or a device is written to as it is.
    ///
    /// # Errors
    /// If the directory cannot be written. This and all other errors name `path`.
    pub fn create(path: &Path) -> Result<Self, Error> {
        Self::with_mode(path, 0o666)
    }

    /// The same for a file that none but its owner may read.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub(crate) fn create_private(path: &Path) -> Result<Self, Error> {
        Self::with_mode(path, 0o600)
    }

    /// With these permissions, less those that the process's mask takes away, on systems that know them.
    fn with_mode(path: &Path, mode: u32) -> Result<Self, Error> {
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let file = File::options().write(true).open(path).map_err(Error::io(path))?;
            return Ok(Self { path: path.clone(), writer: BufWriter::new(Place::Direct(file)) });
        }
        let place = match nameless::create_in(directory_of(path), mode) {
            Some(file) => Place::Nameless(file),
            None => Place::Temporary(temporary_in(directory_of(path), mode).map_err(Error::io(path))?),
        };
        Ok(Self { path: path.clone(), writer: BufWriter::with_capacity(1 << 20, place) })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes).map_err(Error::io(&self.path))
    }

    /// Writes indented JSON, and [`finish`](Self::finish)es.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish_json(mut self, value: &impl Serialize) -> Result<(), Error> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| Error::Format { path: self.path.clone(), message: error.to_string() })?;
        bytes.push(b'\n');
        self.write_all(&bytes)?;
        self.finish()
    }

    /// Waits until all is on disk, and puts the file in its place.
    ///
    /// # Errors
    /// If that fails; then nothing has changed at its place.
    pub fn finish(self) -> Result<(), Error> {
        let Self { path, writer } = self;
        match writer.into_inner().map_err(|error| Error::io(&path)(error.into_error()))? {
            Place::Nameless(file) => {
                file.sync_all().map_err(Error::io(&path))?;
                // A name cannot be taken from another file at once; so it gets one beside it first.
                let builder = tempfile::Builder::new();
                let named = builder.make_in(directory_of(&path), |name| nameless::name(&file, name));
                let named = named.map_err(Error::io(&path))?;
                named.persist(&path).map_err(|error| Error::io(&path)(error.error))?;
            }
            Place::Temporary(file) => {
                file.as_file().sync_all().map_err(Error::io(&path))?;
                file.persist(&path).map_err(|error| Error::io(&path)(error.error))?;
            }
            Place::Direct(_) => {}
        }
        Ok(())
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a directory, with those that it lies in, which none but its owner may read. One that is there stays as it is.
pub(crate) fn create_private_directory(path: &Path) -> Result<(), Error> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path).map_err(Error::io(path))
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "there are no such permissions"))]
fn temporary_in(directory: &Path, mode: u32) -> io::Result<NamedTempFile> {
    // The permissions that were asked for, not the private ones of a temporary file: others read most files too.
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    builder.tempfile_in(directory)
}

/// Files without a name.
#[cfg(target_os = "linux")]
mod nameless {
    use rustix::fs::{AtFlags, CWD, OFlags, linkat};
    use std::{
        fs::File,
        io,
        os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
        path::{Path, PathBuf},
    };

    /// Where the system lists this process's open files.
    const OPEN_FILES: &str = "/proc/self/fd";

    /// A new one; none where there cannot be one, or none could be named later.
    pub(super) fn create_in(directory: &Path, mode: u32) -> Option<File> {
        let mut options = File::options();
        options.write(true).mode(mode).custom_flags(OFlags::TMPFILE.bits() as i32);
        Path::new(OPEN_FILES).is_dir().then(|| options.open(directory).ok()).flatten()
    }

    /// Gives it a name that no other file has.
    pub(super) fn name(file: &File, name: &Path) -> io::Result<()> {
        let open = PathBuf::from(OPEN_FILES).join(file.as_raw_fd().to_string());
        Ok(linkat(CWD, open, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
    }
}

/// This system knows no files without a name.
#[cfg(not(target_os = "linux"))]
mod nameless {
    use std::{fs::File, io, path::Path};

    pub(super) fn create_in(_: &Path, _: u32) -> Option<File> {
        None
    }

    pub(super) fn name(_: &File, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes a file of indented JSON, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    NewFile::create(path)?.finish_json(value)
}

/// Reads a JSON file.
///
/// # Errors
/// If it cannot be read or holds something else; the error names the file and the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    parse_json(path, &read(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Outer {
        #[serde(rename = "inner")]
        _inner: Vec<u32>,
    }

    #[test]
    fn an_error_names_the_file_and_the_field() {
        let error = parse_json::<Outer>(Path::new("dir/a.json"), br#"{"inner": [1, "x"]}"#).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("dir/a.json: inner[1]: invalid type: string \"x\""), "{text}");
    }

    #[test]
    fn text_after_the_value_is_refused() {
        let error = parse_json::<Outer>(Path::new("a.json"), br#"{"inner": []} x"#).unwrap_err();
        assert!(error.to_string().contains("trailing characters"), "{error}");
    }

    #[test]
    fn an_absent_file_is_no_error_where_it_is_optional() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read_optional(&directory.path().join("absent")).unwrap().is_none());
        assert!(read_optional(directory.path()).is_err(), "a directory is not an absent file");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_what_it_leads_to_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_json(&link, &1).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "1\n");
        let device = directory.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &device).unwrap();
        write_json(&device, &1).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file(), "a device is not replaced");
    }

    #[test]
    fn a_written_file_replaces_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.json");
        write_json(&path, &[1]).unwrap();
        write_json(&path, &["é"]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  \"é\"\n]\n");
        let read: Vec<String> = read_json(&path).unwrap();
        assert_eq!(read, ["é"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn an_unfinished_file_leaves_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let put = |text: &str| {
            let mut file = NewFile::create(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        put("first").finish().unwrap();
        drop(put("second"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        put("third").finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "third");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_without_a_place_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("no/such/out");
        let error = NewFile::create(&absent).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", absent.display())), "{error}");
        // A directory is in its place.
        let taken = directory.path().join("taken");
        fs::create_dir_all(taken.join("full")).unwrap();
        let error = NewFile::create(&taken).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", taken.display())), "{error}");
    }
}
