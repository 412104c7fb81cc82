//! How a model is laid over a mesh.

use crate::{Axis, MeshShape, Rank};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How the routed experts share the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertSharding {
    /// Every expert is split over the columns by intermediate features: at batch 1 all devices of a row work, each as
    /// long as the others. Rows hold copies.
    #[default]
    Tensor,
    /// Every expert lies whole on one device, over all devices in row-major order: tokens travel to their experts.
    Expert,
}

impl fmt::Display for ExpertSharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tensor => "tensor",
            Self::Expert => "expert",
        })
    }
}

/// A way to share experts that there is not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("experts are shared by `tensor` or by `expert`, got {0:?}")]
pub struct ParseExpertShardingError(String);

impl FromStr for ExpertSharding {
    type Err = ParseExpertShardingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tensor, Self::Expert]
            .into_iter()
            .find(|sharding| sharding.to_string() == text)
            .ok_or_else(|| ParseExpertShardingError(text.to_owned()))
    }
}

/// How a model is laid over a mesh: what stages 1 and 2 need to know beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The devices.
    pub mesh: MeshShape,
    /// How they share the routed experts.
    #[serde(default)]
    pub experts: ExpertSharding,
}

impl Layout {
    /// Everything on one device.
    pub const SINGLE: Self = Self { mesh: MeshShape::SINGLE, experts: ExpertSharding::Tensor };

    /// The first rank that holds the same weights as `rank`: rows hold copies of each other, unless each expert lies on
    /// one device of all.
    ///
    /// # Panics
    /// If the mesh has no such rank.
    pub fn weight_rank(self, rank: Rank) -> Rank {
        assert!(rank.0 < self.mesh.devices(), "rank {} of {self}", rank.0);
        match self.experts {
            ExpertSharding::Tensor => Rank(self.mesh.coordinate(rank, Axis::Columns)),
            ExpertSharding::Expert => rank,
        }
    }

    /// The ranks whose weights differ, in order: between them they hold all that any rank does.
    pub fn weight_ranks(self) -> impl Iterator<Item = Rank> {
        (0..self.mesh.devices()).map(Rank).filter(move |&rank| self.weight_rank(rank) == rank)
    }
}

impl From<MeshShape> for Layout {
    /// The mesh, with experts shared as is best on CPUs.
    fn from(mesh: MeshShape) -> Self {
        Self { mesh, experts: ExpertSharding::default() }
    }
}

/// `2x4`, or `2x4-expert` where experts are not shared as usual.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.experts {
            ExpertSharding::Tensor => write!(f, "{}", self.mesh),
            ExpertSharding::Expert => write!(f, "{}-{}", self.mesh, self.experts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_named_by_its_mesh_and_what_is_unusual() {
        let mesh: MeshShape = "2x4".parse().unwrap();
        assert_eq!(Layout::from(mesh).to_string(), "2x4");
        assert_eq!(Layout { mesh, experts: ExpertSharding::Expert }.to_string(), "2x4-expert");
    }

    #[test]
    fn rows_share_weights_unless_experts_lie_on_single_devices() {
        let mesh: MeshShape = "2x3".parse().unwrap();
        let layout = Layout::from(mesh);
        let shared: Vec<_> = (0..6).map(|rank| layout.weight_rank(Rank(rank)).0).collect();
        assert_eq!(shared, [0, 1, 2, 0, 1, 2]);
        assert_eq!(layout.weight_ranks().collect::<Vec<_>>(), [0, 1, 2].map(Rank));
        let layout = Layout { mesh, experts: ExpertSharding::Expert };
        assert!((0..6).all(|rank| layout.weight_rank(Rank(rank)) == Rank(rank)));
        assert_eq!(layout.weight_ranks().count(), 6);
    }

    #[test]
    fn ways_to_share_are_read_as_written() {
        for sharding in [ExpertSharding::Tensor, ExpertSharding::Expert] {
            assert_eq!(sharding.to_string().parse(), Ok(sharding));
        }
        let error = "both".parse::<ExpertSharding>().unwrap_err().to_string();
        assert_eq!(error, "experts are shared by `tensor` or by `expert`, got \"both\"");
    }
}
