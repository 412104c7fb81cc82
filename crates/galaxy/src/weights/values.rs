//! From the tensors of a checkpoint to the bytes of shards, a megabyte at a time: values are read as f32 rows, turned
//! where they must be, and packed. Nothing of a whole tensor is held.

use super::{Error, Form, RingProjection, Split, WeightFile, files::gate_side};
use crate::{
    block_float::Rounding,
    hardware::TILE,
    ring::{self, RingPacking, SourceTile},
    shard::ShardLayout,
    tensorbin::{Header, TensorSpec},
    types::Layout,
};
use dsv3_mesh::{Axis, MeshShape};
use dsv3_runtime::{Checkpoint, Kernels, TensorRows};
use std::ops::Range;

/// Bytes of a shard that a task makes, about.
const TASK_BYTES: usize = 1 << 20;
/// Bands that are turned at a time: with their 128 columns of the source they take whole blocks of its FP8 scales.
const TURNED_BANDS: usize = 4;
/// Rows of a shard in rows that are read at a time.
const ROW_BANDS: usize = 64;
/// Columns of rows that stay rows that are read at a time, so that their values are still in a second-level cache when they
/// are packed: a multiple of a tile's and of an FP8 block's.
const CHUNK_COLUMNS: usize = 1024;
/// Rows of a source that are turned at a time: with 128 columns, what a first-level cache holds.
const TURNED_ROWS: usize = 64;
/// Tensors that are asked for before they are read: more than two of 671B's experts.
const AHEAD: usize = 4;

/// Makes the bytes of one file's shards.
pub(super) struct Packer<'a> {
    file: &'a WeightFile,
    mesh: MeshShape,
    layout: ShardLayout,
    buffers: usize,
    sources: Vec<TensorRows>,
    rounding: Rounding,
    kernels: &'static Kernels,
}

/// Memory of a thread, used again for each task.
#[derive(Default)]
pub(super) struct Scratch {
    values: Vec<f32>,
    turned: Vec<f32>,
    padded: Vec<f32>,
    bytes: Vec<u8>,
}

/// What a task made: a part of a buffer.
pub(super) struct Packed<'s> {
    pub(super) buffer: usize,
    pub(super) offset: u64,
    pub(super) bytes: &'s [u8],
}

/// Some bands of one matrix of a buffer.
struct Task {
    buffer: usize,
    matrix: usize,
    bands: Range<usize>,
}

/// A part of a matrix, and of which buffer it is.
struct Region {
    buffer: usize,
    matrix: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<'a> Packer<'a> {
    /// Of a file with this header.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or of an unsupported type, or scales that are not numbers.
    pub(super) fn new(
        file: &'a WeightFile,
        header: &Header,
        mesh: MeshShape,
        checkpoint: &Checkpoint,
        rounding: Rounding,
    ) -> Result<Self, Error> {
        let layout = header.spec.shard_layout().expect("the header has it too");
        let sources = file.sources.iter().map(|spec| TensorRows::find(spec, checkpoint));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let buffers = header.buffers().len();
        Ok(Self { file, mesh, layout, buffers, sources, rounding, kernels: Kernels::best() })
    }

    /// Bytes of the checkpoint that its sources have.
    pub(super) fn source_bytes(&self) -> u64 {
        self.sources.iter().map(TensorRows::bytes).sum()
    }

    /// How many tasks there are.
    pub(super) fn tasks(&self) -> usize {
        self.buffers * self.layout.matrices() * self.matrix_tasks()
    }

    fn matrix_tasks(&self) -> usize {
        self.layout.matrix_bands().div_ceil(self.task_bands())
    }

    /// Bands whose values are read at a time.
    fn unit_bands(&self) -> usize {
        match (&self.file.form, self.file.spec.page.layout()) {
            (Form::Turned | Form::Ring { .. } | Form::Heads { turned: true, .. }, _) => TURNED_BANDS,
            (_, Layout::Tile) => 1,
            (_, Layout::RowMajor) => ROW_BANDS,
        }
    }

    fn task_bands(&self) -> usize {
        let unit = self.unit_bands();
        unit * (TASK_BYTES / (unit * self.layout.band_bytes())).max(1)
    }

    fn task(&self, number: usize) -> Task {
        let (matrix, part) = (number / self.matrix_tasks(), number % self.matrix_tasks());
        let first = part * self.task_bands();
        Task {
            buffer: matrix / self.layout.matrices(),
            matrix: matrix % self.layout.matrices(),
            bands: first..self.layout.matrix_bands().min(first + self.task_bands()),
        }
    }

    /// Does a task.
    ///
    /// # Errors
    /// A value that is no finite number; names the tensor and the place.
    pub(super) fn pack<'s>(&self, number: usize, scratch: &'s mut Scratch) -> Result<Packed<'s>, Error> {
        let Task { buffer, matrix, bands } = self.task(number);
        if bands.start == 0 {
            self.will_need(buffer, matrix);
        }
        let band_bytes = self.layout.band_bytes();
        let mut bytes = std::mem::take(&mut scratch.bytes);
        bytes.resize(bands.len() * band_bytes, 0);
        let unit = self.unit_bands();
        for (first, out) in bands.clone().step_by(unit).zip(bytes.chunks_mut(unit * band_bytes)) {
            let start = first * self.layout.band_rows();
            let rows = start..(start + unit * self.layout.band_rows()).min(self.layout.rows());
            for columns in self.chunks() {
                self.pack_region(&Region { buffer, matrix, rows: rows.clone(), columns }, out, scratch)?;
            }
        }
        scratch.bytes = bytes;
        let offset = (matrix * self.layout.matrix_bands() + bands.start) * band_bytes;
        Ok(Packed { buffer, offset: offset as u64, bytes: &scratch.bytes })
    }

    /// The columns that are read at a time.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let all = self.layout.columns();
        let step = match (&self.file.form, self.file.spec.page.layout()) {
            (Form::Rows | Form::Stacked | Form::Heads { turned: false, .. }, Layout::Tile) => CHUNK_COLUMNS,
            _ => all,
        };
        (0..all).step_by(step).map(move |first| first..all.min(first + step))
    }

    /// Reads a region and packs it into its bands' bytes.
    fn pack_region(&self, at: &Region, out: &mut [u8], scratch: &mut Scratch) -> Result<(), Error> {
        let Scratch { values, turned, padded, .. } = scratch;
        let width = at.columns.len();
        values.resize(at.rows.len() * width, 0.0);
        self.read(at, values, turned)?;
        let layout = match width == self.layout.columns() {
            true => self.layout,
            false => self.layout.of_columns(width),
        };
        // Tiles of a band follow one another.
        let before = self.layout.band_bytes() / self.layout.band_tiles() * (at.columns.start / TILE as usize);
        let in_bands = values.chunks(self.layout.band_rows() * width);
        for (values, out) in in_bands.zip(out.chunks_exact_mut(self.layout.band_bytes())) {
            let out = &mut out[before..before + layout.band_bytes()];
            layout.pack_band(values, self.rounding, out, padded);
        }
        Ok(())
    }

    /// Asks for the tensors that will be read soon: those of the next matrices.
    fn will_need(&self, buffer: usize, matrix: usize) {
        let is_first = buffer == 0 && matrix == 0;
        match self.file.form {
            Form::Stacked => {
                let at = buffer * self.layout.matrices() + matrix;
                let from = if is_first { at } else { at + AHEAD };
                self.sources.iter().take(at + AHEAD + 1).skip(from).for_each(TensorRows::will_need);
            }
            // All of a device's experts are in each core's blocks.
            Form::Ring { .. } if matrix == 0 => {
                let of_buffer = self.sources.len() / self.buffers;
                let own = &self.sources[buffer * of_buffer..(buffer + 1) * of_buffer];
                own.iter().for_each(TensorRows::will_need);
            }
            Form::Ring { .. } => {}
            _ if is_first => self.sources.iter().for_each(TensorRows::will_need),
            _ => {}
        }
    }

    /// The values of a region, row by row.
    fn read(&self, at: &Region, out: &mut [f32], turned: &mut Vec<f32>) -> Result<(), Error> {
        let place = self.file.place(at.buffer, self.mesh);
        let (rows, columns) = (self.layout.rows(), self.layout.columns());
        let shifted = |by: usize| at.rows.start + by..at.rows.end + by;
        match &self.file.form {
            Form::Rows => {
                let first = match self.file.split {
                    Split::Columns(_) => place[1] * rows,
                    _ => 0,
                };
                let column = match self.file.split {
                    Split::ColumnsThenRows => place[1] * self.mesh.size(Axis::Rows) + place[0],
                    _ => 0,
                };
                let column = column * columns;
                let columns = column + at.columns.start..column + at.columns.end;
                self.read_source(0, shifted(first), columns, out)
            }
            Form::Stacked => {
                let source = at.buffer * self.layout.matrices() + at.matrix;
                self.read_source(source, at.rows.clone(), at.columns.clone(), out)
            }
            Form::Ring { packing, projection } => self.read_ring(at, (*packing, *projection), out, turned),
            Form::Heads { of, rows: taken, turned: false } => {
                let head = place[1] * self.layout.matrices() + at.matrix;
                self.read_source(0, shifted(head * of + taken.start), at.columns.clone(), out)
            }
            Form::Heads { of, rows: taken, turned: true } => {
                let first = at.matrix * of;
                let sides = (first + taken.start..first + taken.end, at.rows.clone());
                self.read_turned(0, sides, &mut out[..], turned)
            }
            Form::Turned => {
                // Dimension 1 of three, or the last but one: the inputs are cut.
                let cuts_inputs = matches!(self.file.split, Split::Columns(1 | -2));
                let inputs = shifted(if cuts_inputs { place[1] * rows } else { 0 });
                let mut first = 0;
                for (source, spec) in self.file.sources.iter().enumerate() {
                    let outputs = match cuts_inputs {
                        true => 0..spec.shape[0],
                        false => place[1] * columns..(place[1] + 1) * columns,
                    };
                    let width = outputs.len();
                    self.read_turned(source, (outputs, inputs.clone()), &mut out[first..], turned)?;
                    first += width;
                }
                Ok(())
            }
            Form::Sticks => {
                let first = match self.file.split {
                    Split::Columns(_) => place[1] * rows,
                    _ => 0,
                };
                let elements = shifted(first);
                self.read_source(0, 0..1, elements.start * columns..elements.end * columns, out)
            }
            Form::GateBias => self.read_bias(at, out),
        }
    }

    /// Values of a source, row by row.
    fn read_source(
        &self,
        source: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        self.sources[source].read(rows.clone(), cols.clone(), self.kernels, out);
        if are_finite(out) {
            return Ok(());
        }
        let index = out.iter().position(|value| !value.is_finite()).expect("one is not");
        let at = [rows.start + index / cols.len(), cols.start + index % cols.len()];
        Err(Error::Checkpoint(dsv3_runtime::Error::Tensor {
            name: self.file.sources[source].source.clone(),
            message: format!("expected finite values, got {} at {at:?}", out[index]),
        }))
    }

    /// Values of a source whose columns (`inputs`) are rows of the shard: into the columns of `out` from its first on, as
    /// many as there are `outputs`.
    fn read_turned(
        &self,
        source: usize,
        (outputs, inputs): (Range<usize>, Range<usize>),
        out: &mut [f32],
        turned: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let columns = self.layout.columns();
        turned.resize(TURNED_ROWS * inputs.len(), 0.0);
        for first in outputs.clone().step_by(TURNED_ROWS) {
            let rows = first..outputs.end.min(first + TURNED_ROWS);
            let values = &mut turned[..rows.len() * inputs.len()];
            self.read_source(source, rows.clone(), inputs.clone(), values)?;
            let column = first - outputs.start;
            for (input, out) in out.chunks_mut(columns).take(inputs.len()).enumerate() {
                let out = &mut out[column..column + rows.len()];
                for (value, row) in out.iter_mut().zip(values.chunks_exact(inputs.len())) {
                    *value = row[input];
                }
            }
        }
        Ok(())
    }

    /// Tiles of a block of the ring, each from where it stands in an expert; padding is zeros.
    fn read_ring(
        &self,
        at: &Region,
        (packing, projection): (RingPacking, RingProjection),
        out: &mut [f32],
        turned: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let tile = TILE as usize;
        let (blocks, of_expert) = match projection {
            RingProjection::Up => (packing.up_blocks()[0], 2),
            RingProjection::Down => (packing.down_blocks()[0], 1),
        };
        let experts = self.layout.matrices() / (ring::CORES * blocks);
        let (block, expert) = (at.matrix % blocks, at.matrix / blocks % experts);
        let core = at.matrix / (blocks * experts);
        let first = (at.buffer * experts + expert) * of_expert;
        let tile_at = |row, column| match projection {
            RingProjection::Up => packing.up_tile(core, block, [row, column]),
            RingProjection::Down => packing.down_tile(core, block, [row, column]),
        };
        out.fill(0.0);
        let rows = at.rows.start / tile..at.rows.end / tile;
        for column in 0..ring::BLOCK_COLUMNS {
            let mut row = rows.start;
            while row < rows.end {
                let Some(from) = tile_at(row, column) else {
                    row += 1;
                    continue;
                };
                // Tiles of inputs that follow one another are read together.
                let follows = |count: &usize| {
                    let next = tile_at(row + count, column);
                    next.is_some_and(|next| next == SourceTile { input: from.input + count, ..from })
                };
                let count = 1 + (1..rows.end - row).take_while(follows).count();
                let sides = (
                    from.output * tile..(from.output + 1) * tile,
                    from.input * tile..(from.input + count) * tile,
                );
                let start = (row - rows.start) * tile * self.layout.columns() + column * tile;
                self.read_turned(first + from.source, sides, &mut out[start..], turned)?;
                row += count;
            }
        }
        Ok(())
    }

    /// The bias less its mean, which changes no choice and keeps what bf16 can tell apart near to zero.
    fn read_bias(&self, at: &Region, out: &mut [f32]) -> Result<(), Error> {
        let side = gate_side();
        let mut bias = vec![0.0; side * side];
        self.read_source(0, 0..1, 0..bias.len(), &mut bias)?;
        let mean = (bias.iter().copied().map(f64::from).sum::<f64>() / bias.len() as f64) as f32;
        let columns = self.layout.columns();
        for (row, out) in at.rows.clone().zip(out.chunks_exact_mut(columns)) {
            for (column, value) in out.iter_mut().enumerate() {
                let is_padding = row >= side || column >= side;
                *value = if is_padding { 0.0 } else { bias[column * side + row] - mean };
            }
        }
        Ok(())
    }
}

/// Whether no value is infinite or no number, in a loop that compilers make one of vectors of: magnitudes compare as their
/// bits do.
fn are_finite(values: &[f32]) -> bool {
    let mut largest = 0;
    for value in values {
        largest = largest.max(value.to_bits() as i32 & i32::MAX);
    }
    largest < f32::INFINITY.to_bits() as i32
}

/// Bytes that a device holds of a weight, padding of banks included.
///
/// # Panics
/// Of a layout that is not packed here: no weight has one.
pub(crate) fn device_bytes(weight: &TensorSpec) -> u64 {
    let layout = weight.shard_layout().expect("weights have layouts that are packed here");
    match (&weight.memory_config.shard_spec, weight.page.layout()) {
        (Some(spec), Layout::Tile) => {
            let [height, width] = spec.shape.map(|side| side as usize / TILE as usize);
            let tile = layout.band_bytes() / layout.band_tiles();
            spec.grid.cores() * (height * width * tile) as u64
        }
        _ => layout.bytes() as u64,
    }
}
