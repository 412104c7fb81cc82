//! `dsv3 convert`: stage 1.

mod galaxy;

use crate::{
    args::ConvertArgs,
    model::{ModelPlace, OpenModel, sum},
    output,
};
use anyhow::{Context, Error, Result};
use dsv3_mesh::{MeshShape, Rank};
use dsv3_runtime::{ConvertReport, Converted, Fallback, WEIGHT_CONFIG_FILE};
use indicatif::DecimalBytes;
use std::fs;

/// Runs the command.
pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    galaxy::check(args)?;
    if args.is_for_galaxy() {
        return galaxy::run(args);
    }
    let layout = args.layout.layout();
    let ranks = match &args.ranks {
        Some(ranks) => ranks.of(layout.mesh).map_err(Error::msg)?,
        None => layout.weight_ranks().collect(),
    };
    let mut asked = args.model.clone();
    if args.from_gguf.is_some() {
        asked.model.clone_from(&args.from_gguf);
    }
    let model = OpenModel::open(&ModelPlace::resolve(&asked)?)?;
    let converted = model.convert(layout, &ranks, args.force)?;
    let path = |rank| model.cache(layout).of_rank(rank).dir().join(WEIGHT_CONFIG_FILE);
    let mut text = String::new();
    match sum(&converted) {
        None if converted.len() == 1 => {
            text +=
                "the cache is present and matches the checkpoint; nothing was done (--force makes it anew)\n";
        }
        None => {
            text += "the caches are present and match the checkpoint; nothing was done (--force makes them anew)\n";
        }
        Some(report) => {
            let mut config_bytes = 0;
            for (rank, _) in made(&converted) {
                let path = path(*rank);
                config_bytes += fs::metadata(&path).with_context(|| path.display().to_string())?.len();
            }
            text += &describe(&report, config_bytes, model.checkpoint.total_bytes());
        }
    }
    for (rank, converted) in &converted {
        text += &if layout.mesh == MeshShape::SINGLE { String::new() } else { of_rank(*rank, converted) };
        text += &format!("WeightConfig: {}\n", path(*rank).display());
    }
    output::print(&text)
}

fn made(converted: &[(Rank, Converted)]) -> impl Iterator<Item = &(Rank, Converted)> {
    converted.iter().filter(|(_, converted)| matches!(converted, Converted::Made(_)))
}

/// What became of the cache of one of several ranks.
fn of_rank(Rank(rank): Rank, converted: &Converted) -> String {
    match converted {
        Converted::Present => format!("rank {rank}: the cache is present\n"),
        Converted::Made(report) => {
            let (in_place, written) =
                (DecimalBytes(report.in_place.bytes), DecimalBytes(report.written_bytes()));
            format!("rank {rank}: {in_place} used in place, {written} written\n")
        }
    }
}

/// What is used in place, and what was written and why, a line each.
fn describe(report: &ConvertReport, config_bytes: u64, checkpoint_bytes: u64) -> String {
    let ConvertReport { in_place, widened, cut, decoded, converted, fallbacks, resumed } = report;
    let size = |bytes: u64| {
        let share = 100.0 * bytes as f64 / checkpoint_bytes.max(1) as f64;
        format!(
            "{}, {share:.1} % of the checkpoint's {}",
            DecimalBytes(bytes),
            DecimalBytes(checkpoint_bytes)
        )
    };
    let mut text = format!(
        "used in place: {} ({}) of the checkpoint\n",
        output::count(in_place.tensors as u64, "weight"),
        DecimalBytes(in_place.bytes)
    );
    if widened.tensors > 0 {
        text += &format!(
            "written: {} ({}), widened from F16 to F32, because no kernel reads F16\n",
            output::count(widened.tensors as u64, "weight"),
            size(widened.bytes)
        );
    }
    if cut.tensors > 0 {
        text += &format!(
            "written: {} ({}), columns that lie apart in the checkpoint, copied as they are\n",
            output::count(cut.tensors as u64, "weight"),
            size(cut.bytes)
        );
    }
    for ((from, to), tally) in decoded {
        let count = output::count(tally.tensors as u64, "weight");
        text +=
            &format!("written: {count} ({}), from {from} to {to}, which kernels read\n", size(tally.bytes));
    }
    for (format, tally) in converted {
        let count = output::count(tally.tensors as u64, "weight");
        text += &format!("written: {count} ({}), converted to {format}\n", size(tally.bytes));
    }
    if resumed.tensors > 0 {
        let count = output::count(resumed.tensors as u64, "weight");
        text += &format!(
            "of these {count} ({}) were there from an interrupted run\n",
            DecimalBytes(resumed.bytes)
        );
    }
    for Fallback { kind, asked, got, tensors, first, shape } in fallbacks {
        let (kind, count) = (kind.0, output::count(*tensors as u64, "weight"));
        text += &format!("not {asked} but {got}: {count} of {kind}, such as {first} {shape:?}\n");
    }
    text += &format!(
        "written: {WEIGHT_CONFIG_FILE} ({}), which says where each weight lies\n",
        size(config_bytes)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsv3_runtime::Tally;

    #[test]
    fn it_says_what_was_written_and_why() {
        let in_place = Tally { tensors: 1412, bytes: 5_400_000 };
        let report = ConvertReport { in_place, ..ConvertReport::default() };
        let config = "written: weight_config.json (108.00 kB, 2.0 % of the checkpoint's 5.40 MB), which says where each \
                      weight lies\n";
        assert_eq!(
            describe(&report, 108_000, 5_400_000),
            format!("used in place: 1,412 weights (5.40 MB) of the checkpoint\n{config}")
        );
        let widened = Tally { tensors: 3, bytes: 540_000 };
        let report = ConvertReport { in_place, widened, ..ConvertReport::default() };
        let widened = "written: 3 weights (540.00 kB, 10.0 % of the checkpoint's 5.40 MB), widened from F16 to F32, \
                       because no kernel reads F16\n";
        assert!(describe(&report, 108_000, 5_400_000).ends_with(&format!("{widened}{config}")));
        let decoded = [(("q6_K".to_owned(), "q8_0"), Tally { tensors: 1, bytes: 540_000 })].into();
        let report = ConvertReport { in_place, decoded, ..ConvertReport::default() };
        let decoded = "written: 1 weight (540.00 kB, 10.0 % of the checkpoint's 5.40 MB), from q6_K to q8_0, which kernels read\n";
        assert!(describe(&report, 108_000, 5_400_000).ends_with(&format!("{decoded}{config}")));
    }
}
