//! Where a weight lies on the mesh, as data, and which part of it one rank holds.

use crate::{Axis, MeshShape, Rank};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How a tensor is laid over the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Every device holds the whole.
    Replicated,
    /// Dimension `dim` is split evenly over the devices of `axis`.
    Shard {
        /// The tensor's dimension.
        dim: usize,
        /// The mesh's axis.
        axis: Axis,
    },
    /// The tensor is number `index` of `of` that lie whole on the devices, the same number on each, in row-major order.
    Member {
        /// Its number.
        index: usize,
        /// How many there are.
        of: usize,
    },
}

/// A dimension that does not divide over the devices that are to share it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {length} do not divide over {parts} devices")]
pub struct ShardError {
    /// What was to be split.
    pub what: String,
    /// Its length.
    pub length: usize,
    /// Over how many devices.
    pub parts: usize,
}

/// The half-open range of `0..length` that part `index` of `parts` holds.
///
/// # Errors
/// If `length` does not divide evenly: a rank with less than the others would need another program.
pub fn shard(what: &str, length: usize, parts: usize, index: usize) -> Result<Range<usize>, ShardError> {
    assert!(index < parts, "part {index} of {parts}");
    if !length.is_multiple_of(parts) {
        return Err(ShardError { what: what.to_owned(), length, parts });
    }
    let part = length / parts;
    Ok(index * part..(index + 1) * part)
}

impl Placement {
    /// The shape of one rank's part of a tensor of this shape.
    ///
    /// # Errors
    /// As [`local_range`](Self::local_range).
    pub fn local_shape(
        self,
        what: &str,
        shape: &[usize],
        mesh: MeshShape,
        rank: Rank,
    ) -> Result<Vec<usize>, ShardError> {
        let mut local = shape.to_vec();
        if let Some((dim, range)) = self.local_range(what, shape, mesh, rank)? {
            local[dim] = range.len();
        }
        Ok(local)
    }

    /// The range of the split dimension that `rank` holds; `None` where it holds the whole. Of a tensor that lies on
    /// another device it holds an empty range of the first dimension.
    ///
    /// # Errors
    /// If the split dimension, or the number of members, does not divide.
    pub fn local_range(
        self,
        what: &str,
        shape: &[usize],
        mesh: MeshShape,
        rank: Rank,
    ) -> Result<Option<(usize, Range<usize>)>, ShardError> {
        match self {
            Self::Replicated => Ok(None),
            Self::Shard { dim, axis } => {
                let range = shard(what, shape[dim], mesh.size(axis), mesh.coordinate(rank, axis))?;
                Ok((range.len() < shape[dim]).then_some((dim, range)))
            }
            Self::Member { index, of } => {
                let held = shard(what, of, mesh.devices(), rank.0)?;
                Ok((!held.contains(&index)).then_some((0, 0..0)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shards_concatenate_to_the_whole(part in 0_usize..100, parts in 1_usize..100) {
            let whole: Vec<_> =
                (0..parts).flat_map(|index| shard("x", part * parts, parts, index).unwrap()).collect();
            prop_assert_eq!(whole, (0..part * parts).collect::<Vec<_>>());
        }

        #[test]
        fn uneven_splits_are_refused_by_name(length in 1_usize..1000, parts in 2_usize..64) {
            prop_assume!(!length.is_multiple_of(parts));
            let error = shard("wo", length, parts, 0).unwrap_err();
            prop_assert_eq!(error.to_string(), format!("wo: {length} do not divide over {parts} devices"));
        }
    }

    #[test]
    fn a_placement_splits_its_dimension_only() {
        let mesh: MeshShape = "2x4".parse().unwrap();
        let columns = Placement::Shard { dim: 1, axis: Axis::Columns };
        assert_eq!(columns.local_shape("w2", &[3, 8], mesh, Rank(6)), Ok(vec![3, 2]));
        assert_eq!(columns.local_range("w2", &[3, 8], mesh, Rank(6)), Ok(Some((1, 4..6))));
        assert_eq!(columns.local_range("w2", &[3, 8], MeshShape::SINGLE, Rank(0)), Ok(None));
        assert_eq!(Placement::Replicated.local_range("w2", &[3, 8], mesh, Rank(6)), Ok(None));
    }

    #[test]
    fn members_lie_whole_on_one_device_each() {
        let mesh: MeshShape = "2x2".parse().unwrap();
        for index in 0..8 {
            let member = Placement::Member { index, of: 8 };
            let held: Vec<_> = (0..4)
                .filter(|&rank| member.local_shape("experts", &[3, 8], mesh, Rank(rank)) == Ok(vec![3, 8]))
                .collect();
            assert_eq!(held, [index / 2]);
        }
        let error = Placement::Member { index: 0, of: 6 }.local_range("experts", &[3, 8], mesh, Rank(0));
        assert_eq!(error.unwrap_err().to_string(), "experts: 6 do not divide over 4 devices");
    }
}
