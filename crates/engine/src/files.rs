//! Reading and writing of small files, with errors that name the file and the JSON field.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

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

/// Writes indented JSON under a temporary name in the same directory and renames it: whole or absent.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Format { path: path.to_owned(), message: error.to_string() })?;
    bytes.push(b'\n');
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A plain file's permissions, not the private ones of a temporary file: others read the reports.
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(directory).map_err(Error::io(path))?;
    file.write_all(&bytes).map_err(Error::io(path))?;
    file.persist(path).map_err(|error| Error::Io { path: path.to_owned(), source: error.error })?;
    Ok(())
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

    #[test]
    fn a_written_file_replaces_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.json");
        write_json(&path, &[1]).unwrap();
        write_json(&path, &["é"]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  \"é\"\n]\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
