//! Stage 1 for a Galaxy.

use crate::{
    args::{Cli, ConvertArgs, GalaxyArgs, MeshArg},
    model::{CONFIG_FILE, ModelPlace, OpenModel},
    output::{count, note, print},
    progress::{Progress, Unit},
};
use anyhow::{Result, bail};
use clap::{CommandFactory, error::ErrorKind};
use dsv3_galaxy::{
    block_float::Rounding,
    hardware::DRAM_BYTES,
    weights::{ConvertOptions, Error, Measured, Report, Warning, WeightCache, with_layers},
};
use dsv3_mesh::ExpertSharding;
use dsv3_runtime::Gguf;
use indicatif::{DecimalBytes, HumanDuration};
use std::{path::Path, time::Duration};

/// Refuses options of one target that were given for the other.
///
/// # Errors
/// A usage error that names the option.
pub(super) fn check(args: &ConvertArgs) -> Result<()> {
    let usage = |message: String| Err(Cli::command().error(ErrorKind::ArgumentConflict, message).into());
    let missing =
        |message: &str| Err(Cli::command().error(ErrorKind::MissingRequiredArgument, message).into());
    if !args.is_for_galaxy() {
        return match args.galaxy.first_given() {
            Some(option) => usage(format!("{option} is for --target galaxy")),
            None => Ok(()),
        };
    }
    let given = [
        (args.from_gguf.is_some(), "--from-gguf"),
        (args.ranks.is_some(), "--ranks"),
        (!args.model.format.name.is_empty(), "--format"),
        (args.layout.experts != ExpertSharding::default(), "--experts"),
        (args.layout.mesh == Some(MeshArg::Auto), "--mesh auto"),
    ];
    match given.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, option)) => usage(format!("{option} is for --target cpu")),
        None if args.galaxy.output.is_none() && !args.galaxy.dry_run => {
            missing("--target galaxy needs --output DIR, where the weight cache goes")
        }
        None if args.layout.mesh.is_none() => missing(
            "--target galaxy needs --mesh RxC, as in 8x8: which device holds which part of a weight depends on it",
        ),
        None => Ok(()),
    }
}

/// Runs the command.
pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let place = ModelPlace::resolve(&args.model)?;
    if Gguf::is_gguf(&place.dir) {
        bail!("{}: expected a checkpoint's directory, got a GGUF file", place.dir.display());
    }
    let model = OpenModel::open(&place)?;
    let GalaxyArgs { output, layers, num_layers, fabric, mtp, rounding, dry_run } = &args.galaxy;
    if *mtp && model.hf.mtp_layers == 0 {
        bail!("{}: the checkpoint has no MTP layer; leave out --mtp", place.dir.join(CONFIG_FILE).display());
    }
    if *mtp && num_layers.is_some_and(|layers| layers < model.hf.num_hidden_layers) {
        bail!("--mtp needs all layers of the model, not the first of them");
    }
    let hf = with_layers(&model.hf, *num_layers, *mtp)?;
    let layers = layers.as_ref().map(|layers| layers.up_to(hf.num_hidden_layers + hf.mtp_layers - 1));
    let root = output.as_deref().unwrap_or(Path::new(""));
    let (mesh, fabric) = (args.layout.mesh(), fabric.unwrap_or_default());
    let cache = WeightCache::for_fabric(root, &hf, (mesh, fabric), layers.as_ref())?;
    if let Some(warning) = Warning::of(&hf, mesh, fabric) {
        note(format_args!("warning: {warning}"));
    }
    let rounding = rounding.map_or_else(Rounding::default, Into::into);
    if *dry_run {
        let options = ConvertOptions { rounding, force: args.force };
        return print(&plan(&cache, &model, options)?);
    }
    let (weights, dram) = (cache.device_bytes(), DRAM_BYTES);
    if weights > dram {
        note(format_args!(
            "warning: each device would hold {} of weights, its DRAM has {}: they do not fit",
            DecimalBytes(weights),
            DecimalBytes(dram)
        ));
    }
    let mut progress = Progress::new("converting", Unit::Bytes);
    let options = ConvertOptions { rounding, force: args.force };
    let report = cache.convert(&model.source(), options, &mut |at| progress.update(at.bytes, at.total));
    drop(progress);
    print(&describe(&report.map_err(explain)?, &cache))
}

/// What a user can do about an error that has no advice of its own.
fn explain(error: Error) -> anyhow::Error {
    match error {
        Error::Io { .. } => anyhow::Error::from(error)
            .context("what is done is kept; where it can be written, the same command goes on"),
        other => other.into(),
    }
}

fn describe(report: &Report, cache: &WeightCache) -> String {
    let files =
        |(files, bytes): (usize, u64)| format!("{} ({})", count(files as u64, "file"), DecimalBytes(bytes));
    let mut text = match report {
        Report { written: (0, _), .. } => {
            "all files are present and match the checkpoint; nothing was done (--force makes them anew)\n"
                .to_owned()
        }
        Report { written, present: (0, _), .. } => format!("written: {}\n", files(*written)),
        Report { written, present, .. } => {
            format!("written: {}; {} were there\n", files(*written), files(*present))
        }
    };
    text += &match report.missing {
        0 => format!("weight cache: {}\n", cache.config_path().display()),
        missing => format!(
            "in {}; {} of the other layers are missing, and config.json is written once they are there\n",
            cache.dir().display(),
            count(missing as u64, "file")
        ),
    };
    text
}

/// The files, the memory and the time.
fn plan(cache: &WeightCache, model: &OpenModel, options: ConvertOptions) -> Result<String> {
    let mut text = String::new();
    let remaining = cache.remaining(&model.source(), options).map_err(explain)?;
    for (file, is_left) in cache.files().iter().filter(|file| file.is_wanted).zip(&remaining.is_left) {
        let spec = &file.file.spec;
        let (bytes, there) = (file.bytes(), if *is_left { "" } else { ", is there" });
        text += &format!(
            "{bytes:>14}  {}  {} {:?} on each device{there}\n",
            file.file.path, spec.data_type, spec.shape
        );
    }
    let files = |files: usize| count(files as u64, "file");
    let (all, left) = (remaining.is_left.len(), remaining.files());
    let dir = cache.dir().display();
    text += &format!("{:>14}  {} in {dir}\n", cache.wanted_bytes(), files(all));
    if left < all {
        text += &format!("{:>14}  {} of them left, {} are there\n", remaining.bytes, files(left), all - left);
    }
    let device = cache.device_bytes();
    let fits = if device > DRAM_BYTES { ": they do not fit" } else { "" };
    text += &format!(
        "each device: {} of weights in {} of DRAM{fits}\n",
        DecimalBytes(device),
        DecimalBytes(DRAM_BYTES)
    );
    if let Some(Measured { bytes_per_second, threads, file }) =
        cache.measure(&model.checkpoint, &remaining, options.rounding)?
    {
        let seconds = (remaining.bytes as f64 / bytes_per_second).ceil();
        text += &format!(
            "time: {} for what is left, at {}/s: what {} packed of {file} in a second, without writing; a slower disk \
             takes longer\n",
            HumanDuration(Duration::from_secs(seconds as u64)),
            DecimalBytes(bytes_per_second as u64),
            count(threads as u64, "thread")
        );
    }
    Ok(text)
}
