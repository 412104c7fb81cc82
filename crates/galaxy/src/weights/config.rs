//! config.json: the tree of the modules' weights, with a path and a memory config at each leaf.

use super::{Error, WeightFile};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

/// The tree's file.
pub const CONFIG_FILE: &str = "config.json";
/// The version of the tree's form that upstream reads.
const FORMAT_VERSION: u32 = 2;
/// The lists of the tree, which are there with no layers too.
const LISTS: [&str; 2] = ["mlp_decoder_block", "moe_decoder_block"];

/// The content of config.json for these files, all of a cache's.
pub fn weight_config(files: &[WeightFile]) -> Value {
    let mut tree = Map::new();
    for list in LISTS {
        tree.insert(list.to_owned(), json!([]));
    }
    let mut tree = Value::Object(tree);
    for file in files {
        let leaf = json!({ "path": file.path, "memory_config": file.spec.memory_config.to_json() });
        for key in &file.keys {
            *entry(&mut tree, key) = leaf.clone();
        }
    }
    json!({
        "deepseek_weight_cache_metadata": { "format_version": FORMAT_VERSION },
        "weight_config": tree,
    })
}

/// The place of a key like `mlp_decoder_block.0.mlp.w1`: numbers are places in lists, which are filled in order.
fn entry<'t>(tree: &'t mut Value, key: &str) -> &'t mut Value {
    key.split('.').fold(tree, |node, part| match part.parse::<usize>() {
        Ok(index) => {
            let list = node.as_array_mut().expect("a number stands in a list");
            if index == list.len() {
                list.push(json!({}));
            }
            &mut list[index]
        }
        Err(_) => node.as_object_mut().expect("a name stands in an object").entry(part).or_insert(json!({})),
    })
}

/// Writes config.json where it is not there, or names other files: a mesh with rings has more of them than a line.
///
/// # Errors
/// A disk that is full or fails.
pub(super) fn write_if_other(dir: &Path, config: &Value) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(config).expect("strings and numbers are JSON");
    text.push(b'\n');
    if fs::read(dir.join(CONFIG_FILE)).is_ok_and(|there| there == text) { Ok(()) } else { write(dir, &text) }
}

/// Writes config.json as upstream does: under its lock, to another name first.
fn write(dir: &Path, text: &[u8]) -> Result<(), Error> {
    let path = dir.join(CONFIG_FILE);
    let lock = dir.join(".config.json.write_lock");
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(Error::io(lock))?;
    let temporary = dir.join(format!(".{CONFIG_FILE}.{}.tmp", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    });
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_dir(dir)).map_err(Error::io(path))?;
    drop(lock);
    Ok(())
}

/// Makes the names in a directory durable, where the system can.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}
