//! The life of a weight: what to do with it, where it lies, and its bytes in place.

use crate::{Bytes, Error, WeightKind};
use dsv3_kernels::{BlockScales, Format, MatrixView};
use dsv3_mesh::Placement;
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// What stage 1 is to do with one weight. Made from the model's config alone, without a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightSpec {
    /// The tensor's name in the checkpoint.
    pub source: String,
    /// What it is for; none for what is never quantised: norms, biases, the gate.
    pub kind: Option<WeightKind>,
    /// The whole tensor's shape.
    pub shape: Vec<usize>,
    /// How it lies on the mesh.
    pub placement: Placement,
    /// Rows and columns of an FP8 block, where the model is quantised.
    pub scale_block: Option<[usize; 2]>,
}

/// Where a weight lies: the leaf of a WeightConfig.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedWeight {
    /// The tensor's name in the checkpoint.
    pub source: String,
    /// How its elements are stored.
    pub format: Format,
    /// This device's part of the tensor.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub data: Extent,
    /// The block scales of an FP8 matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<SavedScales>,
}

/// Where the block scales of an FP8 matrix lie: f32,
/// `[ceil((first row + rows) / block rows), ceil(cols / block columns)]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedScales {
    /// Rows and columns of a block.
    pub block: [usize; 2],
    /// The row of the first block that the matrix begins at: a device's part may begin inside a block.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_row: usize,
    /// Their bytes.
    pub data: Extent,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A run of bytes in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// The directory that `file` is relative to.
    pub location: Location,
    /// The file.
    pub file: PathBuf,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// A directory that weights lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// The checkpoint: the bytes are used in place.
    Checkpoint,
    /// The cache: stage 1 wrote them.
    Cache,
}

/// A weight ready to compute with.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Norm weights and biases: few values, widened to f32 when they are loaded.
    Vector(Arc<[f32]>),
    /// A matrix, read in place in the format it is stored in.
    Matrix(Matrix),
}

/// A weight matrix `[rows, cols]` over bytes that lie in a mapped file, or in a copy of it.
#[derive(Clone, Debug)]
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Bytes,
    scales: Option<Scales>,
}

/// The block scales of an FP8 matrix.
#[derive(Clone, Debug)]
struct Scales {
    block: [usize; 2],
    first_row: usize,
    bytes: Bytes,
    /// Whether they are moderate, once they were used: to look at all weights' scales before would read a page for each.
    moderate: OnceLock<bool>,
}

impl SavedWeight {
    /// Bytes of the elements and their scales.
    pub fn bytes(&self) -> u64 {
        self.data.length.saturating_add(self.scales.as_ref().map_or(0, |scales| scales.data.length))
    }

    /// Checks that shape, format and byte counts agree with each other.
    ///
    /// # Errors
    /// Names the tensor, with expected and got.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Tensor { name: self.source.clone(), message });
        let expected = match self.shape[..] {
            [length] => self.format.matrix_bytes(1, length),
            [rows, cols] => self.format.matrix_bytes(rows, cols),
            ref shape => return fail(format!("expected a vector or a matrix, got shape {shape:?}")),
        };
        if expected.map(|n| n as u64) != Some(self.data.length) {
            return fail(format!(
                "{:?} of {:?} does not take {} bytes",
                self.shape, self.format, self.data.length
            ));
        }
        match (self.format, &self.scales, &self.shape[..]) {
            (Format::Fp8, Some(scales), &[rows, cols]) if !scales.block.contains(&0) => {
                let rows = rows.checked_add(scales.first_row).filter(|_| scales.first_row < scales.block[0]);
                let Some(rows) = rows else {
                    return fail(format!(
                        "row {} is none of a block's {}",
                        scales.first_row, scales.block[0]
                    ));
                };
                let grid = scales_shape([rows, cols], scales.block);
                let expected = Format::F32.matrix_bytes(grid[0], grid[1]);
                if expected.map(|n| n as u64) == Some(scales.data.length) {
                    Ok(())
                } else {
                    fail(format!("scales {grid:?} do not take {} bytes", scales.data.length))
                }
            }
            (Format::Fp8, ..) => fail("FP8 is for matrices with block scales".to_owned()),
            (Format::F32 | Format::Bf16, None, _) | (_, None, &[_, _]) => Ok(()),
            (format, None, _) => fail(format!("{format} is for matrices")),
            (format, Some(_), _) => fail(format!("{format:?} has no block scales")),
        }
    }
}

/// The grid of scales of a matrix: `[ceil(rows / block rows), ceil(cols / block columns)]`.
pub(crate) fn scales_shape([rows, cols]: [usize; 2], block: [usize; 2]) -> [usize; 2] {
    [rows.div_ceil(block[0]), cols.div_ceil(block[1])]
}

impl Weight {
    /// A matrix over bytes that come from no file; of FP8 it is a block, with a scale of one.
    #[cfg(test)]
    pub(crate) fn in_memory(format: Format, shape: [usize; 2], bytes: Vec<u8>) -> Self {
        let extent = |length| Extent { location: Location::Cache, file: "w".into(), offset: 0, length };
        let data = extent(bytes.len() as u64);
        let scales = SavedScales { data: extent(4), block: shape, first_row: 0 };
        let scales = (format == Format::Fp8).then_some(scales);
        let saved = SavedWeight { source: "w".into(), format, shape: shape.to_vec(), data, scales };
        let one = Bytes::from(1.0_f32.to_le_bytes().to_vec());
        Self::new(&saved, Bytes::from(bytes), saved.scales.is_some().then_some(one))
    }

    /// The weight over its bytes.
    pub(crate) fn new(saved: &SavedWeight, bytes: Bytes, scales: Option<Bytes>) -> Self {
        match (&saved.shape[..], saved.format) {
            (&[_], Format::F32) => Self::Vector(widen(bytes.as_slice(), f32::from_le_bytes)),
            (&[_], Format::Bf16) => Self::Vector(widen(bytes.as_slice(), |bytes| {
                dsv3_kernels::bf16_to_f32(u16::from_le_bytes(bytes))
            })),
            (&[rows, cols], format) => {
                let scales = saved.scales.as_ref().zip(scales).map(|(saved, bytes)| {
                    let &SavedScales { block, first_row, .. } = saved;
                    Scales { block, first_row, bytes, moderate: OnceLock::new() }
                });
                Self::Matrix(Matrix { format, rows, cols, bytes, scales })
            }
            (shape, format) => unreachable!("validated as a vector or a matrix: {shape:?} of {format:?}"),
        }
    }

    /// Bytes that a pass over the weight reads: of a matrix its elements and block scales, of a vector its f32 values.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Vector(values) => size_of_val::<[f32]>(values) as u64,
            Self::Matrix(matrix) => {
                let scales = matrix.scales.as_ref().map_or(0, |scales| scales.bytes.len());
                (matrix.bytes.len() + scales) as u64
            }
        }
    }

    /// What a pass over the weight reads of files or shared memory: a matrix's elements and block scales. A vector's
    /// values are copies.
    pub fn storage(&self) -> impl Iterator<Item = &Bytes> {
        let matrix = match self {
            Self::Vector(_) => None,
            Self::Matrix(matrix) => Some(matrix),
        };
        matrix.into_iter().flat_map(|matrix| {
            std::iter::once(&matrix.bytes).chain(matrix.scales.as_ref().map(|scales| &scales.bytes))
        })
    }

    /// The same weight over other bytes with the same content.
    pub(crate) fn over(&self, mut place: impl FnMut(&Bytes) -> Bytes) -> Self {
        let mut weight = self.clone();
        if let Self::Matrix(matrix) = &mut weight {
            matrix.bytes = place(&matrix.bytes);
            if let Some(scales) = &mut matrix.scales {
                scales.bytes = place(&scales.bytes);
            }
        }
        weight
    }

    /// The values of a vector, `[length]`.
    ///
    /// # Panics
    /// If the weight is a matrix: a module's specs and forwards contradict each other.
    pub fn vector(&self) -> &[f32] {
        match self {
            Self::Vector(values) => values,
            Self::Matrix(matrix) => panic!("a vector is asked of a {}x{} matrix", matrix.rows, matrix.cols),
        }
    }

    /// The matrix, `[rows, cols]`.
    ///
    /// # Panics
    /// If the weight is a vector: a module's specs and forwards contradict each other.
    pub fn matrix(&self) -> MatrixView<'_> {
        match self {
            Self::Matrix(matrix) => matrix.view(),
            Self::Vector(values) => panic!("a matrix is asked of a vector of {}", values.len()),
        }
    }
}

impl Matrix {
    fn view(&self) -> MatrixView<'_> {
        let scales = self.scales.as_ref().map(|scales| BlockScales {
            bytes: scales.bytes.as_slice(),
            block_rows: scales.block[0],
            block_cols: scales.block[1],
            grid_cols: self.cols.div_ceil(scales.block[1]),
            first_row: scales.first_row,
        });
        let view = MatrixView::from_bytes(self.format, self.bytes.as_slice(), self.rows, self.cols, scales);
        match &self.scales {
            Some(scales) if *scales.moderate.get_or_init(|| view.has_moderate_scales()) => {
                view.with_moderate_scales()
            }
            _ => view,
        }
    }
}

fn widen<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Arc<[f32]> {
    bytes.as_chunks::<N>().0.iter().map(|&bytes| convert(bytes)).collect()
}
