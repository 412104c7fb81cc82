//! Operators that move data.

use super::Operator;
use crate::{
    plan::rules::placement::Placement,
    types::{DataType, Layout},
};
use serde::{Deserialize, Serialize};

/// A copy to another place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReshardConfig {
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for ReshardConfig {
    const OPERATION: &'static str = "to_memory_config";
}

/// A change of type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypecastConfig {
    /// Type of the result.
    pub dtype: DataType,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for TypecastConfig {
    const OPERATION: &'static str = "typecast";
}

/// A part; from where to where depends on the tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceConfig {
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for SliceConfig {
    const OPERATION: &'static str = "slice";
}

/// One after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConcatConfig {
    /// The dimension, from the last where negative.
    pub dim: i32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for ConcatConfig {
    const OPERATION: &'static str = "concat";
}

/// Two dimensions change places.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransposeConfig {
    /// One.
    pub dim1: u32,
    /// The other.
    pub dim2: u32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for TransposeConfig {
    const OPERATION: &'static str = "transpose";
}

/// Dimensions in another order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermuteConfig {
    /// The order.
    pub dims: Vec<u32>,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for PermuteConfig {
    const OPERATION: &'static str = "permute";
}

/// Copies along dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepeatConfig {
    /// How many along each.
    pub repeat_dims: Vec<u32>,
}

impl Operator for RepeatConfig {
    const OPERATION: &'static str = "repeat";
}

/// Rows to tiles or back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutConfig {
    /// The new layout.
    pub layout: Layout,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for LayoutConfig {
    const OPERATION: &'static str = "to_layout";
}

/// Tiles to rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UntilizeConfig {
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for UntilizeConfig {
    const OPERATION: &'static str = "untilize";
}

/// Rows to tiles, the last ones filled up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TilizeConfig {
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for TilizeConfig {
    const OPERATION: &'static str = "tilize_with_zero_padding";
}
