//! What a spec says of one rank: its part of the tensor, and what that takes.

use super::rows::{Window, natural_format, part_block_cols};
use crate::{Checkpoint, Dtype, Error, WeightSpec, weight::scales_shape};
use dsv3_kernels::Format;
use dsv3_mesh::{Layout, Rank};
use std::ops::Range;

impl WeightSpec {
    pub(super) fn error(&self, message: String) -> Error {
        Error::Tensor { name: self.source.clone(), message }
    }

    /// The range of the split dimension that a rank holds; as [`dsv3_mesh::Placement::local_range`].
    ///
    /// # Errors
    /// If the dimension does not divide; names the mesh.
    pub fn local_range(&self, layout: Layout, rank: Rank) -> Result<Option<(usize, Range<usize>)>, Error> {
        let range = self.placement.local_range(&self.source, &self.shape, layout.mesh, rank);
        range.map_err(|source| Error::Mesh { layout, source })
    }

    /// The shape of a rank's part; as [`dsv3_mesh::Placement::local_shape`].
    ///
    /// # Errors
    /// As [`local_range`](Self::local_range).
    pub fn local_shape(&self, layout: Layout, rank: Rank) -> Result<Vec<usize>, Error> {
        let mut shape = self.shape.clone();
        if let Some((dim, range)) = self.local_range(layout, rank)? {
            shape[dim] = range.len();
        }
        Ok(shape)
    }

    /// Bytes that a rank holds of it in a format, its block scales included: those of a [`Weight`](crate::Weight) that
    /// is loaded. Vectors are held in f32.
    ///
    /// # Errors
    /// A part that does not divide, or cannot have that format.
    pub fn local_bytes(&self, layout: Layout, rank: Rank, format: Format) -> Result<u64, Error> {
        let part = self.local_range(layout, rank)?;
        let Some(Window { rows, cols }) = Window::new(&self.shape, part.as_ref()) else {
            return Err(self.error(format!("expected a vector or a matrix, got shape {:?}", self.shape)));
        };
        let format = if self.shape.len() == 1 { Format::F32 } else { format };
        let bytes = format.matrix_bytes(rows.len(), cols.len());
        let bytes =
            bytes.ok_or_else(|| self.error(format!("has no {format} of {} x {}", rows.len(), cols.len())))?;
        let scales = match (format, self.scale_block) {
            (Format::Fp8, Some([block_rows, block_cols])) if !rows.is_empty() => {
                let block = [block_rows, part_block_cols(&cols, block_cols)];
                let grid = scales_shape([rows.start % block_rows + rows.len(), cols.len()], block);
                grid[0] * grid[1] * size_of::<f32>()
            }
            _ => 0,
        };
        Ok((bytes + scales) as u64)
    }

    /// The format that a rank's part of it has where none is asked for, by the headers of a checkpoint.
    ///
    /// # Errors
    /// A tensor that is missing or of an unsupported type, a part that does not divide.
    pub fn stored_format(
        &self,
        checkpoint: &Checkpoint,
        layout: Layout,
        rank: Rank,
    ) -> Result<Format, Error> {
        let dtype = |name: &str| Ok::<Dtype, Error>(checkpoint.tensor(name)?.info.dtype);
        let shape = self.local_shape(layout, rank)?;
        match checkpoint.join(&self.source) {
            Some(parts) => {
                let dtypes = parts.iter().map(|part| dtype(&part.tensor)).collect::<Result<Vec<_>, _>>()?;
                Ok(natural_format(&dtypes, &shape))
            }
            None => Ok(natural_format(&[dtype(&self.source)?], &shape)),
        }
    }
}
