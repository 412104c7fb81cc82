//! `dsv3 config`: stage 2.

use crate::{
    args::{ConfigArgs, ModeArg},
    embedded,
    model::CONFIG_FILE,
    output,
};
use anyhow::Result;
use dsv3_deepseek::{HfConfig, Model};
use dsv3_runtime::Module;
use serde::Serialize;
use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
};

/// Operator configs of the modes that are asked for.
#[derive(Serialize)]
struct Configs {
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill: Option<<Model as Module>::PrefillConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<<Model as Module>::DecodeConfig>,
}

/// Runs the command.
pub(crate) fn run(args: &ConfigArgs) -> Result<()> {
    let hf = read_config(args.model.as_deref())?;
    let wants = |mode| args.mode.is_none_or(|only| only == mode);
    let make_prefill = || Model::prefill_model_config(&hf, args.mesh);
    let make_decode = || Model::decode_model_config(&hf, args.mesh);
    let configs = Configs {
        prefill: wants(ModeArg::Prefill).then(make_prefill).transpose()?,
        decode: wants(ModeArg::Decode).then(make_decode).transpose()?,
    };
    match (&args.output, &configs) {
        (None, Configs { prefill: Some(config), decode: None }) => print(config),
        (None, Configs { prefill: None, decode: Some(config) }) => print(config),
        (None, both) => print(both),
        (Some(path), Configs { prefill: Some(config), decode: None }) => write(path, config),
        (Some(path), Configs { prefill: None, decode: Some(config) }) => write(path, config),
        (Some(path), Configs { prefill, decode }) => {
            write(&with_mode(path, "prefill"), prefill)?;
            write(&with_mode(path, "decode"), decode)
        }
    }
}

/// A file, or the one in a directory, or the embedded model's, which needs no unpacking for this.
fn read_config(path: Option<&Path>) -> Result<HfConfig> {
    Ok(match path {
        None => HfConfig::from_json(Path::new(CONFIG_FILE), embedded::CONFIG_JSON)?,
        Some(dir) if dir.is_dir() => HfConfig::from_file(&dir.join(CONFIG_FILE))?,
        Some(file) => HfConfig::from_file(file)?,
    })
}

fn print(value: &impl Serialize) -> Result<()> {
    Ok(output::print(&output::pretty_json(value)?)?)
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    output::write_file(path, |file| Ok(file.write_all(output::pretty_json(value)?.as_bytes())?))
}

/// `a/b.json` for a mode: `a/b.prefill.json`.
fn with_mode(path: &Path, mode: &str) -> PathBuf {
    let mut name = path.file_stem().map_or_else(OsString::new, OsString::from);
    name.push(".");
    name.push(mode);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_stands_before_the_ending() {
        assert_eq!(with_mode(Path::new("a/b.json"), "prefill"), Path::new("a/b.prefill.json"));
        assert_eq!(with_mode(Path::new("b"), "decode"), Path::new("b.decode"));
    }
}
