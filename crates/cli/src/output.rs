//! What goes out: notes to stderr, results to stdout, and files that are whole or absent.

use anyhow::{Context, Result};
use indicatif::HumanCount;
use serde::Serialize;
use std::{
    fmt::Arguments,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// Says something to the user. Who closed stderr does not want to hear it.
pub(crate) fn note(message: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// Writes a result to stdout and sends it off.
///
/// # Errors
/// A failing write; [`io::ErrorKind::BrokenPipe`] where the reader has gone.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A number of things: `1 weight`, `1,412 weights`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", HumanCount(number), if number == 1 { "" } else { "s" })
}

/// A value as indented JSON, with a line end.
pub(crate) fn pretty_json(value: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

/// Writes a file under a temporary name beside it and renames it: whole or absent.
///
/// # Errors
/// Those of `write`, and of the file system; the message names the file.
pub(crate) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<()>,
) -> Result<()> {
    let cannot = || format!("{} cannot be written", path.display());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A plain file's permissions, not the private ones of a temporary file.
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(dir).with_context(cannot)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    write(&mut writer)?;
    writer.flush().with_context(cannot)?;
    drop(writer);
    file.persist(path).map_err(|error| error.error).with_context(cannot)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!(
            [0, 1, 1412].map(|number| count(number, "weight")),
            ["0 weights", "1 weight", "1,412 weights"]
        );
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let put = |text: &str| write_file(&path, |file| Ok(file.write_all(text.as_bytes())?));
        put("first").unwrap();
        let failed = write_file(&path, |file| {
            file.write_all(b"second")?;
            anyhow::bail!("no more")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        put("third").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "third");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        let error = write_file(&dir.path().join("no/such/out"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().ends_with("no/such/out cannot be written"), "{error}");
    }
}
