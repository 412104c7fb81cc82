//! The tensor that a weight is made from: its stored format, and its rows as f32, whatever it is stored as.

use crate::{
    Bytes, Checkpoint, Dtype, Error, Extent, GgmlBlocks, Location, RawTensor, SavedScales, WeightSpec,
    checkpoint::Part, validate_scales,
};
use dsv3_kernels::{BlockScales, Format, Kernels, MatrixView, QUANTIZE_LIMIT, f16_to_f32};
use std::ops::Range;

/// Where the values of a weight come from.
pub(super) enum Rows {
    /// One tensor that kernels read as it lies there.
    Stored(Stored),
    /// One tensor of halves, which no kernel reads.
    Halves(RawTensor),
    /// One tensor in blocks of ggml's that no kernel reads.
    Blocks(RawTensor, GgmlBlocks),
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
            Dtype::Ggml(blocks) => Ok(Self::Blocks(tensor, blocks)),
            _ => Stored::new(spec, checkpoint, tensor).map(Self::Stored),
        }
    }

    fn joined(spec: &WeightSpec, checkpoint: &Checkpoint, parts: &[Part]) -> Result<Self, Error> {
        let mut rows = 0;
        let mut joined = Vec::with_capacity(parts.len());
        for part in parts {
            let tensor = checkpoint.tensor(&part.tensor)?;
            let Some([part_rows, cols]) = part.shape(&tensor.info) else {
                let shape = &tensor.info.shape;
                return Err(spec.error(format!("its part {} has shape {shape:?}", part.tensor)));
            };
            if spec.shape.get(1) != Some(&cols) {
                return Err(spec.error(format!(
                    "expected {:?}, its part {} has {cols} columns",
                    spec.shape, part.tensor
                )));
            }
            rows += part_rows;
            joined.push((part_rows, Self::of(spec, checkpoint, tensor)?, part.is_transposed));
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
            Self::Halves(_) | Self::Blocks(..) | Self::Joined(_) => None,
        }
    }

    /// The type of the tensor, or of each part.
    fn dtypes(&self) -> Vec<Dtype> {
        match self {
            Self::Stored(Stored { tensor, .. }) | Self::Halves(tensor) | Self::Blocks(tensor, _) => {
                vec![tensor.info.dtype]
            }
            Self::Joined(parts) => parts.iter().flat_map(|(_, part, _)| part.dtypes()).collect(),
        }
    }

    /// The format to write where none is asked for, of a device's part of this shape.
    pub(super) fn natural_format(&self, shape: &[usize]) -> Format {
        natural_format(&self.dtypes(), shape)
    }

    /// The names of the types that it has, where there are blocks among them that no kernel reads: `q5_0 and q4_K`.
    pub(super) fn unread_blocks(&self) -> Option<String> {
        let dtypes = self.dtypes();
        dtypes.iter().any(|dtype| matches!(dtype, Dtype::Ggml(_))).then(|| {
            let mut names: Vec<String> = Vec::new();
            for name in dtypes.iter().map(Dtype::to_string) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names.join(" and ")
        })
    }

    /// Bytes in the checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Stored(stored) => stored.bytes(),
            Self::Halves(tensor) | Self::Blocks(tensor, _) => tensor.info.length,
            Self::Joined(parts) => parts.iter().map(|(_, part, _)| part.bytes()).sum(),
        }
    }

    /// Asks the system to read all of it soon.
    pub(super) fn will_need(&self) {
        match self {
            Self::Stored(stored) => stored.tensor.bytes.will_need(),
            Self::Halves(tensor) | Self::Blocks(tensor, _) => tensor.bytes.will_need(),
            Self::Joined(parts) => parts.iter().for_each(|(_, part, _)| part.will_need()),
        }
    }

    /// The ranges of a window's rows that are read at once: of joined tensors what lies in one part, else as many as
    /// `rows` says.
    pub(super) fn pieces(&self, all: Range<usize>, rows: usize) -> Vec<Range<usize>> {
        match self {
            Self::Stored(_) | Self::Halves(_) | Self::Blocks(..) => {
                let starts = all.clone().step_by(rows.max(1));
                starts.map(|start| start..all.end.min(start + rows.max(1))).collect()
            }
            Self::Joined(parts) => {
                let mut first = 0;
                let pieces = parts.iter().map(|(rows, ..)| {
                    let part = first..first + rows;
                    first = part.end;
                    part.start.max(all.start)..part.end.min(all.end)
                });
                pieces.filter(|piece| !piece.is_empty()).collect()
            }
        }
    }

    /// The values of a window whose rows [`pieces`](Self::pieces) gave, `[rows, cols]`.
    pub(super) fn read(&self, window: &Window, kernels: &Kernels, out: &mut [f32]) {
        let Window { rows, cols } = window;
        match self {
            Self::Stored(stored) => stored.read(window, kernels, out),
            Self::Halves(tensor) => {
                let halves = tensor.bytes.as_slice().as_chunks::<2>().0;
                let stride = as_matrix(&tensor.info.shape)[1];
                for (row, out) in rows.clone().zip(out.chunks_exact_mut(cols.len().max(1))) {
                    let halves = &halves[row * stride..][cols.clone()];
                    for (value, &half) in out.iter_mut().zip(halves) {
                        *value = f16_to_f32(u16::from_le_bytes(half));
                    }
                }
            }
            Self::Blocks(tensor, blocks) => read_blocks(tensor, *blocks, window, out),
            Self::Joined(parts) => {
                let mut first = 0;
                let part = parts.iter().find(|(rows_of_part, ..)| {
                    let is_before = first + rows_of_part <= rows.start;
                    first += if is_before { *rows_of_part } else { 0 };
                    !is_before
                });
                let (_, part, is_transposed) = part.expect("a piece lies in one part");
                let rows = rows.start - first..rows.end - first;
                if *is_transposed {
                    let mut turned = vec![0.0; out.len()];
                    let count = rows.len();
                    part.read(&Window { rows: cols.clone(), cols: rows }, kernels, &mut turned);
                    transpose(&turned, count, out);
                } else {
                    part.read(&Window { rows, cols: cols.clone() }, kernels, out);
                }
            }
        }
    }
}

impl Rows {
    /// The stored values of a window, whose rows [`pieces`](Self::pieces) gave, in a format: copied where they are in
    /// it, else by way of f32. Gives the row and column of a value that cannot be stored, if there is one.
    pub(super) fn encode(
        &self,
        window: &Window,
        format: Format,
        kernels: &Kernels,
        out: &mut [u8],
    ) -> Result<(), [usize; 2]> {
        if let Self::Stored(stored) = self
            && stored.format == format
        {
            stored.copy(window, out);
            return Ok(());
        }
        let cols = window.cols.len().max(1);
        let mut values = vec![0.0; window.rows.len() * window.cols.len()];
        self.read(window, kernels, &mut values);
        if let Some(index) = values.iter().position(|value| !is_storable(*value, format)) {
            return Err([window.rows.start + index / cols, window.cols.start + index % cols]);
        }
        let row_bytes = format.bytes(window.cols.len()).max(1);
        for (row, out) in values.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes)) {
            kernels.quantize_row(format, row, out);
        }
        Ok(())
    }

    /// The scales of a window that is copied as it is.
    pub(super) fn copy_scales(&self, window: &Window, format: Format) -> Option<CopiedScales> {
        match self {
            Self::Stored(stored) if stored.format == format => stored.copy_scales(window),
            _ => None,
        }
    }
}

/// The format in which a tensor of a type is written where none is asked for, or parts of several types that are put
/// together; `shape` is that of a device's part.
///
/// Halves are widened without loss, and so are joined parts. Blocks that no kernel reads become those of q8_0: rounded once
/// more, mostly by less than they were before. So do joined parts in blocks, which lie across the rows, in part. Where rows are no whole
/// blocks of q8_0, it is bf16, and vectors are f32, as they are loaded.
pub(super) fn natural_format(dtypes: &[Dtype], shape: &[usize]) -> Format {
    let is_blocks = |dtype: &Dtype| matches!(dtype, Dtype::Q8_0 | Dtype::Q4K | Dtype::Ggml(_));
    let stays = match dtypes {
        [dtype] => dtype.format(),
        parts if parts.iter().all(|dtype| *dtype == Dtype::Bf16) => Some(Format::Bf16),
        _ => None,
    };
    match stays {
        Some(format) => format,
        None if shape.len() == 1 || !dtypes.iter().any(is_blocks) => Format::F32,
        None if shape.last().is_some_and(|cols| cols.is_multiple_of(Format::Q8_0.block_cols())) => {
            Format::Q8_0
        }
        None => Format::Bf16,
    }
}

/// The values of a window of a tensor in blocks: whole blocks are decoded, and what the window leaves out of them is left
/// out.
fn read_blocks(tensor: &RawTensor, blocks: GgmlBlocks, window: &Window, out: &mut [f32]) {
    let Window { rows, cols } = window;
    let (block_cols, block_bytes) = (blocks.block_cols(), blocks.block_bytes());
    let row_bytes = as_matrix(&tensor.info.shape)[1] / block_cols * block_bytes;
    let whole = cols.start / block_cols..cols.end.div_ceil(block_cols);
    let bytes_of_row = whole.start * block_bytes..whole.end * block_bytes;
    let skipped = cols.start - whole.start * block_cols;
    let mut values = vec![0.0; whole.len() * block_cols];
    for (row, out) in rows.clone().zip(out.chunks_exact_mut(cols.len().max(1))) {
        let bytes = &tensor.bytes.as_slice()[row * row_bytes..][bytes_of_row.clone()];
        if out.len() == values.len() {
            blocks.decode(bytes, out);
        } else {
            blocks.decode(bytes, &mut values);
            out.copy_from_slice(&values[skipped..][..cols.len()]);
        }
    }
}

/// How many columns of an FP8 tensor's part share a scale, whose blocks are this wide. They stay as wide as they are
/// where the part begins with one or lies within one; else they become as wide as what divides both the block and what
/// the part leaves out of its first one.
pub(super) fn part_block_cols(cols: &Range<usize>, block_cols: usize) -> usize {
    let skipped = cols.start % block_cols;
    let is_whole = skipped == 0 || skipped + cols.len() <= block_cols;
    if is_whole { block_cols } else { gcd(skipped, block_cols) }
}

/// Whether a format can hold a value; blocks are scaled by halves.
fn is_storable(value: f32, format: Format) -> bool {
    let limit = if format.block_cols() > 1 { QUANTIZE_LIMIT } else { f32::INFINITY };
    value.abs() < limit // false for NaN
}

/// The scales of a part of an FP8 tensor as those of a matrix of its own.
pub(super) struct CopiedScales {
    /// Rows and columns of a block.
    pub(super) block: [usize; 2],
    /// The row of the first block that the part begins at.
    pub(super) first_row: usize,
    /// The grid.
    pub(super) bytes: Vec<u8>,
}

/// The part of a tensor that a device holds. A vector is a matrix of one row.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl Window {
    /// Of a tensor of this shape, whose dimension `part.0` is cut to the range `part.1`; none for what is neither vector
    /// nor matrix.
    pub(super) fn new(shape: &[usize], part: Option<&(usize, Range<usize>)>) -> Option<Self> {
        let of = |dim: usize| match part {
            Some((cut, range)) if *cut == dim => range.clone(),
            _ => 0..shape[dim],
        };
        match shape.len() {
            1 => Some(Self { rows: 0..1, cols: of(0) }),
            2 => Some(Self { rows: of(0), cols: of(1) }),
            _ => None,
        }
    }
}

/// Rows and columns of a vector or a matrix, which specs make sure that it is.
fn as_matrix(shape: &[usize]) -> [usize; 2] {
    match *shape {
        [length] => [1, length],
        [rows, cols] => [rows, cols],
        ref shape => unreachable!("checked against a spec's vector or matrix: {shape:?}"),
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
        let dtype = tensor.info.dtype;
        let format = dtype.format().ok_or_else(|| spec.error(format!("cannot be read as {dtype} here")))?;
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

    /// Whether a window is whole rows, or a part of a vector: its bytes follow one another, and so do its scales.
    pub(super) fn is_run(&self, window: &Window) -> bool {
        let shape = &self.tensor.info.shape;
        shape.len() == 1 || window.cols.len() == as_matrix(shape)[1]
    }

    /// Where a window whose bytes follow one another lies, and its scales.
    pub(super) fn place(&self, window: &Window, checkpoint: &Checkpoint) -> (Extent, Option<SavedScales>) {
        let Window { rows, cols } = window;
        let in_checkpoint = |tensor: &RawTensor, bytes: Range<usize>| {
            let info = &tensor.info;
            let file = checkpoint.shard(info).name().into();
            let (offset, length) = (info.offset + bytes.start as u64, bytes.len() as u64);
            Extent { location: Location::Checkpoint, file, offset, length }
        };
        let all_cols = as_matrix(&self.tensor.info.shape)[1];
        let start = rows.start * self.format.bytes(all_cols) + self.format.bytes(cols.start);
        let data = in_checkpoint(&self.tensor, start..start + rows.len() * self.format.bytes(cols.len()));
        let scales = self.scales.as_ref().map(|(scales, block)| {
            let row_bytes = all_cols.div_ceil(block[1]) * size_of::<f32>();
            let grid_rows = rows.start / block[0]..rows.end.div_ceil(block[0]);
            let bytes = grid_rows.start * row_bytes..grid_rows.end * row_bytes;
            SavedScales {
                block: *block,
                first_row: rows.start % block[0],
                data: in_checkpoint(scales, bytes),
            }
        });
        (data, scales)
    }

    /// Copies the stored bytes of a window whose columns are whole blocks, row after row.
    fn copy(&self, window: &Window, out: &mut [u8]) {
        let stride = self.format.bytes(as_matrix(&self.tensor.info.shape)[1]);
        let cols = self.format.bytes(window.cols.start)..self.format.bytes(window.cols.end);
        for (row, out) in window.rows.clone().zip(out.chunks_exact_mut(cols.len().max(1))) {
            out.copy_from_slice(&self.tensor.bytes.as_slice()[row * stride..][cols.clone()]);
        }
    }

    /// The scales of a window of an FP8 tensor as those of a matrix of its own.
    fn copy_scales(&self, window: &Window) -> Option<CopiedScales> {
        let (scales, block) = self.scales.as_ref()?;
        let Window { rows, cols } = window;
        let block_cols = part_block_cols(cols, block[1]);
        let grid = scales.bytes.as_slice().as_chunks::<4>().0;
        let stride = as_matrix(&self.tensor.info.shape)[1].div_ceil(block[1]);
        let of_row = |row: usize| {
            cols.clone().step_by(block_cols).flat_map(move |col| grid[row * stride + col / block[1]])
        };
        let grid_rows = rows.start / block[0]..rows.end.div_ceil(block[0]);
        Some(CopiedScales {
            block: [block[0], block_cols],
            first_row: rows.start % block[0],
            bytes: grid_rows.flat_map(of_row).collect(),
        })
    }

    fn read(&self, window: &Window, kernels: &Kernels, out: &mut [f32]) {
        let Window { rows, cols } = window;
        let [all_rows, all_cols] = as_matrix(&self.tensor.info.shape);
        let scales = self.scales.as_ref().map(|(scales, block)| BlockScales {
            bytes: Bytes::as_slice(&scales.bytes),
            block_rows: block[0],
            block_cols: block[1],
            grid_cols: all_cols.div_ceil(block[1]),
            first_row: 0,
        });
        // Whole blocks are read, and what the window leaves out of them is left out.
        let block = scales.map_or(self.format.block_cols(), |scales| scales.block_cols);
        let whole = cols.start / block * block..all_cols.min(cols.end.next_multiple_of(block));
        let wanted = cols.start - whole.start..cols.end - whole.start;
        let bytes = self.tensor.bytes.as_slice();
        let view = MatrixView::from_bytes(self.format, bytes, all_rows, all_cols, scales);
        let view = view.column_range(whole.clone());
        let mut values = vec![0.0; whole.len()];
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(cols.len().max(1))) {
            if wanted == (0..whole.len()) {
                kernels.dequantize_row(&view, row, out);
            } else {
                kernels.dequantize_row(&view, row, &mut values);
                out.copy_from_slice(&values[wanted.clone()]);
            }
        }
    }
}

/// The greatest common divisor.
fn gcd(left: usize, right: usize) -> usize {
    if right == 0 { left } else { gcd(right, left % right) }
}
