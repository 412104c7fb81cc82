//! `dsv3 bench`: how fast a model runs on this machine, and how fast it could.

pub(crate) mod ceilings;
mod chart;
mod count;
mod driver;
mod kernels;
mod plot;
mod report;
mod run;
mod spread;
pub(crate) mod table;

use crate::{
    args::{BenchCommand, ReportArgs},
    output,
};
use anyhow::Result;
use serde::Serialize;
use table::Table;

/// Runs the command.
pub(crate) fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Kernels(args) => kernels::run(&args),
        BenchCommand::Run(args) => run::run(&args),
        BenchCommand::Plot(args) => plot::run(&args),
        BenchCommand::Count(args) => count::run(&args),
    }
}

/// Writes a report to stdout as it was asked for.
fn print(report: &impl Serialize, table: &Table, args: ReportArgs) -> Result<()> {
    output::print(&match args {
        ReportArgs { json: true, .. } => output::pretty_json(report)?,
        ReportArgs { csv: true, .. } => table.csv(),
        ReportArgs { .. } => table.text(),
    })
}

/// A number with three digits that count: `7123`, `712`, `71.2`, `7.12`, `0.071`.
pub(crate) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// A share as `71 %`; nothing where it is of nothing.
pub(crate) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.0} %", share * 100.0) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count() {
        let texts = [7123.4, 712.34, 71.234, 7.1234, 0.071_234, 0.0].map(digits);
        assert_eq!(texts, ["7123", "712", "71.2", "7.12", "0.071", "0.000"]);
        assert_eq!(percent(0.714), "71 %");
        assert_eq!(percent(f64::NAN), "");
    }
}
