use super::*;
use crate::{
    block_float::Rounding,
    tile::Tile,
    types::{
        BufferType, CoreRangeSet, DataType, MemoryConfig, MemoryLayout, NdShardSpec,
        ShardDistributionStrategy, ShardOrientation, ShardSpec,
    },
};
use proptest::prelude::*;
use std::{fs, path::Path};

/// A weight cut over the columns of a mesh, each part by columns over 12 banks.
fn weight() -> Header {
    let spec = ShardSpec {
        grid: CoreRangeSet::rectangle(12, 1),
        shape: [64, 32],
        orientation: ShardOrientation::RowMajor,
    };
    let config = MemoryConfig::sharded(MemoryLayout::WidthSharded, BufferType::Dram, spec);
    let spec = TensorSpec::tiled(&[1, 64, 352], DataType::Bfloat4B, config);
    let topology = TensorTopology::mesh(4, 8, [Placement::Replicate, Placement::Shard(-1)]);
    Header::new(spec, vec![4, 8], topology).unwrap()
}

/// The FlatBuffer of a header.
fn flat(header: &Header) -> Vec<u8> {
    header.encode().split_off(8)
}

fn decode(header: &Header) -> Result<Header, HeaderError> {
    Header::decode(&flat(header), header.data_bytes())
}

#[track_caller]
fn refused(header: &Header, field: &str, part: &str) {
    let error = decode(header).unwrap_err();
    assert_eq!(error.field, field, "{error}");
    assert!(error.message.contains(part), "expected {part:?} in {error}");
}

#[test]
fn what_is_the_same_lies_there_once() {
    let header = weight();
    let bytes = 2 * 11 * 576;
    assert_eq!(header.shards.len(), 32);
    assert_eq!(header.buffers().len(), 8);
    for (index, shard) in header.shards.iter().enumerate() {
        assert_eq!(shard.coordinate, [index as u32 / 8, index as u32 % 8]);
        assert_eq!(shard.span, Span { offset: (index as u64 % 8) * bytes, bytes });
    }
    assert_eq!(decode(&header).unwrap(), header);
    assert!(header.encode().len().is_multiple_of(64));
}

#[test]
fn fields_that_cannot_be_are_refused_by_name() {
    let change = |change: fn(&mut Header)| {
        let mut header = weight();
        change(&mut header);
        header
    };
    refused(
        &change(|header| header.shards[3].coordinate = vec![4, 0]),
        "shards[3].mesh_coordinate",
        "got [4, 0]",
    );
    refused(&change(|header| header.shards[3].coordinate = vec![0]), "shards[3].mesh_coordinate", "[4, 8]");
    refused(
        &change(|header| header.shards[3].coordinate = vec![0, 0]),
        "shards[3].mesh_coordinate",
        "already",
    );
    refused(
        &change(|header| header.shards[2].span.bytes -= 1),
        "shards[2].buffer",
        "call for 12672 bytes, got 12671",
    );
    refused(
        &change(|header| header.mesh_shape = vec![4, 4]),
        "shards",
        "expected 16 elements at most, got 32",
    );
    refused(&change(|header| header.mesh_shape = vec![]), "mesh_shape.dimensions", "got []");
    refused(&change(|header| header.spec.shape = vec![u32::MAX; 5]), "tensor_spec.shape", "more bytes");
    let in_rows = change(|header| {
        header.spec.page = PageConfig::RowMajor;
        header.spec.alignment = vec![1];
    });
    refused(&in_rows, "tensor_spec.shape", "tiles only");
    refused(
        &change(|header| header.spec.shape = vec![1; 17]),
        "tensor_spec.shape",
        "expected 16 elements at most",
    );
    let outside = Header::decode(&flat(&weight()), weight().data_bytes() - 1).unwrap_err();
    assert_eq!(outside.to_string().split(": ").next(), Some("shards[7].buffer"));
    for header in [&[][..], &[0; 3], &[0xFF; 64], &[4, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(Header::decode(header, 0).unwrap_err().field, "header");
    }
}

#[test]
fn a_topology_must_suit_the_mesh() {
    let spec = || TensorSpec::tiled(&[32, 32], DataType::Bfloat16, MemoryConfig::DRAM);
    let new = |mesh: [u32; 2], topology| Header::new(spec(), mesh.to_vec(), topology).unwrap_err().field;
    let whole = TensorTopology::mesh(2, 4, [Placement::Replicate; 2]);
    assert_eq!(new([2, 2], whole.clone()), "shards[2].mesh_coordinate");
    let short = TensorTopology { mesh_coords: whole.mesh_coords[..7].to_vec(), ..whole.clone() };
    assert_eq!(new([2, 4], short), "tensor_topology.mesh_coords");
    let flat = TensorTopology { placements: vec![Placement::Replicate], ..whole };
    assert_eq!(new([2, 4], flat), "tensor_topology.placements");
    let nowhere = ShardSpec {
        grid: CoreRangeSet::rectangle(u32::MAX, 2),
        shape: [32, 32],
        orientation: ShardOrientation::RowMajor,
    };
    let config = MemoryConfig::sharded(MemoryLayout::WidthSharded, BufferType::L1, nowhere);
    let field = Header::host(TensorSpec { memory_config: config, ..spec() }).unwrap_err().field;
    assert!(
        field.starts_with("tensor_spec.tensor_layout.memory_config.shard_spec.grid.ranges[0].end"),
        "{field}"
    );
    let transposed = PageConfig::Tile { tile: Tile::SQUARE, transpose: true };
    let spec = TensorSpec { page: transposed, ..spec() };
    assert_eq!(Header::host(spec).unwrap_err().field, "tensor_spec");
}

#[test]
fn files_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |content: &[u8]| {
        let path = dir.path().join("weight.tensorbin");
        fs::write(&path, content).unwrap();
        let error = TensorBin::open(&path).unwrap_err().to_string();
        assert!(error.contains("weight.tensorbin: "), "{error}");
        error
    };
    assert!(open(b"short").contains("header length: expected 8 bytes, the file has 5"));
    assert!(open(&[0xFF; 100]).contains("older .bin format"));
    assert!(open(&[9, 0, 0, 0, 0, 0, 0, 0, 1]).contains("claims 9 bytes, the file has 1 more"));
    let mut whole = weight().encode();
    assert!(open(&whole).contains("shards[0].buffer: 12672 bytes from 0 do not lie within the 0"));
    whole[8..].fill(0);
    assert!(open(&whole).contains("header: leads out of the header"));
    assert!(TensorBin::open(dir.path()).unwrap_err().to_string().contains("is not a regular file"));
    assert!(TensorBin::open(Path::new("absent.tensorbin")).unwrap_err().to_string().starts_with("absent"));
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weight.tensorbin");
    fs::write(&path, "the file before").unwrap();
    let header = weight();
    let writer = Writer::create(&path, &header).unwrap();
    writer.write(3, 10, &[1; 20]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(fs::read(&path).unwrap(), b"the file before");
    let error = Writer::create(&dir.path().join("absent/weight.tensorbin"), &header).unwrap_err();
    assert!(error.to_string().contains("weight.tensorbin"), "{error}");
}

#[test]
fn parts_of_buffers_come_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.tensorbin");
    // Buffers of 20 bytes, so that there are gaps between them.
    let spec = TensorSpec::row_major(&[2, 5], DataType::Bfloat16, MemoryConfig::DRAM);
    let topology = TensorTopology::mesh(1, 3, [Placement::Replicate, Placement::Shard(1)]);
    let header = Header::new(spec, vec![1, 3], topology).unwrap();
    let layout = header.spec.shard_layout().unwrap();
    let values = |shard: usize| (0..10).map(|index| (shard * 10 + index) as f32).collect::<Vec<_>>();
    let writer = Writer::create(&path, &header).unwrap();
    for shard in [2, 0, 1] {
        let bytes = layout.pack(&values(shard), Rounding::Host);
        writer.write(shard, 12, &bytes[12..]).unwrap();
        writer.write(shard, 0, &bytes[..12]).unwrap();
    }
    writer.finish().unwrap();
    let mut file = TensorBin::open(&path).unwrap();
    assert_eq!((file.file_bytes() - file.data_start(), header.data_bytes()), (148, 148));
    for shard in 0..3 {
        let bytes = file.read_shard(shard).unwrap();
        assert_eq!(layout.unpack(&bytes), values(shard));
    }
}

fn headers() -> impl Strategy<Value = Header> {
    let shape = proptest::collection::vec(1_u32..70, 0..4);
    let config = prop_oneof![
        Just(MemoryConfig::DRAM),
        Just(MemoryConfig::L1),
        (1_u32..9, 1_u32..9, any::<bool>()).prop_map(|(columns, rows, by_columns)| {
            let orientation =
                if by_columns { ShardOrientation::ColMajor } else { ShardOrientation::RowMajor };
            let grid = CoreRangeSet::row_by_row(columns * rows, 8);
            let spec = ShardSpec { grid, shape: [32 * rows, 32 * columns], orientation };
            MemoryConfig::sharded(MemoryLayout::BlockSharded, BufferType::L1, spec)
        }),
        (1_u32..5).prop_map(|side| {
            let spec = NdShardSpec {
                shard_shape: vec![side, 32, 32],
                grid: CoreRangeSet::rectangle(side, 2),
                orientation: ShardOrientation::RowMajor,
                shard_distribution_strategy: ShardDistributionStrategy::RoundRobin1d,
            };
            MemoryConfig::nd_sharded(BufferType::L1, spec)
        }),
    ];
    let placement = || prop_oneof![Just(Placement::Replicate), (-3_i32..3).prop_map(Placement::Shard)];
    let data_type = proptest::sample::select(DataType::ALL);
    (shape, config, data_type, any::<bool>(), [1_u32..5, 1_u32..9], [placement(), placement()]).prop_map(
        |(shape, config, data_type, rows, [height, width], placements)| {
            let spec = if rows && data_type.block_float().is_none() {
                TensorSpec::row_major(&shape, data_type, config)
            } else {
                TensorSpec::tiled(&shape, data_type, config)
            };
            let topology = TensorTopology::mesh(height, width, placements);
            Header::new(spec, vec![height, width], topology).unwrap()
        },
    )
}

proptest! {
    #[test]
    fn a_header_reads_as_it_was_written(header in headers()) {
        prop_assert_eq!(decode(&header).unwrap(), header);
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::decode(&bytes, 1 << 20);
    }

    #[test]
    fn a_damaged_header_is_a_header_or_an_error(
        header in headers(), changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6), cut in any::<u16>(),
    ) {
        let mut bytes = flat(&header);
        for (at, byte) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        if cut % 4 == 0 {
            bytes.truncate(usize::from(cut) % bytes.len());
        }
        if let Ok(read) = Header::decode(&bytes, header.data_bytes()) {
            // What was taken can be written, and is the same then.
            prop_assert_eq!(decode(&read).unwrap(), read);
        }
    }
}
