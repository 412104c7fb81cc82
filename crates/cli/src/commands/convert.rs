//! `dsv3 convert`: stage 1.

use crate::{
    args::ConvertArgs,
    model::{ModelPlace, OpenModel},
    output,
};
use anyhow::Result;
use dsv3_runtime::{ConvertReport, Converted, WEIGHT_CONFIG_FILE};
use indicatif::{DecimalBytes, HumanCount};

/// Runs the command.
pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    let model = OpenModel::open(&ModelPlace::resolve(&args.model)?)?;
    let converted = model.convert(args.mesh, args.force)?;
    let weight_config = model.cache(args.mesh).dir().join(WEIGHT_CONFIG_FILE);
    let text = match converted {
        Converted::Present => format!(
            "the cache is present and matches the checkpoint; nothing was done (--force makes it anew)\n\
             WeightConfig: {}\n",
            weight_config.display()
        ),
        Converted::Made(report) => format!(
            "{}WeightConfig: {}\n",
            describe(&report, model.checkpoint.total_bytes()),
            weight_config.display()
        ),
    };
    Ok(output::print(&text)?)
}

/// What was written and why, a line each.
fn describe(report: &ConvertReport, checkpoint_bytes: u64) -> String {
    let ConvertReport { in_place, widened } = report;
    let mut text = format!(
        "{} ({}) used in place in the checkpoint\n",
        output::count(in_place.tensors as u64, "weight"),
        DecimalBytes(in_place.bytes)
    );
    if widened.tensors > 0 {
        text += &format!(
            "{} widened from F16 to F32, because no kernel reads F16\n",
            output::count(widened.tensors as u64, "weight")
        );
    }
    let share = 100.0 * widened.bytes as f64 / checkpoint_bytes.max(1) as f64;
    text += &format!(
        "{} written ({}, {share:.1} % of the checkpoint's {})\n",
        HumanCount(widened.tensors as u64),
        DecimalBytes(widened.bytes),
        DecimalBytes(checkpoint_bytes)
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
        let report = ConvertReport { in_place, widened: Tally::default() };
        assert_eq!(
            describe(&report, 5_400_000),
            "1,412 weights (5.40 MB) used in place in the checkpoint\n\
             0 written (0 B, 0.0 % of the checkpoint's 5.40 MB)\n"
        );
        let report = ConvertReport { in_place, widened: Tally { tensors: 3, bytes: 540_000 } };
        assert!(describe(&report, 5_400_000).ends_with(
            "3 weights widened from F16 to F32, because no kernel reads F16\n\
             3 written (540.00 kB, 10.0 % of the checkpoint's 5.40 MB)\n"
        ));
    }
}
