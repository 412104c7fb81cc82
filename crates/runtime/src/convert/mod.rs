//! Stage 1: what becomes of each tensor of a checkpoint.
//!
//! A tensor whose bytes serve as they are is not copied: its saved weight points into the checkpoint. Only what the
//! kernels cannot read in place, or what is asked for in another format, is written: by way of f32 rows, a few
//! megabytes at a time, on all cores.

mod journal;
mod report;
mod rows;

pub(crate) use journal::{Journal, Origin, WEIGHTS_FILE};
pub use report::{ConvertProgress, ConvertReport, Fallback, Tally};

use crate::{Checkpoint, Device, Error, Formats, Location, SavedWeight, WeightPath, WeightSpec};
use dsv3_kernels::{Chunks, Cuts, Format, QUANTIZE_LIMIT, Queue};
use dsv3_mesh::{Layout, Rank};
use rows::Rows;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

/// Values that one task converts: enough to be worth a task, few enough that they stay in a second-level cache.
const TASK_VALUES: usize = 1 << 16;
/// Values that are converted before they are written: 32 MB as bf16.
const CHUNK_VALUES: usize = 1 << 24;

/// Where stage 1 writes, and whom it tells how far it is.
pub struct WeightOutput<'a> {
    layout: Layout,
    rank: Rank,
    dir: PathBuf,
    formats: Formats,
    /// Made when there is something to write.
    writer: Option<Writer>,
    /// What an interrupted run left, by source and format.
    resumed: HashMap<(String, Format), SavedWeight>,
    report: ConvertReport,
    /// Bytes of the checkpoint that are done.
    done: u64,
    /// What has been saved, by source and format: a tensor with two uses in one format is saved once.
    saved: HashMap<(String, Format), SavedWeight>,
    progress: &'a mut dyn FnMut(ConvertProgress<'_>),
}

/// The file and the threads.
struct Writer {
    journal: Journal,
    device: Device,
    buffer: Vec<u8>,
}

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
            writer: None,
            resumed: HashMap::new(),
            report: ConvertReport::default(),
            done: 0,
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

    /// Keeps a journal, and goes on where one of the same origin ends.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub(crate) fn resume(mut self, origin: &Origin) -> Result<Self, Error> {
        let (journal, weights) = Journal::open(&self.dir, origin)?;
        self.resumed =
            weights.into_iter().map(|weight| ((weight.source.clone(), weight.format), weight)).collect();
        self.writer = Some(Writer::new(journal)?);
        Ok(self)
    }

    /// What is converted for.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.journal.length())
    }

    /// Makes durable what was written, and tells what was done.
    ///
    /// # Errors
    /// A failing write.
    pub fn finish(mut self) -> Result<ConvertReport, Error> {
        if let Some(writer) = &mut self.writer {
            writer.journal.sync()?;
        }
        Ok(self.report)
    }

    /// Saves one weight, or notes where it already lies.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or of an unsupported type, values that are not numbers, a failing write.
    pub fn save(
        &mut self,
        path: &WeightPath,
        spec: &WeightSpec,
        checkpoint: &Checkpoint,
    ) -> Result<SavedWeight, Error> {
        let rows = Rows::find(spec, checkpoint)?;
        if spec.placement.local_range(&spec.source, &spec.shape, self.layout.mesh, self.rank)?.is_some() {
            return Err(spec
                .error(format!("{path} is to be split over a {} mesh; only 1x1 is converted", self.layout)));
        }
        let format = self.choose(spec, &rows);
        let key = (spec.source.clone(), format);
        if let Some(saved) = self.saved.get(&key) {
            return Ok(saved.clone());
        }
        let saved = match &rows {
            Rows::Stored(stored) if stored.format == format => {
                let (data, scales) = stored.place(checkpoint);
                SavedWeight { scales, data, ..Self::unplaced(spec, format) }
            }
            _ => match self.resumed.remove(&key).filter(|weight| weight.shape == spec.shape) {
                Some(weight) => {
                    self.report.resumed.add(weight.data.length);
                    weight
                }
                None => self.write(spec, &rows, format, checkpoint.total_bytes())?,
            },
        };
        saved.validate()?;
        if let ([_], Location::Checkpoint) = (&spec.shape[..], saved.data.location) {
            check_finite(spec, &rows)?;
        }
        self.tally(&rows, &saved);
        self.done += rows.bytes();
        let progress =
            ConvertProgress { tensor: &spec.source, bytes: self.done, total: checkpoint.total_bytes() };
        (self.progress)(progress);
        self.saved.insert(key, saved.clone());
        Ok(saved)
    }

    fn tally(&mut self, rows: &Rows, saved: &SavedWeight) {
        let bytes = saved.data.length + saved.scales.as_ref().map_or(0, |scales| scales.data.length);
        match (saved.data.location, rows) {
            (Location::Checkpoint, _) => self.report.in_place.add(bytes),
            (Location::Cache, Rows::Halves(_)) if saved.format == Format::F32 => {
                self.report.widened.add(bytes);
            }
            (Location::Cache, _) => {
                self.report.converted.entry(saved.format.name()).or_default().add(bytes);
            }
        }
    }

    /// The format that a weight gets: what is asked for, where its rows are whole blocks of it; else q8_0 for q4_K,
    /// else what it has.
    fn choose(&mut self, spec: &WeightSpec, rows: &Rows) -> Format {
        let stays = rows.stored_format().unwrap_or_else(|| rows.natural_format());
        let (Some(kind), Some(asked)) = (spec.kind, self.formats.of(spec.kind)) else { return stays };
        let cols = spec.shape.last().copied().unwrap_or(0);
        let fits = |format: Format| cols.is_multiple_of(format.block_cols());
        let got = match asked {
            Format::Fp8 => stays,
            Format::Q4K if !fits(Format::Q4K) && fits(Format::Q8_0) => Format::Q8_0,
            format if fits(format) => format,
            _ => stays,
        };
        let is_known = self.saved.contains_key(&(spec.source.clone(), got));
        if got != asked && !is_known {
            let (first, shape) = (spec.source.clone(), spec.shape.clone());
            self.report.add_fallback(Fallback { kind, asked, got, tensors: 1, first, shape });
        }
        got
    }

    fn unplaced(spec: &WeightSpec, format: Format) -> SavedWeight {
        SavedWeight {
            source: spec.source.clone(),
            format,
            shape: spec.shape.clone(),
            data: Journal::extent(0, 0),
            scales: None,
        }
    }

    /// Writes a tensor in a format.
    fn write(
        &mut self,
        spec: &WeightSpec,
        rows: &Rows,
        format: Format,
        total: u64,
    ) -> Result<SavedWeight, Error> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(Writer::new(Journal::without(&self.dir)?)?),
        };
        let [count, cols] = match spec.shape[..] {
            [length] => [1, length],
            [rows, cols] => [rows, cols],
            ref shape => {
                return Err(spec.error(format!("expected a vector or a matrix, got shape {shape:?}")));
            }
        };
        let expected = format.matrix_bytes(count, cols);
        let length = expected.ok_or_else(|| spec.error(format!("has no {format} of {count} x {cols}")))?;
        let offset = writer.journal.begin()?;
        let pieces = rows.pieces(count, TASK_VALUES.div_ceil(cols.max(1)));
        let per_chunk = (CHUNK_VALUES / TASK_VALUES).max(1);
        let bytes = rows.bytes();
        for (number, chunk) in pieces.chunks(per_chunk).enumerate() {
            let bad = writer.convert(rows, chunk, cols, format);
            if let Some([row, col]) = bad {
                return Err(spec.error(format!(
                    "expected finite values (below {QUANTIZE_LIMIT:e} in blocks), got another at [{row}, {col}]"
                )));
            }
            writer.journal.write(&writer.buffer)?;
            let share = ((number + 1) * per_chunk).min(pieces.len()) as f64 / pieces.len() as f64;
            let done = self.done + (bytes as f64 * share) as u64;
            (self.progress)(ConvertProgress { tensor: &spec.source, bytes: done, total });
        }
        let data = Journal::extent(offset, length as u64);
        let saved = SavedWeight { data, ..Self::unplaced(spec, format) };
        writer.journal.end(&saved)?;
        Ok(saved)
    }
}

impl Writer {
    fn new(journal: Journal) -> Result<Self, Error> {
        Ok(Self { journal, device: Device::single(0)?, buffer: Vec::new() })
    }

    /// Fills the buffer with some rows. Gives the place of a value that cannot be stored, if there is one.
    fn convert(
        &mut self,
        rows: &Rows,
        pieces: &[std::ops::Range<usize>],
        cols: usize,
        format: Format,
    ) -> Option<[usize; 2]> {
        let row_bytes = format.bytes(cols);
        let all: usize = pieces.iter().map(ExactSizeIterator::len).sum();
        self.buffer.resize(all * row_bytes, 0);
        let kernels = self.device.kernels();
        let bad = AtomicUsize::new(usize::MAX);
        let ends: Vec<usize> = pieces
            .iter()
            .scan(0, |end, piece| {
                *end += piece.len() * row_bytes;
                Some(*end)
            })
            .collect();
        let chunks = Queue::new(Chunks::new(&mut self.buffer, Cuts::Ends(&ends)));
        self.device.for_each(&chunks, |(number, out)| {
            let piece = &pieces[number];
            let mut values = vec![0.0; piece.len() * cols];
            rows.read(piece.clone(), cols, kernels, &mut values);
            if let Some(index) = values.iter().position(|value| !is_storable(*value, format)) {
                bad.fetch_min(piece.start * cols + index, Ordering::Relaxed);
                return;
            }
            for (row, out) in values.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(row_bytes.max(1))) {
                kernels.quantize_row(format, row, out);
            }
        });
        match bad.into_inner() {
            usize::MAX => None,
            index => Some([index / cols, index % cols]),
        }
    }
}

/// Refuses a norm or a bias that holds what is no number: it would make every output one.
fn check_finite(spec: &WeightSpec, rows: &Rows) -> Result<(), Error> {
    let mut values = vec![0.0; spec.shape[0]];
    rows.read(0..1, values.len(), dsv3_kernels::Kernels::best(), &mut values);
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(spec.error(format!("expected finite values, got {} at {index}", values[index]))),
        None => Ok(()),
    }
}

/// Whether a format can hold a value; blocks are scaled by halves.
fn is_storable(value: f32, format: Format) -> bool {
    let limit = if format.block_cols() > 1 { QUANTIZE_LIMIT } else { f32::INFINITY };
    value.abs() < limit // false for NaN
}

impl WeightSpec {
    fn error(&self, message: String) -> Error {
        Error::Tensor { name: self.source.clone(), message }
    }
}
