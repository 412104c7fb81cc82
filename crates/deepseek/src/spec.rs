//! Shorthands for weight specs and sharded sizes.

use crate::hf::HfConfig;
use dsv3_mesh::{AllGatherConfig, Axis, Layout, Placement, ReduceScatterConfig, shard};
use dsv3_runtime::{Error, Leaf, Prefix, WeightKind, WeightSpec};

/// Split over the columns by output features: whole rows of `[out, in]`, in place in the checkpoint.
pub(crate) const BY_OUTPUT: Placement = Placement::Shard { dim: 0, axis: Axis::Columns };
/// Split over the columns by input features.
pub(crate) const BY_INPUT: Placement = Placement::Shard { dim: 1, axis: Axis::Columns };

/// A gated MLP's w1, w2 and w3, split by intermediate features.
pub(crate) const SPLIT: [Placement; 3] = [BY_OUTPUT, BY_INPUT, BY_OUTPUT];

/// The spec of `AT.weight`, a `[rows, cols]` matrix; without a kind it is never quantised.
pub(crate) fn matrix(
    hf: &HfConfig,
    kind: impl Into<Option<WeightKind>>,
    at: &Prefix,
    [rows, cols]: [usize; 2],
    placement: Placement,
) -> Leaf<WeightSpec> {
    Leaf(WeightSpec {
        source: at.name("weight"),
        kind: kind.into(),
        shape: vec![rows, cols],
        placement,
        scale_block: hf.quantization.map(|blocks| [blocks.rows, blocks.cols]),
    })
}

/// The spec of the vector of this full name.
pub(crate) fn vector(source: String, length: usize, placement: Placement) -> Leaf<WeightSpec> {
    Leaf(WeightSpec { source, kind: None, shape: vec![length], placement, scale_block: None })
}

/// What one device holds of a size that is split over the columns.
pub(crate) fn over_columns(what: &str, size: usize, layout: Layout) -> Result<usize, Error> {
    Ok(shard(what, size, layout.mesh.size(Axis::Columns), 0)?.len())
}

/// Brings the features of the columns together.
pub(crate) fn gather_features() -> AllGatherConfig {
    AllGatherConfig::features(Axis::Columns)
}

/// Brings the tokens of the rows together; none on a mesh of one row.
pub(crate) fn gather_tokens(layout: Layout) -> Option<AllGatherConfig> {
    (layout.mesh.size(Axis::Rows) > 1).then(|| AllGatherConfig::tokens(Axis::Rows))
}

/// Adds up over the columns, and splits the features again.
pub(crate) fn scatter_features() -> ReduceScatterConfig {
    ReduceScatterConfig::features(Axis::Columns)
}
