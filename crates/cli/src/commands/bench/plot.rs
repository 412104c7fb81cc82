//! `dsv3 bench plot`: speed over depth.

use super::{
    chart::{Line, Panel, svg},
    report::{Report, Work},
};
use crate::args::BenchPlotArgs;
use anyhow::{Result, bail};
use dsv3_engine::{NewFile, read_json};
use std::path::Path;

/// Runs the command.
pub(super) fn run(args: &BenchPlotArgs) -> Result<()> {
    let mut reports = Vec::new();
    for path in &args.reports {
        let report: Report = read_json(path)?;
        if report.measurements.is_empty() {
            bail!("{}: the report has no measurements", path.display());
        }
        reports.push((name(path), report));
    }
    let mut panels = Vec::new();
    for (work, title) in
        [(Work::Decode, "decode, tokens/s over depth"), (Work::Prefill, "prefill, tokens/s over depth")]
    {
        let lines: Vec<Line> = reports.iter().flat_map(|(name, report)| lines(name, report, work)).collect();
        if !lines.is_empty() {
            panels.push(Panel { title, lines });
        }
    }
    let mut file = NewFile::create(&args.output)?;
    file.write_all(svg(&panels).as_bytes())?;
    Ok(file.finish()?)
}

/// What the file's lines are called in the legend.
fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A line for each number of threads and sequences.
fn lines(name: &str, report: &Report, work: Work) -> Vec<Line> {
    let mut lines: Vec<([usize; 2], Line)> = Vec::new();
    for found in report.measurements.iter().filter(|found| found.work == work) {
        let key = [found.threads, found.batch];
        let point = (found.depth as f64, found.tokens_per_second);
        match lines.iter_mut().find(|(known, _)| *known == key) {
            Some((_, line)) => line.points.push(point),
            None => {
                let threads =
                    format!("{} thread{}", found.threads, if found.threads == 1 { "" } else { "s" });
                let batch =
                    if found.batch == 1 { String::new() } else { format!(", {} sequences", found.batch) };
                let line = Line { name: format!("{name}, {threads}{batch}"), points: vec![point] };
                lines.push((key, line));
            }
        }
    }
    lines.into_iter().map(|(_, line)| line).collect()
}
