//! Where a tensor lies on a device, and how it is cut there.

use super::{BufferType, CoreGrid, CoreRangeSet, MemoryLayout, ShardDistributionStrategy, ShardOrientation};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de, de::value::MapAccessDeserializer, ser::SerializeMap,
};
use serde_json::{Value, json};
use std::{fmt, marker::PhantomData};

/// How a tensor is cut over cores, as a matrix of all its rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSpec<G = CoreRangeSet> {
    /// The cores, or the banks of DRAM as cores of row 0.
    pub grid: G,
    /// Rows and columns of a core's part.
    pub shape: [u32; 2],
    /// The order of the parts.
    #[serde(default = "row_major")]
    pub orientation: ShardOrientation,
}

/// How a tensor is cut over cores, in all its dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NdShardSpec<G = CoreRangeSet> {
    /// The shape of a part.
    pub shard_shape: Vec<u32>,
    /// The cores.
    pub grid: G,
    /// The order of the parts.
    #[serde(default = "row_major")]
    pub orientation: ShardOrientation,
    /// How parts are dealt to cores.
    #[serde(default = "round_robin")]
    pub shard_distribution_strategy: ShardDistributionStrategy,
}

fn row_major() -> ShardOrientation {
    ShardOrientation::RowMajor
}

fn round_robin() -> ShardDistributionStrategy {
    ShardDistributionStrategy::RoundRobin1d
}

/// Where a tensor lies on a device. `G` is [`CoreGrid`] where cores may be left to the device.
///
/// JSON has a name for what needs no more: `"DRAM"` and `"L1"` (interleaved), and `"L1_WIDTH_SHARDED"` and the like,
/// where the shards are left to the operator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemoryConfig<G = CoreRangeSet> {
    /// How it is dealt to banks or cores.
    pub memory_layout: MemoryLayout,
    /// In which memory.
    pub buffer_type: BufferType,
    /// How it is cut as a matrix.
    pub shard_spec: Option<ShardSpec<G>>,
    /// How it is cut in all its dimensions. TT-NN stores one beside every `shard_spec`, which says the same.
    pub nd_shard_spec: Option<NdShardSpec<G>>,
    /// Whether `nd_shard_spec` is what was asked for, and not `shard_spec`.
    pub created_with_nd_shard_spec: bool,
    /// Whether each core's part has an address of its own.
    pub per_core_allocation: bool,
}

impl<G> MemoryConfig<G> {
    /// Interleaved over the banks of DRAM.
    pub const DRAM: Self = Self::unsharded(MemoryLayout::Interleaved, BufferType::Dram);
    /// Interleaved over the cores' memories.
    pub const L1: Self = Self::unsharded(MemoryLayout::Interleaved, BufferType::L1);

    /// With no shards, or with shards that an operator chooses.
    pub const fn unsharded(memory_layout: MemoryLayout, buffer_type: BufferType) -> Self {
        Self {
            memory_layout,
            buffer_type,
            shard_spec: None,
            nd_shard_spec: None,
            created_with_nd_shard_spec: false,
            per_core_allocation: false,
        }
    }
}

impl<G: Clone> MemoryConfig<G> {
    /// Cut as a matrix.
    pub fn sharded(memory_layout: MemoryLayout, buffer_type: BufferType, spec: ShardSpec<G>) -> Self {
        let nd_shard_spec = Some(spec.as_nd(memory_layout));
        Self { shard_spec: Some(spec), nd_shard_spec, ..Self::unsharded(memory_layout, buffer_type) }
    }

    /// Cut in all dimensions.
    pub fn nd_sharded(buffer_type: BufferType, spec: NdShardSpec<G>) -> Self {
        Self {
            nd_shard_spec: Some(spec),
            created_with_nd_shard_spec: true,
            ..Self::unsharded(MemoryLayout::NdSharded, buffer_type)
        }
    }
}

impl<G: Clone> ShardSpec<G> {
    /// The same in all dimensions, as TT-NN derives it and stores it beside this one.
    pub fn as_nd(&self, memory_layout: MemoryLayout) -> NdShardSpec<G> {
        let shard_distribution_strategy = match memory_layout {
            MemoryLayout::BlockSharded => ShardDistributionStrategy::Grid2d,
            _ => ShardDistributionStrategy::RoundRobin1d,
        };
        NdShardSpec {
            shard_shape: self.shape.to_vec(),
            grid: self.grid.clone(),
            orientation: self.orientation,
            shard_distribution_strategy,
        }
    }
}

impl MemoryConfig {
    /// As TT-NN's `MemoryConfig.to_json` has it, with enumerations as numbers: the form of a weight cache's config.json.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "memory_layout": self.memory_layout.code(),
            "buffer_type": self.buffer_type.code(),
            "created_with_nd_shard_spec": self.created_with_nd_shard_spec,
        });
        match (&self.shard_spec, &self.nd_shard_spec) {
            (Some(spec), _) if !self.created_with_nd_shard_spec => {
                json["shard_spec"] = json!({
                    "grid": ranges_json(&spec.grid),
                    "shape": spec.shape,
                    "orientation": spec.orientation.code(),
                });
            }
            (_, Some(spec)) => {
                json["nd_shard_spec"] = json!({
                    "shard_shape": spec.shard_shape,
                    "grid": ranges_json(&spec.grid),
                    "orientation": spec.orientation.code(),
                    "shard_distribution_strategy": spec.shard_distribution_strategy.code(),
                });
            }
            _ => {}
        }
        json
    }

    /// With cores that may be left to the device; here none is.
    pub fn with_core_grid(self) -> MemoryConfig<CoreGrid> {
        self.with_grids(|ranges| Some(ranges.into())).expect("all ranges are grids")
    }
}

impl MemoryConfig<CoreGrid> {
    /// With cores that are named; none where some are left to the device.
    pub fn with_ranges(self) -> Option<MemoryConfig> {
        self.with_grids(|grid| match grid {
            CoreGrid::Ranges(ranges) => Some(ranges),
            CoreGrid::Cores(_) | CoreGrid::DramWorkers => None,
        })
    }
}

impl<G> MemoryConfig<G> {
    /// With cores told in another way; none where a grid cannot be.
    fn with_grids<H>(self, of: impl Fn(G) -> Option<H>) -> Option<MemoryConfig<H>> {
        let shard_spec = match self.shard_spec {
            Some(ShardSpec { grid, shape, orientation }) => {
                Some(ShardSpec { grid: of(grid)?, shape, orientation })
            }
            None => None,
        };
        let nd_shard_spec = match self.nd_shard_spec {
            Some(NdShardSpec { shard_shape, grid, orientation, shard_distribution_strategy }) => {
                let grid = of(grid)?;
                Some(NdShardSpec { shard_shape, grid, orientation, shard_distribution_strategy })
            }
            None => None,
        };
        Some(MemoryConfig {
            memory_layout: self.memory_layout,
            buffer_type: self.buffer_type,
            shard_spec,
            nd_shard_spec,
            created_with_nd_shard_spec: self.created_with_nd_shard_spec,
            per_core_allocation: self.per_core_allocation,
        })
    }
}

fn ranges_json(grid: &CoreRangeSet) -> Value {
    let ranges = grid.0.iter().map(|range| {
        json!({
            "start": {"x": range.start.x, "y": range.start.y},
            "end": {"x": range.end.x, "y": range.end.y},
        })
    });
    ranges.collect()
}

/// The name of a memory config that needs no more.
fn short_name<G>(config: &MemoryConfig<G>) -> Option<&'static str> {
    let is_plain = config.shard_spec.is_none()
        && config.nd_shard_spec.is_none()
        && !config.created_with_nd_shard_spec
        && !config.per_core_allocation;
    let of = |(_, layout, buffer): &&(_, MemoryLayout, BufferType)| {
        is_plain && (*layout, *buffer) == (config.memory_layout, config.buffer_type)
    };
    NAMES.iter().find(of).map(|(name, ..)| *name)
}

const NAMES: [(&str, MemoryLayout, BufferType); 5] = [
    ("DRAM", MemoryLayout::Interleaved, BufferType::Dram),
    ("L1", MemoryLayout::Interleaved, BufferType::L1),
    ("L1_HEIGHT_SHARDED", MemoryLayout::HeightSharded, BufferType::L1),
    ("L1_WIDTH_SHARDED", MemoryLayout::WidthSharded, BufferType::L1),
    ("L1_BLOCK_SHARDED", MemoryLayout::BlockSharded, BufferType::L1),
];

impl<G: Serialize> Serialize for MemoryConfig<G> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(name) = short_name(self) {
            return serializer.serialize_str(name);
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("memory_layout", &self.memory_layout)?;
        map.serialize_entry("buffer_type", &self.buffer_type)?;
        match (&self.shard_spec, &self.nd_shard_spec) {
            (Some(spec), _) if !self.created_with_nd_shard_spec => map.serialize_entry("shard_spec", spec)?,
            (_, Some(spec)) => map.serialize_entry("nd_shard_spec", spec)?,
            _ => {}
        }
        if self.per_core_allocation {
            map.serialize_entry("per_core_allocation", &true)?;
        }
        map.end()
    }
}

/// A memory config as an object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object<G> {
    memory_layout: Option<MemoryLayout>,
    buffer_type: Option<BufferType>,
    shard_spec: Option<ShardSpec<G>>,
    nd_shard_spec: Option<NdShardSpec<G>>,
    created_with_nd_shard_spec: Option<bool>,
    #[serde(default)]
    per_core_allocation: bool,
}

impl<G: Clone> Object<G> {
    fn resolve(self) -> Result<MemoryConfig<G>, String> {
        let buffer_type = self.buffer_type.unwrap_or(BufferType::Dram);
        let config = match (self.shard_spec, self.nd_shard_spec) {
            (Some(_), Some(_)) => return Err("has both shard_spec and nd_shard_spec".to_owned()),
            (Some(spec), None) => {
                let layout = self.memory_layout.ok_or("has a shard_spec, but no memory_layout")?;
                MemoryConfig::sharded(layout, buffer_type, spec)
            }
            (None, Some(spec)) => MemoryConfig {
                memory_layout: self.memory_layout.unwrap_or(MemoryLayout::NdSharded),
                ..MemoryConfig::nd_sharded(buffer_type, spec)
            },
            (None, None) => {
                let layout = self.memory_layout.unwrap_or(MemoryLayout::Interleaved);
                MemoryConfig::unsharded(layout, buffer_type)
            }
        };
        if let Some(said) = self.created_with_nd_shard_spec
            && said != config.created_with_nd_shard_spec
        {
            return Err(format!("created_with_nd_shard_spec is {said}, which its shards are not"));
        }
        Ok(MemoryConfig { per_core_allocation: self.per_core_allocation, ..config })
    }
}

impl<'de, G: Deserialize<'de> + Clone> Deserialize<'de> for MemoryConfig<G> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<G>(PhantomData<G>);
        impl<'de, G: Deserialize<'de> + Clone> de::Visitor<'de> for Visitor<G> {
            type Value = MemoryConfig<G>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let names: Vec<&str> = NAMES.iter().map(|(name, ..)| *name).collect();
                write!(f, "a memory config: an object, or one of {}", names.join(", "))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<MemoryConfig<G>, E> {
                let found = NAMES.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
                let (_, layout, buffer) =
                    found.ok_or_else(|| E::invalid_value(de::Unexpected::Str(name), &self))?;
                Ok(MemoryConfig::unsharded(*layout, *buffer))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<MemoryConfig<G>, A::Error> {
                let object: Object<G> = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
                object.resolve().map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor(PhantomData))
    }
}
