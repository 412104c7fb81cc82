//! Files of JSON that grow a line at a time: a program that is cut off leaves half a line at most, which does not count.

use serde::Serialize;
use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
};

/// The lines that are whole, each with its end.
pub fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

/// Cuts a file to its first bytes, and goes on behind them.
///
/// # Errors
/// Those of the system.
pub fn cut(file: &mut File, length: u64) -> io::Result<()> {
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length)).map(|_| ())
}

/// Adds a line in one write.
///
/// # Errors
/// Those of the system.
///
/// # Panics
/// If JSON has no form for the value, as for a map whose keys are no strings.
pub fn add_line(file: &mut File, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).expect("the value has a form in JSON");
    line.push(b'\n');
    file.write_all(&line)
}
