//! How far a long piece of work is: a bar on a terminal, a line now and then elsewhere, and nothing at all for work
//! that takes less than a second.

use crate::output::note;
use indicatif::{DecimalBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

/// Work shorter than this is not worth a word.
const QUIET: Duration = Duration::from_secs(1);
/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// Bytes of weights.
    Bytes,
    /// Bytes of weights as they come from a disk, with the speed.
    BytesRead,
    /// Tokens of a text.
    Tokens,
    /// Things that are measured.
    Measurements,
}

/// The progress of one piece of work; its bar goes when it is dropped.
pub(crate) struct Progress {
    label: &'static str,
    unit: Unit,
    start: Instant,
    next_line: Duration,
    is_terminal: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of work that begins now.
    pub(crate) fn new(label: &'static str, unit: Unit) -> Self {
        let is_terminal = stderr().is_terminal();
        Self { label, unit, start: Instant::now(), next_line: QUIET, is_terminal, bar: None }
    }

    /// `done` of `total` are done.
    pub(crate) fn update(&mut self, done: u64, total: u64) {
        let (done, elapsed) = (done.min(total), self.start.elapsed());
        if !self.is_terminal {
            if let Some(line) = self.line(elapsed, done, total) {
                note(format_args!("{line}"));
            }
        } else if elapsed >= QUIET {
            let Self { label, unit, .. } = *self;
            let bar = self.bar.get_or_insert_with(|| new_bar(label, unit, elapsed));
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn line(&mut self, elapsed: Duration, done: u64, total: u64) -> Option<String> {
        if elapsed < self.next_line {
            return None;
        }
        self.next_line = elapsed + LINE_INTERVAL;
        let label = self.label;
        Some(match self.unit {
            Unit::Bytes => {
                let left = elapsed.mul_f64((total - done) as f64 / done.max(1) as f64);
                let left = HumanDuration(Duration::from_secs(left.as_secs()));
                format!("{label}: {} of {}, {left} left", DecimalBytes(done), DecimalBytes(total))
            }
            Unit::BytesRead => {
                let speed = done as f64 / elapsed.as_secs_f64();
                let left = Duration::from_secs_f64(((total - done) as f64 / speed.max(1.0)).ceil());
                let (done, total) = (DecimalBytes(done), DecimalBytes(total));
                format!("{label}: {done} of {total}, {:.2} GB/s, {} left", speed / 1e9, HumanDuration(left))
            }
            Unit::Tokens => format!("{label}: {} of {} tokens", HumanCount(done), HumanCount(total)),
            Unit::Measurements => format!("{label}: {done} of {total}"),
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(label: &'static str, unit: Unit, elapsed: Duration) -> ProgressBar {
    let template = match unit {
        Unit::Bytes => "{msg} {wide_bar} {decimal_bytes} of {decimal_total_bytes}, {eta} left",
        Unit::BytesRead => {
            "{msg} {wide_bar} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left"
        }
        Unit::Measurements => "{msg} {wide_bar} {human_pos} of {human_len}, {eta} left",
        Unit::Tokens => "{msg} {wide_bar} {human_pos} of {human_len} tokens, {eta} left",
    };
    let style = ProgressStyle::with_template(template).expect("the templates above are well formed");
    ProgressBar::new(0).with_style(style).with_message(label).with_elapsed(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_after_a_second_and_then_at_intervals() {
        let mut progress = Progress::new("converting", Unit::Bytes);
        let mut line = |seconds: u64| progress.line(Duration::from_secs(seconds), 2_000_000, 5_000_000);
        assert_eq!(line(0), None);
        assert_eq!(line(1).as_deref(), Some("converting: 2.00 MB of 5.00 MB, 1 second left"));
        assert_eq!(line(10), None);
        assert!(line(11).is_some());
        let mut progress = Progress::new("prefill", Unit::Tokens);
        let line = progress.line(Duration::from_secs(3), 1024, 20_000);
        assert_eq!(line.as_deref(), Some("prefill: 1,024 of 20,000 tokens"));
        let mut progress = Progress::new("reading", Unit::BytesRead);
        let line = progress.line(Duration::from_secs(2), 3_000_000_000, 12_000_000_000);
        assert_eq!(line.as_deref(), Some("reading: 3.00 GB of 12.00 GB, 1.50 GB/s, 6 seconds left"));
    }

    #[test]
    fn a_bar_has_a_well_formed_template() {
        for unit in [Unit::Bytes, Unit::BytesRead, Unit::Tokens, Unit::Measurements] {
            new_bar("x", unit, QUIET);
        }
    }
}
