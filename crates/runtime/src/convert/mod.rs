//! Stage 1: what becomes of each tensor of a checkpoint.
//!
//! A tensor whose bytes serve as they are is not copied: its saved weight points into the checkpoint, to the rows that
//! the device holds. Only what the kernels cannot read in place (halves, and ggml's other blocks), or what is asked for
//! in another format, is written: by way of f32 rows, a few megabytes at a time, on all cores. Columns, whose bytes lie
//! apart, are copied as they are.

mod journal;
mod report;
mod rows;
mod spec;
mod tensor_rows;
mod workshop;

pub(crate) use journal::{Journal, Origin, WEIGHTS_FILE};
pub use report::{ConvertProgress, ConvertReport, Fallback, Tally};
pub use tensor_rows::TensorRows;
pub(crate) use workshop::Workshop;

use crate::{Checkpoint, Error, Formats, Location, SavedScales, SavedWeight, WeightPath, WeightSpec};
use dsv3_kernels::{Format, Kernels, QUANTIZE_LIMIT};
use dsv3_mesh::{Layout, Rank};
use rows::{CopiedScales, Rows, Window};
use std::{
    cell::RefCell,
    collections::HashMap,
    path::{Path, PathBuf},
    rc::Rc,
};

/// Values that one task converts: enough to be worth a task, few enough that they stay in a second-level cache.
const TASK_VALUES: usize = 1 << 16;
/// Values that are converted before they are written: 32 MB as bf16.
const CHUNK_VALUES: usize = 1 << 24;

/// Where stage 1 writes for one rank, and whom it tells how far it is.
pub struct WeightOutput<'a> {
    layout: Layout,
    rank: Rank,
    dir: PathBuf,
    formats: Formats,
    /// Made when there is something to write.
    journal: Option<Journal>,
    workshop: Rc<RefCell<Workshop>>,
    /// What an interrupted run left.
    resumed: HashMap<Key, SavedWeight>,
    report: ConvertReport,
    /// Bytes of the checkpoint that are done.
    done: u64,
    /// Bytes of the checkpoint.
    total: u64,
    /// What has been saved: a tensor with two uses in one format is saved once.
    saved: HashMap<Key, SavedWeight>,
    progress: &'a mut dyn FnMut(ConvertProgress<'_>),
}

/// A weight by its source, format and shape: a tensor that is split in two ways has two shapes.
type Key = (String, Format, Vec<usize>);

impl<'a> WeightOutput<'a> {
    /// An output into the directory `dir` for one rank of a mesh.
    pub fn new(
        dir: &Path,
        layout: Layout,
        rank: Rank,
        progress: &'a mut dyn FnMut(ConvertProgress<'_>),
    ) -> Self {
        Self {
            layout,
            rank,
            dir: dir.to_owned(),
            formats: Formats::default(),
            journal: None,
            workshop: Rc::default(),
            resumed: HashMap::new(),
            report: ConvertReport::default(),
            done: 0,
            total: 0,
            saved: HashMap::new(),
            progress,
        }
    }

    /// The same output, for weights in these formats.
    #[must_use]
    pub fn with_formats(mut self, formats: Formats) -> Self {
        self.formats = formats;
        self
    }

    /// The same output, with threads and memory that it shares with others.
    #[must_use]
    pub(crate) fn with_workshop(mut self, workshop: &Rc<RefCell<Workshop>>) -> Self {
        self.workshop = Rc::clone(workshop);
        self
    }

    /// Keeps a journal, and goes on where one of the same origin ends.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub(crate) fn resume(mut self, origin: &Origin) -> Result<Self, Error> {
        let (journal, weights) = Journal::open(&self.dir, origin)?;
        let key = |weight: &SavedWeight| (weight.source.clone(), weight.format, weight.shape.clone());
        self.resumed = weights.into_iter().map(|weight| (key(&weight), weight)).collect();
        self.journal = Some(journal);
        Ok(self)
    }

    /// What is converted for.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::length)
    }

    /// Makes durable what was written, and tells what was done.
    ///
    /// # Errors
    /// A failing write.
    pub fn finish(mut self) -> Result<ConvertReport, Error> {
        if let Some(journal) = &mut self.journal {
            journal.sync()?;
        }
        Ok(self.report)
    }

    /// Saves this rank's part of one weight, or notes where it already lies. Of a weight that lies on another device
    /// nothing is read.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or of an unsupported type, values that are not numbers, a split that is
    /// uneven or cuts a block, a failing write.
    pub fn save(
        &mut self,
        path: &WeightPath,
        spec: &WeightSpec,
        checkpoint: &Checkpoint,
    ) -> Result<SavedWeight, Error> {
        if self.total == 0 {
            self.total = checkpoint.total_bytes();
        }
        let part = spec.local_range(self.layout, self.rank)?;
        let shape = spec.local_shape(self.layout, self.rank)?;
        if part.as_ref().is_some_and(|(_, range)| range.is_empty()) {
            let bytes = checkpoint.get(&spec.source).map_or(0, |info| info.length);
            self.advance(&spec.source, bytes);
            return Ok(SavedWeight::elsewhere(spec, shape));
        }
        let rows = Rows::find(spec, checkpoint)?;
        let window = Window::new(&spec.shape, part.as_ref()).ok_or_else(|| {
            spec.error(format!("expected a vector or a matrix, got shape {:?}", spec.shape))
        })?;
        let format = self.choose(spec, &rows, &shape);
        let key = (spec.source.clone(), format, shape);
        if let Some(saved) = self.saved.get(&key) {
            return Ok(saved.clone());
        }
        let saved = match &rows {
            Rows::Stored(stored) if stored.format == format => {
                self.check_blocks(path, spec, format, &window)?;
                if stored.is_run(&window) {
                    let (data, scales) = stored.place(&window, checkpoint);
                    SavedWeight { source: spec.source.clone(), format, shape: key.2.clone(), data, scales }
                } else {
                    self.write(spec, &rows, &window, &key)?
                }
            }
            _ => self.write(spec, &rows, &window, &key)?,
        };
        saved.validate()?;
        if let ([_], Location::Checkpoint) = (&spec.shape[..], saved.data.location) {
            check_finite(spec, &rows, &window)?;
        }
        self.tally(&rows, &saved);
        self.advance(&spec.source, rows.bytes());
        self.saved.insert(key, saved.clone());
        Ok(saved)
    }

    fn advance(&mut self, tensor: &str, bytes: u64) {
        self.done += bytes;
        (self.progress)(ConvertProgress { tensor, bytes: self.done, total: self.total });
    }

    fn tally(&mut self, rows: &Rows, saved: &SavedWeight) {
        let bytes = saved.bytes();
        match (saved.data.location, rows) {
            (Location::Checkpoint, _) => self.report.in_place.add(bytes),
            (Location::Cache, Rows::Halves(_)) if saved.format == Format::F32 => {
                self.report.widened.add(bytes);
            }
            (Location::Cache, Rows::Stored(stored)) if stored.format == saved.format => {
                self.report.cut.add(bytes);
            }
            (Location::Cache, _) if let Some(from) = rows.unread_blocks() => {
                self.report.decoded.entry((from, saved.format.name())).or_default().add(bytes);
            }
            (Location::Cache, _) => {
                self.report.converted.entry(saved.format.name()).or_default().add(bytes);
            }
        }
    }

    /// The format that a weight gets ([`Formats::choose`]); where it is not what was asked for, that is noted.
    fn choose(&mut self, spec: &WeightSpec, rows: &Rows, shape: &[usize]) -> Format {
        let stays = rows.stored_format().unwrap_or_else(|| rows.natural_format(shape));
        let got = self.formats.choose(spec.kind, stays, shape.last().copied().unwrap_or(0));
        let (Some(kind), Some(asked)) = (spec.kind, self.formats.of(spec.kind)) else { return got };
        let is_known = self.saved.contains_key(&(spec.source.clone(), got, shape.to_vec()));
        if got != asked && !is_known {
            let (first, shape) = (spec.source.clone(), shape.to_vec());
            self.report.add_fallback(Fallback { kind, asked, got, tensors: 1, first, shape });
        }
        got
    }

    /// Refuses a part that begins or ends inside a block of its format, with what can be done.
    fn check_blocks(
        &self,
        path: &WeightPath,
        spec: &WeightSpec,
        format: Format,
        window: &Window,
    ) -> Result<(), Error> {
        let (cols, block) = (&window.cols, format.block_cols());
        if cols.start.is_multiple_of(block) && cols.end.is_multiple_of(block) {
            return Ok(());
        }
        let fits_q8 = cols.len().is_multiple_of(Format::Q8_0.block_cols());
        let finer = if format == Format::Q4K && fits_q8 { Format::Q8_0 } else { Format::Bf16 };
        let advice = spec.kind.map(|kind| format!(", or another format: --format {}={finer}", kind.0));
        Err(spec.error(format!(
            "a mesh of {} cuts {path} into {} columns, inside a block of {block} of {format}; take a mesh with fewer \
             columns{}",
            self.layout,
            cols.len(),
            advice.unwrap_or_default()
        )))
    }

    /// What an interrupted run has written of a weight, or what is written now: columns as they are stored, their
    /// scales behind them, or everything by way of f32.
    fn write(
        &mut self,
        spec: &WeightSpec,
        rows: &Rows,
        window: &Window,
        key: &Key,
    ) -> Result<SavedWeight, Error> {
        if let Some(saved) = self.resumed.remove(key) {
            self.report.resumed.add(saved.bytes());
            return Ok(saved);
        }
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => none.insert(Journal::without(&self.dir)?),
        };
        let (format, count, cols) = (key.1, window.rows.len(), window.cols.len());
        let length = format.matrix_bytes(count, cols);
        let length = length.ok_or_else(|| spec.error(format!("has no {format} of {count} x {cols}")))?;
        let offset = journal.begin()?;
        let pieces = rows.pieces(window.rows.clone(), TASK_VALUES.div_ceil(cols.max(1)));
        let per_chunk = (CHUNK_VALUES / TASK_VALUES).max(1);
        let mut workshop = self.workshop.borrow_mut();
        for (number, chunk) in pieces.chunks(per_chunk).enumerate() {
            let encoded = workshop.fill(chunk, format.bytes(cols), |rows_of_piece, kernels, out| {
                let piece = Window { rows: rows_of_piece, cols: window.cols.clone() };
                rows.encode(&piece, format, kernels, out)
            })?;
            let encoded = encoded.map_err(|[row, col]| {
                spec.error(format!(
                    "expected finite values (below {QUANTIZE_LIMIT:e} in blocks), got another at [{row}, {col}]"
                ))
            })?;
            journal.write(encoded)?;
            let share = ((number + 1) * per_chunk).min(pieces.len()) as f64 / pieces.len() as f64;
            let done = self.done + (rows.bytes() as f64 * share) as u64;
            (self.progress)(ConvertProgress { tensor: &spec.source, bytes: done, total: self.total });
        }
        let data = Journal::extent(offset, length as u64);
        let scales = match rows.copy_scales(window, format) {
            Some(CopiedScales { block, first_row, bytes }) => {
                journal.write(&bytes)?;
                let data = Journal::extent(offset + length as u64, bytes.len() as u64);
                Some(SavedScales { block, first_row, data })
            }
            None => None,
        };
        let saved = SavedWeight { source: key.0.clone(), format, shape: key.2.clone(), data, scales };
        journal.end(&saved)?;
        Ok(saved)
    }
}

/// Refuses a norm or a bias that holds what is no number: it would make every output one.
fn check_finite(spec: &WeightSpec, rows: &Rows, window: &Window) -> Result<(), Error> {
    let mut values = vec![0.0; window.cols.len()];
    rows.read(window, Kernels::best(), &mut values);
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            let at = window.cols.start + index;
            Err(spec.error(format!("expected finite values, got {} at {at}", values[index])))
        }
        None => Ok(()),
    }
}

impl SavedWeight {
    /// A weight that lies on another device: no rows, no bytes.
    fn elsewhere(spec: &WeightSpec, shape: Vec<usize>) -> Self {
        let (source, data) = (spec.source.clone(), Journal::extent(0, 0));
        Self { source, format: Format::F32, shape, data, scales: None }
    }
}
