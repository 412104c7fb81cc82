//! `dsv3 config`: stage 2.

mod galaxy;

use crate::{
    args::{ConfigArgs, ModeArg, TargetArg},
    embedded,
    model::CONFIG_FILE,
    output,
};
use anyhow::Result;
use dsv3_deepseek::{HfConfig, Model, ModelConfig};
use dsv3_engine::write_json;
use dsv3_runtime::Module;
use serde::Serialize;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// What stdout gets where both modes are asked for.
#[derive(Serialize)]
struct Both {
    prefill: ModelConfig,
    decode: ModelConfig,
}

/// Runs the command.
pub(crate) fn run(args: &ConfigArgs) -> Result<()> {
    galaxy::check(args)?;
    if args.target == TargetArg::Galaxy {
        return galaxy::run(args);
    }
    let hf = read_config(args.model.as_deref())?;
    let config = |mode| match mode {
        ModeArg::Prefill => Model::prefill_model_config(&hf, args.layout.layout()),
        ModeArg::Decode => Model::decode_model_config(&hf, args.layout.layout()),
    };
    match (args.mode, &args.output) {
        (Some(mode), None) => print(&config(mode)?),
        (Some(mode), Some(path)) => Ok(write_json(path, &config(mode)?)?),
        (None, output) => {
            let both = Both { prefill: config(ModeArg::Prefill)?, decode: config(ModeArg::Decode)? };
            let Some(path) = output else { return print(&both) };
            write_json(&with_mode(path, "prefill"), &both.prefill)?;
            Ok(write_json(&with_mode(path, "decode"), &both.decode)?)
        }
    }
}

/// A file, or the one in a directory, or the embedded model's, which needs no unpacking for this.
pub(crate) fn read_config(path: Option<&Path>) -> Result<HfConfig> {
    Ok(match path {
        None => HfConfig::from_json(Path::new(CONFIG_FILE), embedded::CONFIG_JSON)?,
        Some(dir) if dir.is_dir() => HfConfig::from_file(&dir.join(CONFIG_FILE))?,
        Some(file) => HfConfig::from_file(file)?,
    })
}

fn print(value: &impl Serialize) -> Result<()> {
    output::print(&output::pretty_json(value)?)
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
