//! llama-perplexity's file of base log-probabilities (`--kl-divergence-base`; llama.cpp,
//! `tools/perplexity/perplexity.cpp`). All numbers are little-endian:
//!
//! ```text
//! "_logits_"  window: i32  vocab: i32  windows: i32  tokens: i32 [windows * window]
//! for each token that counts (see Windows::halves), window by window:
//!     step: f32  lowest: f32  q: u16 [vocab, and one of padding where vocab is odd]
//! ```
//!
//! A log-probability is `lowest + step * q`. The range ends 16 below the likeliest token's; what lies deeper has
//! q = 0. Each is so rounded to a multiple of `step`, at most 16 / 65535 = 2.4e-4: see
//! [`DivergenceReport::quantisation_noise`](crate::eval::DivergenceReport::quantisation_noise).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use dsv3_runtime::TokenId;

use super::{BaseRow, format};
use crate::eval::{Distribution, Windows};
use crate::{Error, NewFile};

/// The file's first bytes.
pub(super) const MAGIC: &[u8; 8] = b"_logits_";
/// Magic, window, vocabulary, windows.
const HEAD: usize = 20;
/// The range below the likeliest token, in nats, that the 16 bits are spread over.
const RANGE: f32 = 16.0;
/// llama-perplexity counts no tokens at or below this log-probability: they may be clamped ones.
const FLOOR: f64 = -16.0;

/// Such a file, open for its rows.
#[derive(Debug)]
pub struct LogProbFile {
    path: PathBuf,
    reader: BufReader<File>,
    window: usize,
    tokens: Vec<TokenId>,
    rows_left: usize,
    bytes: Vec<u8>,
    log_probs: Vec<f64>,
}

impl LogProbFile {
    /// Opens a file and reads its tokens.
    ///
    /// # Errors
    /// A file that cannot be read, is something else, has another length than its numbers say, or is of another
    /// vocabulary.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut head = [0; HEAD];
        reader.read_exact(&mut head).map_err(Error::io(path))?;
        if head[..MAGIC.len()] != *MAGIC {
            return Err(format(path, "not a file of log-probabilities: no `_logits_` in front".to_owned()));
        }
        let [window, vocab, windows] = [8, 12, 16]
            .map(|at| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes of the twenty")));
        if vocab as usize != vocab_size {
            return Err(format(
                path,
                format!("its vocabulary has {vocab} tokens, but the model's has {vocab_size}"),
            ));
        }
        if window < 3 || windows == 0 {
            return Err(format(
                path,
                format!("{windows} windows of {window} tokens hold nothing that counts"),
            ));
        }
        let expected = file_length(window, vocab, windows);
        if expected != u128::from(length) {
            return Err(format(
                path,
                format!(
                    "{windows} windows of {window} tokens over {vocab} take {expected} bytes, but the file has \
                     {length}"
                ),
            ));
        }
        // The length is that of a file, so these fit into memory's address range; and the tokens are a part of it.
        let (window, windows) = (window as usize, windows as usize);
        let mut bytes = vec![0; window * windows * 4];
        reader.read_exact(&mut bytes).map_err(Error::io(path))?;
        let tokens = bytes.as_chunks().0.iter().map(|&id| TokenId(u32::from_le_bytes(id))).collect();
        Ok(Self {
            path: path.to_owned(),
            reader,
            window,
            tokens,
            rows_left: windows * scored_rows(window),
            bytes: vec![0; row_bytes(vocab_size)],
            log_probs: vec![0.0; vocab_size],
        })
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The tokens of all windows. Ids are as in the file: whether a model has them is for the model to say.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The next row.
    ///
    /// # Errors
    /// If it cannot be read, or its scale is no number.
    ///
    /// # Panics
    /// If all have been read.
    pub fn next_row(&mut self) -> Result<BaseRow<'_>, Error> {
        assert!(self.rows_left > 0, "all rows of {} have been read", self.path.display());
        self.rows_left -= 1;
        self.reader.read_exact(&mut self.bytes).map_err(Error::io(&self.path))?;
        let (head, values) = self.bytes.split_at(8);
        let float =
            |at: usize| f32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes of the eight"));
        let (step, lowest) = (float(0), float(4));
        if !(step.is_finite() && step >= 0.0 && lowest.is_finite()) {
            return Err(format(
                &self.path,
                format!(
                    "a row has the step {step} and the lowest log-probability {lowest}, expected numbers, the step \
                     not negative"
                ),
            ));
        }
        let (step, lowest) = (f64::from(step), f64::from(lowest));
        for (log_prob, &q) in self.log_probs.iter_mut().zip(values.as_chunks().0) {
            *log_prob = lowest + step * f64::from(u16::from_le_bytes(q));
        }
        Ok(BaseRow { log_probs: &self.log_probs, floor: FLOOR, step })
    }
}

/// Writes such a file, row by row.
#[derive(Debug)]
pub struct LogProbWriter {
    file: NewFile,
    rows_left: usize,
    row: Vec<u8>,
}

impl LogProbWriter {
    /// Begins the file of a text's windows; `windows` must be of [`Windows::halves`], for the file knows no others.
    ///
    /// # Errors
    /// If it cannot be written, or its numbers do not fit into the file's 31 bits.
    ///
    /// # Panics
    /// If the windows are of another kind.
    pub fn create(
        path: &Path,
        vocab_size: usize,
        text: &[TokenId],
        windows: &Windows,
    ) -> Result<Self, Error> {
        let (length, count) = (windows.length(), windows.count());
        assert_eq!(windows.scored(), count * scored_rows(length), "the file is of half windows");
        let mut file = NewFile::create(path)?;
        file.write_all(MAGIC)?;
        for number in [length, vocab_size, count] {
            let number = i32::try_from(number)
                .map_err(|_| format(path, format!("{number} does not fit into the format's 31 bits")))?;
            file.write_all(&number.to_le_bytes())?;
        }
        for token in &text[..length * count] {
            file.write_all(&token.0.to_le_bytes())?;
        }
        Ok(Self { file, rows_left: windows.scored(), row: vec![0; row_bytes(vocab_size)] })
    }

    /// Adds the distribution after the next token that counts.
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// # Panics
    /// If it is of another vocabulary, or there are no more rows.
    pub fn write(&mut self, logits: &[f32], distribution: &Distribution<'_>) -> Result<(), Error> {
        assert_eq!(row_bytes(logits.len()), self.row.len(), "a row is of one vocabulary");
        self.rows_left = self.rows_left.checked_sub(1).expect("there are no more rows than windows have");
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let min = logits.iter().copied().fold(f32::INFINITY, f32::min).max(max - RANGE);
        let step = (max - min) / f32::from(u16::MAX);
        let lowest = distribution.log_prob(distribution.top()) - f64::from(max - min);
        self.row[..4].copy_from_slice(&step.to_le_bytes());
        self.row[4..8].copy_from_slice(&(lowest as f32).to_le_bytes());
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        for (place, &logit) in self.row[8..].as_chunks_mut().0.iter_mut().zip(logits) {
            // The cast is of a value from 0 to 65535 and a rounding; it saturates.
            *place = (((logit - min).max(0.0) * inverse).round_ties_even() as u16).to_le_bytes();
        }
        self.file.write_all(&self.row)
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// If that fails.
    ///
    /// # Panics
    /// If rows are missing.
    pub fn finish(self) -> Result<(), Error> {
        assert_eq!(self.rows_left, 0, "rows are missing");
        self.file.finish()
    }
}

/// Rows of a window that count.
fn scored_rows(window: usize) -> usize {
    window - 1 - window / 2
}

/// Bytes of one row: two floats, and the vocabulary's numbers, evened.
fn row_bytes(vocab_size: usize) -> usize {
    8 + 2 * vocab_size.next_multiple_of(2)
}

/// Bytes that a file of these numbers has. No product of 32-bit numbers overflows here.
fn file_length(window: u32, vocab: u32, windows: u32) -> u128 {
    let [window, vocab, windows] = [window, vocab, windows].map(u128::from);
    let row = 8 + 2 * vocab.next_multiple_of(2);
    HEAD as u128 + windows * (4 * window + (window - 1 - window / 2) * row)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const VOCAB: usize = 5;

    fn text() -> Vec<TokenId> {
        [1, 2, 3, 4, 0, 1, 2, 3, 4].map(TokenId).to_vec()
    }

    /// A file of two windows of 4 tokens, so of two rows.
    fn write(path: &Path, rows: &[Vec<f32>]) {
        let windows = Windows::halves(9, 4, None).unwrap();
        let mut writer = LogProbWriter::create(path, rows[0].len(), &text(), &windows).unwrap();
        for row in rows {
            writer.write(row, &Distribution::new(row).unwrap()).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn a_file_is_laid_out_byte_by_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base");
        // Two equally likely tokens, one 8 below, and two beyond the range, of which one is far.
        write(&path, &[vec![0.0, -8.0, 0.0, -16.5, -1e6], vec![1.0; VOCAB]]);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[..8], *b"_logits_");
        let numbers: Vec<u32> =
            bytes[8..52].as_chunks().0.iter().map(|&number| u32::from_le_bytes(number)).collect();
        assert_eq!(numbers, [4, 5, 2, 1, 2, 3, 4, 0, 1, 2, 3]);
        let float = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let steps: Vec<u16> = bytes[60..72].as_chunks().0.iter().map(|&q| u16::from_le_bytes(q)).collect();
        assert_eq!(float(52), 16.0 / 65535.0);
        // The likeliest have a half each, less what the third has.
        let expected = -(2.0 + (-8.0_f64).exp()).ln() - 16.0;
        assert!((f64::from(float(56)) - expected).abs() <= 16.7 * f64::from(f32::EPSILON));
        // 8 of 16 is 32767.5 steps: to the even number.
        assert_eq!(steps, [65535, 32768, 65535, 0, 0, 0]);
        assert_eq!((float(72), bytes.len()), (0.0, 92), "equal logits have no range");
    }

    #[test]
    fn files_that_lie_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base");
        write(&path, &[vec![0.0; VOCAB], vec![1.0; VOCAB]]);
        let good = fs::read(&path).unwrap();
        let refused = |bytes: &[u8], part: &str| {
            fs::write(&path, bytes).unwrap();
            let error = LogProbFile::open(&path, VOCAB).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()) && error.contains(part), "{error}");
        };
        for length in 0..HEAD {
            refused(&good[..length], "fill whole buffer");
        }
        for length in [HEAD, 40, good.len() - 1] {
            refused(&good[..length], "take 92 bytes, but the file has");
        }
        refused(&[&good[..], &[0]].concat(), "but the file has 93");
        let with = |at: usize, number: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            bytes
        };
        refused(&with(0, 0), "no `_logits_` in front");
        refused(&with(8, 0), "nothing that counts");
        refused(&with(8, 2), "nothing that counts");
        refused(&with(8, u32::MAX), "but the file has 92");
        refused(&with(12, 6), "its vocabulary has 6 tokens, but the model's has 5");
        refused(&with(12, u32::MAX), "its vocabulary has 4294967295 tokens");
        refused(&with(16, 0), "nothing that counts");
        refused(&with(16, u32::MAX), "but the file has 92");
        for (at, value) in [(52, f32::NAN), (52, -1.0), (52, f32::INFINITY), (56, f32::NEG_INFINITY)] {
            fs::write(&path, with(at, value.to_bits())).unwrap();
            let error = LogProbFile::open(&path, VOCAB).unwrap().next_row().unwrap_err().to_string();
            assert!(error.contains("a row has the step"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_comes_back_to_half_a_step(
            rows in (1..9_usize).prop_flat_map(|vocab| {
                prop::collection::vec(prop::collection::vec(-30.0..30.0_f32, vocab), 2)
            }),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("base");
            write(&path, &rows);
            let mut file = LogProbFile::open(&path, rows[0].len()).unwrap();
            prop_assert_eq!(file.tokens(), &text()[..8]);
            prop_assert_eq!(file.window(), 4);
            for row in &rows {
                let distribution = Distribution::new(row).unwrap();
                let highest = distribution.log_prob(distribution.top());
                let read = file.next_row().unwrap();
                // Half a step, and the f32 roundings of: the logit's difference (to 60), the step and its product
                // (to 16 each, the product by two roundings), the lowest value (to 20).
                let bound = read.step / 2.0 + (60.0 + 4.0 * 16.0 + 20.0) * f64::from(f32::EPSILON);
                for (&read, expected) in read.log_probs.iter().zip(distribution.log_probs()) {
                    let expected = expected.max(highest - f64::from(RANGE));
                    prop_assert!((read - expected).abs() <= bound, "{} {}", read, expected);
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("base");
            let front: &[u8] = if magic { MAGIC } else { &[] };
            fs::write(&path, [front, &bytes].concat()).unwrap();
            prop_assert!(LogProbFile::open(&path, VOCAB).is_err());
        }
    }
}
