//! A header as bytes. Tables are made in the order in which TT-NN 0.81.1 makes them, and fields as flatc's code adds them
//! (the larger first, those of a size from the last to the first), so that the bytes are the same too.

use super::{ALIGNMENT, Header, PageConfig, Placement, Shard, TensorSpec, TensorTopology};
use crate::types::{CoreCoord, CoreRangeSet, MemoryConfig, NdShardSpec, ShardSpec};
use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, VOffsetT, WIPOffset};

type Builder = FlatBufferBuilder<'static>;
type Table = WIPOffset<TableFinishedWIPOffset>;

/// Where in a vtable a field has its place.
const fn slot(field: VOffsetT) -> VOffsetT {
    4 + 2 * field
}

impl Header {
    /// The file's bytes before its data: the length, the FlatBuffer, and zeros up to a multiple of 64.
    pub fn encode(&self) -> Vec<u8> {
        let mut builder = Builder::new();
        let spec = spec(&mut builder, &self.spec);
        let shards: Vec<Table> = self.shards.iter().map(|one| shard(&mut builder, one)).collect();
        let shards = builder.create_vector(&shards);
        let mesh_shape = numbers(&mut builder, &self.mesh_shape);
        let topology = self.topology.as_ref().map(|one| topology(&mut builder, one));
        let table = builder.start_table();
        if let Some(topology) = topology {
            builder.push_slot_always(slot(3), topology);
        }
        builder.push_slot_always(slot(2), shards);
        builder.push_slot_always(slot(1), mesh_shape);
        builder.push_slot_always(slot(0), spec);
        let root = builder.end_table(table);
        builder.finish(root, None);
        let flat = builder.finished_data();
        let length = (8 + flat.len()).next_multiple_of(ALIGNMENT as usize) - 8;
        let mut bytes = (length as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(flat);
        bytes.resize(8 + length, 0);
        bytes
    }
}

fn spec(builder: &mut Builder, spec: &TensorSpec) -> Table {
    let shape = builder.create_vector(&spec.shape);
    let alignment = builder.create_vector(&spec.alignment);
    let (tag, page) = page_config(builder, spec.page);
    let memory_config = memory_config(builder, &spec.memory_config);
    let table = builder.start_table();
    builder.push_slot_always(slot(4), alignment);
    builder.push_slot_always(slot(3), memory_config);
    builder.push_slot_always(slot(2), page);
    builder.push_slot(slot(1), tag, 0_u8);
    builder.push_slot(slot(0), spec.data_type.code(), 0_u8);
    let layout = builder.end_table(table);
    let table = builder.start_table();
    builder.push_slot_always(slot(1), layout);
    builder.push_slot_always(slot(0), shape);
    builder.end_table(table)
}

/// The tag of a union, and its table.
fn page_config(builder: &mut Builder, page: PageConfig) -> (u8, Table) {
    let PageConfig::Tile { tile, transpose } = page else {
        let table = builder.start_table();
        return (1, builder.end_table(table));
    };
    let [height, width] = tile.into();
    let table = builder.start_table();
    builder.push_slot(slot(1), width, 0);
    builder.push_slot(slot(0), height, 0);
    builder.push_slot(slot(2), transpose, false);
    let tile = builder.end_table(table);
    let table = builder.start_table();
    builder.push_slot_always(slot(0), tile);
    (2, builder.end_table(table))
}

fn memory_config(builder: &mut Builder, config: &MemoryConfig) -> Table {
    let shard_spec = config.shard_spec.as_ref().map(|spec| shard_spec(builder, spec));
    let nd_shard_spec = config.nd_shard_spec.as_ref().map(|spec| nd_shard_spec(builder, spec));
    let table = builder.start_table();
    if let Some(spec) = nd_shard_spec {
        builder.push_slot_always(slot(3), spec);
    }
    if let Some(spec) = shard_spec {
        builder.push_slot_always(slot(2), spec);
    }
    builder.push_slot(slot(1), u16::from(config.buffer_type.code()), 0);
    builder.push_slot(slot(0), u16::from(config.memory_layout.code()), 0);
    builder.push_slot(slot(5), config.per_core_allocation, false);
    builder.push_slot(slot(4), config.created_with_nd_shard_spec, false);
    builder.end_table(table)
}

fn shard_spec(builder: &mut Builder, spec: &ShardSpec) -> Table {
    let grid = core_range_set(builder, &spec.grid);
    let table = builder.start_table();
    builder.push_slot(slot(2), spec.shape[1], 0);
    builder.push_slot(slot(1), spec.shape[0], 0);
    builder.push_slot_always(slot(0), grid);
    builder.push_slot(slot(3), spec.orientation.code(), 0);
    builder.end_table(table)
}

fn nd_shard_spec(builder: &mut Builder, spec: &NdShardSpec) -> Table {
    let shape = builder.create_vector(&spec.shard_shape);
    let grid = core_range_set(builder, &spec.grid);
    let table = builder.start_table();
    builder.push_slot_always(slot(1), grid);
    builder.push_slot_always(slot(0), shape);
    builder.push_slot(slot(3), spec.shard_distribution_strategy.code(), 0);
    builder.push_slot(slot(2), spec.orientation.code(), 0);
    builder.end_table(table)
}

fn core_range_set(builder: &mut Builder, set: &CoreRangeSet) -> Table {
    let range = |builder: &mut Builder, start, end| {
        let (start, end) = (coord(builder, start), coord(builder, end));
        let table = builder.start_table();
        builder.push_slot_always(slot(1), end);
        builder.push_slot_always(slot(0), start);
        builder.end_table(table)
    };
    let ranges: Vec<Table> = set.0.iter().map(|one| range(builder, one.start, one.end)).collect();
    let ranges = builder.create_vector(&ranges);
    let table = builder.start_table();
    builder.push_slot_always(slot(0), ranges);
    builder.end_table(table)
}

fn coord(builder: &mut Builder, coord: CoreCoord) -> Table {
    let table = builder.start_table();
    // The format has i32; `Header::new` refuses what goes beyond it.
    builder.push_slot(slot(1), coord.y, 0);
    builder.push_slot(slot(0), coord.x, 0);
    builder.end_table(table)
}

/// A table of one vector of numbers: a mesh's shape, or a coordinate.
fn numbers(builder: &mut Builder, numbers: &[u32]) -> Table {
    let numbers = builder.create_vector(numbers);
    let table = builder.start_table();
    builder.push_slot_always(slot(0), numbers);
    builder.end_table(table)
}

fn shard(builder: &mut Builder, shard: &Shard) -> Table {
    let coordinate = numbers(builder, &shard.coordinate);
    // A struct in a union, which flatc makes no Rust of: two numbers one after the other, built from the end.
    builder.push(shard.span.bytes);
    let storage = WIPOffset::<u64>::new(builder.push(shard.span.offset).value());
    let table = builder.start_table();
    builder.push_slot_always(slot(2), coordinate);
    builder.push_slot_always(slot(1), storage);
    builder.push_slot(slot(0), 1_u8, 0);
    builder.end_table(table)
}

fn topology(builder: &mut Builder, topology: &TensorTopology) -> Table {
    let shape = numbers(builder, &topology.distribution_shape);
    let placement = |builder: &mut Builder, placement| {
        let (kind, dimension) = match placement {
            Placement::Replicate => (0_u8, -1),
            Placement::Shard(dimension) => (1, dimension),
        };
        let table = builder.start_table();
        builder.push_slot(slot(1), dimension, 0_i32);
        builder.push_slot(slot(0), kind, 0);
        builder.end_table(table)
    };
    let placements: Vec<Table> = topology.placements.iter().map(|&one| placement(builder, one)).collect();
    let placements = builder.create_vector(&placements);
    let coordinates: Vec<Table> = topology.mesh_coords.iter().map(|one| numbers(builder, one)).collect();
    let coordinates = builder.create_vector(&coordinates);
    let table = builder.start_table();
    builder.push_slot_always(slot(2), coordinates);
    builder.push_slot_always(slot(1), placements);
    builder.push_slot_always(slot(0), shape);
    builder.end_table(table)
}
