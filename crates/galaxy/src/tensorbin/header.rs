//! What a header says.

use super::{ALIGNMENT, HeaderError};
use crate::{
    shard::{Order, ShardError, ShardLayout},
    tile::Tile,
    types::{DataType, Layout, MemoryConfig},
};
use std::{
    collections::{HashMap, HashSet},
    fmt,
};

/// The most devices that a mesh may have here: a header may claim any number.
pub const MAX_DEVICES: usize = 1 << 16;

/// The most dimensions of a shape, a coordinate or a mesh.
pub(super) const MAX_RANK: usize = 16;

/// What a file says of its tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What all shards have in common.
    pub spec: TensorSpec,
    /// The mesh's devices by dimension: rows, columns.
    pub mesh_shape: Vec<u32>,
    /// A shard for each device.
    pub shards: Vec<Shard>,
    /// How a whole tensor was cut. Files of before September 2025 have none: all devices then hold the same.
    pub topology: Option<TensorTopology>,
}

/// What all shards have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The shape of one shard, without padding.
    pub shape: Vec<u32>,
    /// The type of its elements.
    pub data_type: DataType,
    /// Whether it lies in rows or in tiles.
    pub page: PageConfig,
    /// Where it goes on a device.
    pub memory_config: MemoryConfig,
    /// What the last dimensions are padded to multiples of.
    pub alignment: Vec<u32>,
}

/// How elements follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageConfig {
    /// Row by row.
    RowMajor,
    /// Tile by tile.
    Tile {
        /// The tile's shape.
        tile: Tile,
        /// Whether the elements of a tile are transposed. No weight of DeepSeek's is, and they are not packed here.
        transpose: bool,
    },
}

impl PageConfig {
    /// Without the tile's shape.
    pub fn layout(self) -> Layout {
        match self {
            Self::RowMajor => Layout::RowMajor,
            Self::Tile { .. } => Layout::Tile,
        }
    }
}

/// A device's shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The device.
    pub coordinate: Vec<u32>,
    /// The buffer.
    pub span: Span,
}

/// A buffer's place in the data region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Its first byte, from the start of the data region.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// How a whole tensor was cut over a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorTopology {
    /// The shards by dimension. Those of the mesh, or one for all of its devices.
    pub distribution_shape: Vec<u32>,
    /// What happens along each of these dimensions.
    pub placements: Vec<Placement>,
    /// The device of each shard, in row-major order of the shards.
    pub mesh_coords: Vec<Vec<u32>>,
}

/// What happens along a dimension of the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All hold the same.
    Replicate,
    /// Each holds a part of this dimension of the tensor; negative ones count from the last. Kept as given.
    Shard(i32),
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicate => f.write_str("replicate"),
            Self::Shard(dimension) => write!(f, "shard {dimension}"),
        }
    }
}

/// A layout that TT-NN has and this crate does not pack, or one that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedLayout {
    /// Tiles with transposed elements.
    #[error("tiles with transposed elements are not supported")]
    TransposedTiles,
    /// Padding beyond that of tiles or shards.
    #[error("padding to {0:?} is not supported")]
    Alignment(Vec<u32>),
    /// A shape that no shard can have.
    #[error(transparent)]
    Shape(#[from] ShardError),
}

impl TensorSpec {
    /// In 32x32 tiles.
    pub fn tiled(shape: &[u32], data_type: DataType, memory_config: MemoryConfig) -> Self {
        let page = PageConfig::Tile { tile: Tile::SQUARE, transpose: false };
        Self { shape: shape.to_vec(), data_type, page, memory_config, alignment: vec![32, 32] }
    }

    /// In rows.
    pub fn row_major(shape: &[u32], data_type: DataType, memory_config: MemoryConfig) -> Self {
        let alignment = vec![default_row_multiple(&memory_config)];
        Self { shape: shape.to_vec(), data_type, page: PageConfig::RowMajor, memory_config, alignment }
    }

    /// How the elements of a shard lie in its bytes.
    ///
    /// # Errors
    /// What is not packed here.
    pub fn shard_layout(&self) -> Result<ShardLayout, UnsupportedLayout> {
        Ok(ShardLayout::new(&self.shape, self.data_type, self.order()?)?)
    }

    /// As TT-NN reads the alignment: rounded up to what the page config demands.
    fn order(&self) -> Result<Order, UnsupportedLayout> {
        let unsupported = || UnsupportedLayout::Alignment(self.alignment.clone());
        let from_last =
            |index: usize| self.alignment.iter().rev().nth(index).map_or(1, |&multiple| multiple.max(1));
        let rounded = |index: usize, multiple: u32| {
            from_last(index).checked_next_multiple_of(multiple).ok_or_else(unsupported)
        };
        let kept = match self.page {
            PageConfig::RowMajor => 1,
            PageConfig::Tile { .. } => 2,
        };
        if (kept..self.alignment.len()).any(|index| from_last(index) != 1) {
            return Err(unsupported());
        }
        match self.page {
            PageConfig::Tile { transpose: true, .. } => Err(UnsupportedLayout::TransposedTiles),
            PageConfig::Tile { tile, .. } => {
                let [height, width] = tile.into();
                if (rounded(1, height)?, rounded(0, width)?) != (height, width) {
                    return Err(unsupported());
                }
                Ok(Order::Tiles(tile))
            }
            PageConfig::RowMajor => {
                Ok(Order::Rows { multiple: rounded(0, default_row_multiple(&self.memory_config))? })
            }
        }
    }
}

/// The columns of a core's part, to whose multiples rows are padded; 1 without shards.
fn default_row_multiple(config: &MemoryConfig) -> u32 {
    let of_matrix = config.shard_spec.as_ref().map(|spec| spec.shape[1]);
    let of_all = || config.nd_shard_spec.as_ref().and_then(|spec| spec.shard_shape.last().copied());
    of_matrix.or_else(of_all).unwrap_or(1).max(1)
}

impl TensorTopology {
    /// Of a tensor on the host.
    pub fn host() -> Self {
        Self {
            distribution_shape: vec![1],
            placements: vec![Placement::Replicate],
            mesh_coords: vec![vec![0, 0]],
        }
    }

    /// Of a mesh of rows and columns: what happens along the rows, and along the columns.
    pub fn mesh(rows: u32, columns: u32, placements: [Placement; 2]) -> Self {
        let mesh_coords =
            (0..rows).flat_map(|row| (0..columns).map(move |column| vec![row, column])).collect();
        Self { distribution_shape: vec![rows, columns], placements: placements.to_vec(), mesh_coords }
    }

    /// Which shards hold the same, by row-major index: for each the number of its buffer, in order of first use.
    fn buffers(&self) -> Result<Vec<usize>, HeaderError> {
        let field = |name: &str| format!("tensor_topology.{name}");
        if self.distribution_shape.len() != self.placements.len() {
            let message = format!(
                "expected {} placements, got {}",
                self.distribution_shape.len(),
                self.placements.len()
            );
            return Err(HeaderError::new(field("placements"), message));
        }
        let count = devices(&self.distribution_shape, &field("distribution_shape"))?;
        if self.mesh_coords.len() != count {
            let message = format!("expected {count} coordinates, got {}", self.mesh_coords.len());
            return Err(HeaderError::new(field("mesh_coords"), message));
        }
        let mut known = HashMap::new();
        let mut buffers = Vec::with_capacity(count);
        for index in 0..count {
            let mut rest = index;
            let mut key = Vec::with_capacity(self.placements.len());
            for (&side, placement) in self.distribution_shape.iter().zip(&self.placements).rev() {
                let coordinate = rest % side as usize;
                rest /= side as usize;
                key.push(if matches!(placement, Placement::Shard(_)) { coordinate } else { 0 });
            }
            let next = known.len();
            buffers.push(*known.entry(key).or_insert(next));
        }
        Ok(buffers)
    }
}

/// How many devices a shape has.
///
/// # Errors
/// None, or more than [`MAX_DEVICES`].
pub(super) fn devices(shape: &[u32], field: &str) -> Result<usize, HeaderError> {
    let product = shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side as usize));
    match product {
        Some(count @ 1..=MAX_DEVICES) if !shape.is_empty() => Ok(count),
        _ => Err(HeaderError::new(field, format!("expected 1 to {MAX_DEVICES} devices, got {shape:?}"))),
    }
}

impl Header {
    /// A header with its buffers laid out as TT-NN does: what is the same lies there once.
    ///
    /// # Errors
    /// A topology that does not suit the mesh or itself, a layout that is not packed here, or a field that no reader
    /// takes.
    pub fn new(
        spec: TensorSpec,
        mesh_shape: Vec<u32>,
        topology: TensorTopology,
    ) -> Result<Self, HeaderError> {
        let layout = spec.shard_layout();
        let layout = layout.map_err(|error| HeaderError::new("tensor_spec", error.to_string()))?;
        let bytes = layout.bytes() as u64;
        let buffers = topology.buffers()?;
        let too_large = || HeaderError::new("shards", "their bytes exceed 64 bits");
        let stride = bytes.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_large)?;
        let mut shards = Vec::with_capacity(buffers.len());
        for (buffer, coordinate) in buffers.iter().zip(&topology.mesh_coords) {
            let offset = stride.checked_mul(*buffer as u64).ok_or_else(too_large)?;
            offset.checked_add(stride).ok_or_else(too_large)?;
            shards.push(Shard { coordinate: coordinate.clone(), span: Span { offset, bytes } });
        }
        let header = Self { spec, mesh_shape, shards, topology: Some(topology) };
        header.check_coordinates()?;
        // What could not be read again is not to be written: cores that are none, too many dimensions.
        Self::decode(&header.encode()[8..], header.data_bytes())?;
        Ok(header)
    }

    /// Of a tensor on the host, or the same for any device.
    ///
    /// # Errors
    /// A layout that is not packed here.
    pub fn host(spec: TensorSpec) -> Result<Self, HeaderError> {
        Self::new(spec, vec![1, 1], TensorTopology::host())
    }

    /// The distinct buffers, by where they lie, which is the order of their first use in files of TT-NN.
    pub fn buffers(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = self.shards.iter().map(|shard| shard.span).collect();
        spans.sort_unstable();
        spans.dedup();
        spans
    }

    /// Bytes of the data region, which ends with the last buffer.
    pub fn data_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.span.end()).max().unwrap_or(0)
    }

    /// That each device of the mesh has one shard at most, and no other has any.
    pub(super) fn check_coordinates(&self) -> Result<(), HeaderError> {
        devices(&self.mesh_shape, "mesh_shape")?;
        let mut seen = HashSet::new();
        for (index, Shard { coordinate, .. }) in self.shards.iter().enumerate() {
            let field = || format!("shards[{index}].mesh_coordinate");
            let inside = coordinate.len() == self.mesh_shape.len()
                && coordinate.iter().zip(&self.mesh_shape).all(|(at, side)| at < side);
            if !inside {
                let message =
                    format!("expected a device of the mesh {:?}, got {coordinate:?}", self.mesh_shape);
                return Err(HeaderError::new(field(), message));
            }
            if !seen.insert(coordinate) {
                return Err(HeaderError::new(field(), format!("device {coordinate:?} has a shard already")));
            }
        }
        Ok(())
    }
}

impl Span {
    /// The first byte after it.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
}
