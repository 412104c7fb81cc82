//! The tensor that a weight is made from: its stored format, and its rows as f32, whatever it is stored as.

use crate::{
    Bytes, Checkpoint, Dtype, Error, Extent, Location, RawTensor, SavedScales, WeightSpec, checkpoint::Part,
    validate_scales,
};
use dsv3_kernels::{BlockScales, Format, Kernels, MatrixView, f16_to_f32};
use std::ops::Range;

/// Where the values of a weight come from.
pub(super) enum Rows {
    /// One tensor that kernels read as it lies there.
    Stored(Stored),
    /// One tensor of halves, which no kernel reads.
    Halves(RawTensor),
    /// Several tensors, one under the other.
    /// Each part's rows, what they are read from, and whether it lies transposed.
    Joined(Vec<(usize, Rows, bool)>),
}

/// A tensor in one of the formats.
pub(super) struct Stored {
    pub(super) tensor: RawTensor,
    pub(super) format: Format,
    /// Of an FP8 tensor.
    scales: Option<(RawTensor, [usize; 2])>,
}

impl Rows {
    /// The tensor of a spec.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or of an unsupported type, or scales that are not numbers.
    pub(super) fn find(spec: &WeightSpec, checkpoint: &Checkpoint) -> Result<Self, Error> {
        if let Some(parts) = checkpoint.join(&spec.source) {
            return Self::joined(spec, checkpoint, parts);
        }
        let tensor = checkpoint.tensor(&spec.source)?;
        if tensor.info.shape != spec.shape {
            return Err(spec.error(format!(
                "expected shape {:?}, as config.json says, got {:?}",
                spec.shape, tensor.info.shape
            )));
        }
        Self::of(spec, checkpoint, tensor)
    }

    /// The rows of one tensor.
    fn of(spec: &WeightSpec, checkpoint: &Checkpoint, tensor: RawTensor) -> Result<Self, Error> {
        match tensor.info.dtype {
            Dtype::F16 => Ok(Self::Halves(tensor)),
            _ => Stored::new(spec, checkpoint, tensor).map(Self::Stored),
        }
    }

    fn joined(spec: &WeightSpec, checkpoint: &Checkpoint, parts: &[Part]) -> Result<Self, Error> {
        let mut rows = 0;
        let mut joined = Vec::with_capacity(parts.len());
        for part in parts {
            let tensor = checkpoint.tensor(&part.tensor)?;
            let shape = match (&tensor.info.shape[..], part.is_transposed) {
                (&[rows, cols], false) | (&[cols, rows], true) => [rows, cols],
                (shape, _) => return Err(spec.error(format!("its part {} has shape {shape:?}", part.tensor))),
            };
            if spec.shape.get(1) != Some(&shape[1]) {
                return Err(spec.error(format!(
                    "expected {:?}, its part {} has {} columns",
                    spec.shape, part.tensor, shape[1]
                )));
            }
            rows += shape[0];
            joined.push((part.rows(&tensor), Self::of(spec, checkpoint, tensor)?, part.is_transposed));
        }
        if spec.shape[0] != rows {
            return Err(spec.error(format!("expected shape {:?}, its parts have {rows} rows", spec.shape)));
        }
        Ok(Self::Joined(joined))
    }

    /// The format in which the values lie in the checkpoint; none where they cannot be used in place.
    pub(super) fn stored_format(&self) -> Option<Format> {
        match self {
            Self::Stored(stored) => Some(stored.format),
            Self::Halves(_) | Self::Joined(_) => None,
        }
    }

    /// The format to write where none is asked for: without loss, but for joined parts that are in blocks. Those lie
    /// across the rows, in part, so they are put into the blocks of the finest format, q8_0.
    pub(super) fn natural_format(&self) -> Format {
        match self {
            Self::Stored(stored) => stored.format,
            Self::Halves(_) => Format::F32,
            Self::Joined(parts) => {
                let mut formats = parts.iter().map(|(_, part, _)| part.stored_format());
                if formats.clone().all(|format| format == Some(Format::Bf16)) {
                    Format::Bf16
                } else if formats.any(|format| matches!(format, Some(Format::Q8_0 | Format::Q4K))) {
                    Format::Q8_0
                } else {
                    Format::F32
                }
            }
        }
    }

    /// Bytes in the checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Stored(stored) => stored.bytes(),
            Self::Halves(tensor) => tensor.info.length,
            Self::Joined(parts) => parts.iter().map(|(_, part, _)| part.bytes()).sum(),
        }
    }

    /// The ranges of rows that are read at once: of joined tensors a part, else as many as `rows` says.
    pub(super) fn pieces(&self, all: usize, rows: usize) -> Vec<Range<usize>> {
        let starts: Vec<usize> = match self {
            Self::Stored(_) | Self::Halves(_) => (0..all).step_by(rows.max(1)).collect(),
            Self::Joined(parts) => {
                let next = |start: &mut usize, (rows, ..): &(usize, Self, bool)| {
                    let first = *start;
                    *start += rows;
                    Some(first)
                };
                parts.iter().scan(0, next).collect()
            }
        };
        let ends = starts.iter().skip(1).copied().chain([all]);
        starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
    }

    /// The values of a range that [`pieces`](Self::pieces) gave, `[rows, cols]`.
    pub(super) fn read(&self, rows: Range<usize>, cols: usize, kernels: &Kernels, out: &mut [f32]) {
        match self {
            Self::Stored(stored) => stored.read(rows, kernels, out),
            Self::Halves(tensor) => {
                let halves = &tensor.bytes.as_slice().as_chunks::<2>().0[rows.start * cols..rows.end * cols];
                for (value, &half) in out.iter_mut().zip(halves) {
                    *value = f16_to_f32(u16::from_le_bytes(half));
                }
            }
            Self::Joined(parts) => {
                let index = self.pieces(usize::MAX, 0).partition_point(|piece| piece.start <= rows.start) - 1;
                let (_, part, is_transposed) = &parts[index];
                if *is_transposed {
                    let mut turned = vec![0.0; out.len()];
                    part.read(0..cols, rows.len(), kernels, &mut turned);
                    transpose(&turned, rows.len(), out);
                } else {
                    part.read(0..rows.len(), cols, kernels, out);
                }
            }
        }
    }
}

/// `[cols, rows]` to `[rows, cols]`.
fn transpose(values: &[f32], rows: usize, out: &mut [f32]) {
    let cols = values.len() / rows.max(1);
    for (row, out) in out.chunks_exact_mut(cols.max(1)).enumerate() {
        for (col, value) in out.iter_mut().enumerate() {
            *value = values[col * rows + row];
        }
    }
}

impl Stored {
    fn new(spec: &WeightSpec, checkpoint: &Checkpoint, tensor: RawTensor) -> Result<Self, Error> {
        let format = match tensor.info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::Bf16 => Format::Bf16,
            Dtype::F8E4M3 => Format::Fp8,
            Dtype::Q8_0 => Format::Q8_0,
            Dtype::Q4K => Format::Q4K,
            dtype @ (Dtype::F16 | Dtype::Unsupported(_) | Dtype::UnsupportedGgml(_)) => {
                return Err(spec.error(format!("cannot be read as {dtype} here")));
            }
        };
        let scales = match format {
            Format::Fp8 => {
                let block = spec.scale_block.ok_or_else(|| {
                    spec.error("is F8_E4M3, but config.json has no quantization_config".to_owned())
                })?;
                let scales = checkpoint.scales(&tensor.info.name, block)?;
                validate_scales(&scales.info, scales.bytes.as_slice())?;
                Some((scales, block))
            }
            _ => None,
        };
        Ok(Self { tensor, format, scales })
    }

    fn bytes(&self) -> u64 {
        self.tensor.info.length + self.scales.as_ref().map_or(0, |(scales, _)| scales.info.length)
    }

    /// Where the tensor lies, and its scales.
    pub(super) fn place(&self, checkpoint: &Checkpoint) -> (Extent, Option<SavedScales>) {
        let in_checkpoint = |tensor: &RawTensor| {
            let info = &tensor.info;
            let file = checkpoint.shard(info).name().into();
            Extent { location: Location::Checkpoint, file, offset: info.offset, length: info.length }
        };
        let scales = self.scales.as_ref();
        let scales = scales.map(|(scales, block)| SavedScales { block: *block, data: in_checkpoint(scales) });
        (in_checkpoint(&self.tensor), scales)
    }

    fn read(&self, rows: Range<usize>, kernels: &Kernels, out: &mut [f32]) {
        let [all, cols] = match self.tensor.info.shape[..] {
            [length] => [1, length],
            [rows, cols] => [rows, cols],
            ref shape => unreachable!("checked against a spec's vector or matrix: {shape:?}"),
        };
        let scales = self.scales.as_ref().map(|(scales, block)| BlockScales {
            bytes: Bytes::as_slice(&scales.bytes),
            block_rows: block[0],
            block_cols: block[1],
            grid_cols: cols.div_ceil(block[1]),
            first_row: 0,
        });
        let view = MatrixView::from_bytes(self.format, self.tensor.bytes.as_slice(), all, cols, scales);
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            kernels.dequantize_row(&view, row, out);
        }
    }
}
