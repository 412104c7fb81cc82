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
    weights::{ConvertOptions, Error, Report, WeightCache, with_layers},
};
use dsv3_mesh::ExpertSharding;
use dsv3_runtime::Gguf;
use indicatif::{DecimalBytes, HumanDuration};
use std::{num::NonZeroUsize, path::Path, thread, time::Duration};

/// Refuses options of one target that were given for the other.
///
/// # Errors
/// A usage error that names the option.
pub(super) fn check(args: &ConvertArgs) -> Result<()> {
    let usage = |message: String| Err(Cli::command().error(ErrorKind::ArgumentConflict, message).into());
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
        (args.layout.mesh == MeshArg::Auto, "--mesh auto"),
    ];
    match given.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, option)) => usage(format!("{option} is for --target cpu")),
        None if args.galaxy.output.is_none() && !args.galaxy.dry_run => {
            usage("--target galaxy needs --output DIR, where the weight cache goes".to_owned())
        }
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
    let GalaxyArgs { output, layers, num_layers, mtp, rounding, dry_run } = &args.galaxy;
    if *mtp && model.hf.mtp_layers == 0 {
        bail!("{}: the checkpoint has no MTP layer; leave out --mtp", place.dir.join(CONFIG_FILE).display());
    }
    if *mtp && num_layers.is_some_and(|layers| layers < model.hf.num_hidden_layers) {
        bail!("--mtp needs all layers of the model, not the first of them");
    }
    let hf = with_layers(&model.hf, *num_layers, *mtp)?;
    let layers = layers.as_ref().map(|layers| layers.up_to(hf.num_hidden_layers + hf.mtp_layers - 1));
    let root = output.as_deref().unwrap_or(Path::new(""));
    let cache = WeightCache::new(root, &hf, args.layout.mesh.shape(), layers.as_ref())?;
    let rounding = rounding.map_or_else(Rounding::default, Into::into);
    if *dry_run {
        return print(&plan(&cache, &model, rounding)?);
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
fn plan(cache: &WeightCache, model: &OpenModel, rounding: Rounding) -> Result<String> {
    let mut text = String::new();
    let wanted = || cache.files().iter().filter(|file| file.is_wanted);
    for file in wanted() {
        let spec = &file.file.spec;
        let bytes = file.bytes();
        text +=
            &format!("{bytes:>14}  {}  {} {:?} on each device\n", file.file.path, spec.data_type, spec.shape);
    }
    let total = cache.wanted_bytes();
    text +=
        &format!("{total:>14}  {} in {}\n", count(wanted().count() as u64, "file"), cache.dir().display());
    let device = cache.device_bytes();
    let fits = if device > DRAM_BYTES { ": they do not fit" } else { "" };
    text += &format!(
        "each device: {} of weights in {} of DRAM{fits}\n",
        DecimalBytes(device),
        DecimalBytes(DRAM_BYTES)
    );
    if let Some(rate) = cache.measure(&model.checkpoint, rounding)? {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let rate = rate * threads as f64;
        let time = HumanDuration(Duration::from_secs((total as f64 / rate).ceil() as u64));
        text += &format!(
            "time: {time}, at the {}/s that {} make here, if the disk is as fast\n",
            DecimalBytes(rate as u64),
            count(threads as u64, "core")
        );
    }
    Ok(text)
}
