//! The model that is compiled into the binary. It is unpacked into the cache, so that it goes the same way as every
//! other checkpoint.

use crate::output::note;
use anyhow::{Context, Result};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

/// The model's configuration, which commands that need no weights read in place.
pub(crate) const CONFIG_JSON: &str = include_str!("../../../models/tiny/config.json");

// What the build script lists: FILES, by name and content, and DIR_NAME, a name by which this model's directory is told
// from every other one's. Made there, so that no start has to hash megabytes.
include!(concat!(env!("OUT_DIR"), "/embedded_files.rs"));

/// When the files were last written: always the same time, for caches tell a checkpoint's state by it.
const MODIFIED: Duration = Duration::from_secs(1_767_225_600);

/// Unpacks the model into `cache`, unless it is there already; gives its directory.
///
/// # Errors
/// If the cache cannot be written.
pub(crate) fn unpack(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join(DIR_NAME);
    if !is_whole(&dir, FILES) {
        fs::create_dir_all(cache)
            .map_err(anyhow::Error::from)
            .and_then(|()| unpack_into(cache, &dir, FILES))
            .with_context(|| unwritable(cache))?;
        note(format_args!("unpacked the embedded model into {}", dir.display()));
    }
    Ok(dir)
}

/// What to say of a cache that cannot be written.
pub(crate) fn unwritable(cache: &Path) -> String {
    format!(
        "the cache {} cannot be written (choose another with --cache DIR or DEEPSEEK_V3_CACHE)",
        cache.display()
    )
}

/// Writes the files into a temporary directory and renames it. Of several processes one wins; the others see that
/// its directory is whole.
fn unpack_into(cache: &Path, dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let fresh = builder.prefix(".embedded-").tempdir_in(cache)?;
    for (name, bytes) in files {
        let path = fresh.path().join(name);
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        file.write_all(bytes)
            .and_then(|()| file.set_modified(UNIX_EPOCH + MODIFIED))
            .and_then(|()| file.sync_all())
            .with_context(|| path.display().to_string())?;
    }
    if dir.exists() && !is_whole(dir, files) {
        // What somebody has damaged goes away with this temporary directory.
        let aside = builder.prefix(".damaged-").tempdir_in(cache)?;
        // Another process may be faster; the rename below tells.
        let _ = fs::rename(dir, aside.path().join("model"));
    }
    match fs::rename(fresh.path(), dir) {
        Err(_) if is_whole(dir, files) => Ok(()),
        result => result.with_context(|| dir.display().to_string()),
    }
}

/// Whether every file is there in its size. The directory was renamed into place whole; only somebody else can have
/// taken something away since.
fn is_whole(dir: &Path, files: &[(&str, &[u8])]) -> bool {
    files.iter().all(|(name, bytes)| {
        fs::metadata(dir.join(name)).is_ok_and(|metadata| metadata.len() == bytes.len() as u64)
    })
}

// The build script's function, which is only tested here.
#[cfg(test)]
mod dir_name;

#[cfg(test)]
mod tests {
    use super::{dir_name::dir_name, *};

    #[test]
    fn the_model_unpacks_once_and_heals() {
        let cache = tempfile::tempdir().unwrap();
        let dir = unpack(cache.path()).unwrap();
        for (name, bytes) in FILES {
            assert!(fs::read(dir.join(name)).unwrap() == *bytes, "{name} is as it was embedded");
        }
        let modified = |name: &str| fs::metadata(dir.join(name)).unwrap().modified().unwrap();
        assert_eq!(modified("tokenizer.json"), UNIX_EPOCH + MODIFIED);

        fs::write(dir.join("mark"), "").unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), dir);
        assert!(dir.join("mark").exists(), "a whole directory is left alone");

        fs::write(dir.join("config.json"), "{").unwrap();
        fs::remove_file(dir.join("tokenizer.json")).unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), dir);
        assert!(is_whole(&dir, FILES) && !dir.join("mark").exists());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn the_name_is_that_of_the_files() {
        assert_eq!(DIR_NAME, dir_name(FILES.iter().copied()));
    }

    #[test]
    fn the_name_tells_models_apart() {
        let (a, b) = (dir_name([("ab", b"c".as_slice())]), dir_name([("a", b"bc".as_slice())]));
        assert_ne!(a, b);
        assert_eq!(a.len(), "embedded-".len() + 12);
    }

    #[test]
    fn a_cache_that_cannot_be_written_comes_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = unpack(&file.join("cache")).unwrap_err();
        assert!(error.to_string().ends_with("(choose another with --cache DIR or DEEPSEEK_V3_CACHE)"));
    }
}
