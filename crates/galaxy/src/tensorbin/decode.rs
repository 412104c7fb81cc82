//! A header from outside.

use super::{
    Header, HeaderError, PageConfig, Placement, Shard, Span, TensorSpec, TensorTopology, UnsupportedLayout,
    flat::Table,
    header::{MAX_DEVICES, MAX_RANK, devices},
};
use crate::{
    tile::Tile,
    types::{
        BufferType, CoreCoord, CoreRange, CoreRangeSet, DataType, MemoryConfig, MemoryLayout, NdShardSpec,
        ShardDistributionStrategy, ShardOrientation, ShardSpec,
    },
};

/// The most ranges of a set of cores; no device has as many cores.
const MAX_RANGES: usize = 1 << 10;

/// The tag of the only place where a shard's bytes can be: in the file.
const INLINE_FILE_STORAGE: u8 = 1;

impl Header {
    /// Reads a header: a FlatBuffer, without the length before it.
    ///
    /// # Errors
    /// A field that is absent or has a value that cannot be, and a shard that lies outside of `data_bytes`, the bytes of
    /// data that follow, or has not as many bytes as its shape calls for.
    pub fn decode(header: &[u8], data_bytes: u64) -> Result<Self, HeaderError> {
        let root = Table::root(header)?;
        let spec = spec(&root.needs_table(0, "tensor_spec")?)?;
        let mesh_shape = mesh_shape(&root.needs_table(1, "mesh_shape")?)?;
        let count = devices(&mesh_shape, "mesh_shape.dimensions")?;
        let vector = root.needs_vector(2, "shards", count)?;
        let shards = vector.tables().map(|table| shard(&table?)).collect::<Result<Vec<_>, _>>()?;
        let topology = root.table(3, "tensor_topology")?.map(|table| topology(&table)).transpose()?;
        let header = Self { spec, mesh_shape, shards, topology };
        header.check_coordinates()?;
        header.check_spans(data_bytes)?;
        Ok(header)
    }

    fn check_spans(&self, data_bytes: u64) -> Result<(), HeaderError> {
        let expected = match self.spec.shard_layout() {
            Ok(layout) => Some(layout.bytes() as u64),
            Err(UnsupportedLayout::Shape(error)) => {
                return Err(HeaderError::new("tensor_spec.shape", error.to_string()));
            }
            Err(_) => None,
        };
        for (index, Shard { span, .. }) in self.shards.iter().enumerate() {
            let error = |message| Err(HeaderError::new(format!("shards[{index}].buffer"), message));
            let Span { offset, bytes } = *span;
            if offset.checked_add(bytes).is_none_or(|end| end > data_bytes) {
                return error(format!(
                    "{bytes} bytes from {offset} do not lie within the {data_bytes} of the file's data"
                ));
            }
            if let Some(expected) = expected
                && bytes != expected
            {
                return error(format!("its shape and type call for {expected} bytes, got {bytes}"));
            }
        }
        Ok(())
    }
}

fn spec(table: &Table<'_>) -> Result<TensorSpec, HeaderError> {
    let shape = table.needs_vector(0, "shape", MAX_RANK)?.numbers();
    let layout = table.needs_table(1, "tensor_layout")?;
    let data_type = layout.u8(0, "data_type")?;
    let data_type = DataType::from_code(data_type.into())
        .ok_or_else(|| layout.error("data_type", format!("expected 0 to 7, got {data_type}")))?;
    let page = match layout.u8(1, "page_config_type")? {
        1 => PageConfig::RowMajor,
        2 => tile(&layout.needs_table(2, "page_config")?.needs_table(0, "tile")?)?,
        other => {
            let message = format!("expected 1 (rows) or 2 (tiles), got {other}");
            return Err(layout.error("page_config_type", message));
        }
    };
    let memory_config = memory_config(&layout.needs_table(3, "memory_config")?)?;
    let alignment = layout.needs_vector(4, "alignment", MAX_RANK)?.numbers();
    Ok(TensorSpec { shape, data_type, page, memory_config, alignment })
}

fn tile(table: &Table<'_>) -> Result<PageConfig, HeaderError> {
    let (height, width) = (table.u32(0, "tile_shape_h")?, table.u32(1, "tile_shape_w")?);
    let tile = Tile::new(height, width).map_err(|error| table.error("tile_shape", error.to_string()))?;
    Ok(PageConfig::Tile { tile, transpose: table.bool(2, "transpose_tile")? })
}

fn memory_config(table: &Table<'_>) -> Result<MemoryConfig, HeaderError> {
    let layout = table.u16(0, "memory_layout")?;
    let buffer = table.u16(1, "buffer_type")?;
    let unknown = |name, number: u16| table.error(name, format!("{number} is no {name}"));
    Ok(MemoryConfig {
        memory_layout: MemoryLayout::from_code(layout.into())
            .ok_or_else(|| unknown("memory_layout", layout))?,
        buffer_type: BufferType::from_code(buffer.into()).ok_or_else(|| unknown("buffer_type", buffer))?,
        shard_spec: table.table(2, "shard_spec")?.map(|table| shard_spec(&table)).transpose()?,
        nd_shard_spec: table.table(3, "nd_shard_spec")?.map(|table| nd_shard_spec(&table)).transpose()?,
        created_with_nd_shard_spec: table.bool(4, "created_with_nd_shard_spec")?,
        per_core_allocation: table.bool(5, "per_core_allocation")?,
    })
}

fn shard_spec(table: &Table<'_>) -> Result<ShardSpec, HeaderError> {
    Ok(ShardSpec {
        grid: core_range_set(&table.needs_table(0, "grid")?)?,
        shape: [table.u32(1, "shape_h")?, table.u32(2, "shape_w")?],
        orientation: orientation(table, 3)?,
    })
}

fn nd_shard_spec(table: &Table<'_>) -> Result<NdShardSpec, HeaderError> {
    let strategy = table.u8(3, "shard_distribution_strategy")?;
    let unknown =
        || table.error("shard_distribution_strategy", format!("{strategy} is no distribution strategy"));
    Ok(NdShardSpec {
        shard_shape: table.needs_vector(0, "shard_shape", MAX_RANK)?.numbers(),
        grid: core_range_set(&table.needs_table(1, "grid")?)?,
        orientation: orientation(table, 2)?,
        shard_distribution_strategy: ShardDistributionStrategy::from_code(strategy.into())
            .ok_or_else(unknown)?,
    })
}

fn orientation(table: &Table<'_>, field: usize) -> Result<ShardOrientation, HeaderError> {
    let orientation = table.u8(field, "orientation")?;
    ShardOrientation::from_code(orientation.into())
        .ok_or_else(|| table.error("orientation", format!("expected 0 or 1, got {orientation}")))
}

fn core_range_set(table: &Table<'_>) -> Result<CoreRangeSet, HeaderError> {
    let ranges = table.needs_vector(0, "ranges", MAX_RANGES)?;
    let range = |table: Table<'_>| {
        let [start, end] = [coord(&table, 0, "start")?, coord(&table, 1, "end")?];
        if start.x > end.x || start.y > end.y {
            return Err(table.error("end", format!("{end} lies before the start, {start}")));
        }
        Ok(CoreRange { start, end })
    };
    ranges.tables().map(|table| range(table?)).collect::<Result<_, _>>().map(CoreRangeSet)
}

fn coord(range: &Table<'_>, field: usize, name: &str) -> Result<CoreCoord, HeaderError> {
    let table = range.needs_table(field, name)?;
    let side = |field, name| {
        let side = table.i32(field, name)?;
        u32::try_from(side).map_err(|_| table.error(name, format!("expected 0 or more, got {side}")))
    };
    Ok(CoreCoord { x: side(0, "x")?, y: side(1, "y")? })
}

fn mesh_shape(table: &Table<'_>) -> Result<Vec<u32>, HeaderError> {
    Ok(table.needs_vector(0, "dimensions", MAX_RANK)?.numbers())
}

fn coordinate(table: &Table<'_>) -> Result<Vec<u32>, HeaderError> {
    Ok(table.needs_vector(0, "values", MAX_RANK)?.numbers())
}

fn shard(table: &Table<'_>) -> Result<Shard, HeaderError> {
    let tag = table.u8(0, "buffer_type")?;
    if tag != INLINE_FILE_STORAGE {
        let message = format!("expected {INLINE_FILE_STORAGE} (in the file), got {tag}");
        return Err(table.error("buffer_type", message));
    }
    let [offset, bytes] = table.pair(1, "buffer")?.ok_or_else(|| table.error("buffer", "is missing"))?;
    let coordinate = coordinate(&table.needs_table(2, "mesh_coordinate")?)?;
    Ok(Shard { coordinate, span: Span { offset, bytes } })
}

fn topology(table: &Table<'_>) -> Result<TensorTopology, HeaderError> {
    let distribution_shape = mesh_shape(&table.needs_table(0, "distribution_shape")?)?;
    let count = devices(&distribution_shape, &table.path("distribution_shape"))?;
    let placement = |table: Table<'_>| match table.u8(0, "type")? {
        0 => Ok(Placement::Replicate),
        1 => Ok(Placement::Shard(table.i32(1, "tensor_dim")?)),
        other => Err(table.error("type", format!("expected 0 (replicate) or 1 (shard), got {other}"))),
    };
    let placements = match table.vector(1, "placements", MAX_RANK)? {
        None => Vec::new(),
        Some(vector) => vector.tables().map(|table| placement(table?)).collect::<Result<_, _>>()?,
    };
    let mesh_coords = match table.vector(2, "mesh_coords", count.min(MAX_DEVICES))? {
        None => Vec::new(),
        Some(vector) => vector.tables().map(|table| coordinate(&table?)).collect::<Result<_, _>>()?,
    };
    Ok(TensorTopology { distribution_shape, placements, mesh_coords })
}
