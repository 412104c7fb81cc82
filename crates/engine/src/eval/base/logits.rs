//! The logits of one sequence in a safetensors file, as `dsv3 logits` writes it and others can.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{BaseRow, format};
use crate::Error;
use crate::eval::Distribution;

/// A header is a few hundred bytes; the format's own limit is 100 MB.
const MAX_HEADER: u64 = 1 << 20;
/// The tensor's name.
const TENSOR: &str = "logits";

/// Such a file, open for its rows.
#[derive(Debug)]
pub struct LogitsFile {
    path: PathBuf,
    reader: BufReader<File>,
    rows: usize,
    rows_read: usize,
    bytes: Vec<u8>,
    logits: Vec<f32>,
    log_probs: Vec<f64>,
}

/// One tensor of the header.
#[derive(Deserialize)]
struct TensorInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl LogitsFile {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that cannot be read, is something else, has no tensor `logits` of type F32 and shape `[tokens, vocab]`
    /// that lies inside of it, or is of another vocabulary.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let (info, data) = read_header(path, &mut reader, length)?;
        let wrong = |what: &str, expected: String, got: String| {
            Err(format(path, format!("{TENSOR}: {what}: expected {expected}, got {got}")))
        };
        if info.dtype != "F32" {
            return wrong("dtype", "\"F32\"".to_owned(), format!("{:?}", info.dtype));
        }
        let rows = match info.shape[..] {
            [rows, cols] if cols == vocab_size as u64 => rows,
            _ => return wrong("shape", format!("[tokens, {vocab_size}]"), format!("{:?}", info.shape)),
        };
        let bytes = u128::from(rows) * vocab_size as u128 * 4;
        let [begin, end] = info.data_offsets;
        if end < begin || u128::from(end - begin) != bytes || end > length - data {
            let expected = format!("{bytes} bytes of the {} after the header", length - data);
            return wrong("data_offsets", expected, format!("{:?}", info.data_offsets));
        }
        reader.seek(SeekFrom::Start(data + begin)).map_err(Error::io(path))?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            rows: usize::try_from(rows).expect("the rows lie in the file"),
            rows_read: 0,
            bytes: vec![0; vocab_size * 4],
            logits: vec![0.0; vocab_size],
            log_probs: vec![0.0; vocab_size],
        })
    }

    /// Checks that the file is of a text of so many tokens.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_tokens(&self, tokens: usize) -> Result<(), Error> {
        if tokens == self.rows {
            return Ok(());
        }
        let message = format!("{TENSOR} has the rows of {} tokens, but the text has {tokens}", self.rows);
        Err(format(&self.path, message))
    }

    /// The next row.
    ///
    /// # Errors
    /// If it cannot be read, or holds what is no number.
    ///
    /// # Panics
    /// If all have been read.
    pub fn next_row(&mut self) -> Result<BaseRow<'_>, Error> {
        let Self { path, reader, bytes, logits, log_probs, .. } = self;
        assert!(self.rows_read < self.rows, "all rows of {} have been read", path.display());
        reader.read_exact(bytes).map_err(Error::io(&*path))?;
        for (logit, &value) in logits.iter_mut().zip(bytes.as_chunks().0) {
            *logit = f32::from_le_bytes(value);
        }
        let row = self.rows_read;
        let distribution = Distribution::new(logits)
            .map_err(|error| format(path, format!("{TENSOR}: row {row}: {error}")))?;
        log_probs.iter_mut().zip(distribution.log_probs()).for_each(|(place, value)| *place = value);
        self.rows_read += 1;
        Ok(BaseRow { log_probs, floor: f64::NEG_INFINITY, step: 0.0 })
    }
}

/// The header's entry of the tensor, and where the tensors' bytes begin.
fn read_header(path: &Path, reader: &mut impl Read, length: u64) -> Result<(TensorInfo, u64), Error> {
    let neither = || {
        let message = "neither a safetensors file nor llama-perplexity's log-probabilities";
        format(path, message.to_owned())
    };
    let mut size = [0; 8];
    reader.read_exact(&mut size).map_err(|_| neither())?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > length.saturating_sub(8) {
        return Err(neither());
    }
    let mut json = vec![0; usize::try_from(size).map_err(|_| neither())?];
    reader.read_exact(&mut json).map_err(Error::io(path))?;
    let mut header: Map<String, Value> = serde_json::from_slice(&json).map_err(|_| neither())?;
    let Some(entry) = header.remove(TENSOR) else {
        let names: Vec<&str> = header.keys().map(String::as_str).take(8).collect();
        return Err(format(path, format!("expected a tensor {TENSOR:?}, got {names:?}")));
    };
    let info = serde_json::from_value(entry).map_err(|error| format(path, format!("{TENSOR}: {error}")))?;
    Ok((info, 8 + size))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn file(header: &Value, values: &[f32]) -> Vec<u8> {
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    fn open(bytes: &[u8], vocab_size: usize) -> (tempfile::TempDir, Result<LogitsFile, Error>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base");
        fs::write(&path, bytes).unwrap();
        let opened = LogitsFile::open(&path, vocab_size);
        (directory, opened)
    }

    #[test]
    fn rows_come_as_log_probabilities() {
        // Another tensor lies in front.
        let header = json!({
            "__metadata__": { "by": "a test" },
            "tokens": { "dtype": "I32", "shape": [1], "data_offsets": [0, 4] },
            "logits": { "dtype": "F32", "shape": [2, 2], "data_offsets": [4, 20] },
        });
        let values = [9.0, 0.0, 3_f32.ln(), 1.0, f32::NAN];
        let (_directory, opened) = open(&file(&header, &values), 2);
        let mut logits = opened.unwrap();
        logits.check_tokens(2).unwrap();
        let error = logits.check_tokens(3).unwrap_err().to_string();
        assert!(error.contains("of 2 tokens, but the text has 3"), "{error}");
        let row = logits.next_row().unwrap();
        // Weights 1 and 3 of 4; ln 3 is rounded to f32.
        for (log_prob, expected) in row.log_probs.iter().zip([0.25_f64, 0.75]) {
            assert!((log_prob - expected.ln()).abs() < 2.0 * f64::from(f32::EPSILON));
        }
        assert_eq!((row.floor, row.step), (f64::NEG_INFINITY, 0.0));
        let error = logits.next_row().unwrap_err().to_string();
        assert!(error.contains("logits: row 1: the model's logit of token 1 is NaN"), "{error}");
    }

    #[test]
    fn files_that_lie_are_refused() {
        let of = |dtype: &str, shape: Value, offsets: [u64; 2]| json!({ "logits": { "dtype": dtype, "shape": shape, "data_offsets": offsets } });
        let huge = u64::MAX;
        for (header, part) in [
            (of("BF16", json!([2, 2]), [0, 16]), "dtype: expected \"F32\", got \"BF16\""),
            (of("F32", json!([2, 3]), [0, 16]), "shape: expected [tokens, 2], got [2, 3]"),
            (of("F32", json!([4]), [0, 16]), "shape: expected [tokens, 2], got [4]"),
            (of("F32", json!([3, 2]), [0, 16]), "data_offsets: expected 24 bytes of the 16"),
            (of("F32", json!([3, 2]), [0, 24]), "data_offsets"),
            (of("F32", json!([2, 2]), [16, 0]), "data_offsets"),
            (of("F32", json!([2, 2]), [huge - 16, huge]), "data_offsets"),
            (of("F32", json!([huge, 2]), [0, huge]), "data_offsets"),
            (json!({ "logit": 1 }), "expected a tensor \"logits\", got [\"logit\"]"),
            (json!({ "logits": 1 }), "logits: "),
            (json!([1]), "neither"),
        ] {
            let error = open(&file(&header, &[0.0; 4]), 2).1.unwrap_err().to_string();
            assert!(error.contains(part), "expected {part:?} in {error:?}");
        }
        let good = file(&of("F32", json!([2, 2]), [0, 16]), &[0.0; 4]);
        for length in 0..good.len() {
            assert!(open(&good[..length], 2).1.is_err(), "{length} bytes of {}", good.len());
        }
        let mut lying = good.clone();
        lying[..8].copy_from_slice(&huge.to_le_bytes());
        assert!(open(&lying, 2).1.unwrap_err().to_string().contains("neither"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(open(&bytes, 2).1.is_err());
        }
    }
}
