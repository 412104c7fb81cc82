//! Files that TT-NN wrote: what this crate reads from them, and what it writes in their place.

mod support;

use dsv3_galaxy::{
    block_float::Rounding,
    shard::ShardLayout,
    tensorbin::{Header, Placement, TensorBin, Writer},
    types::DataType,
};
use std::fs;
use support::{Array, Golden, golden};

/// TT-NN 0.66.0 aligned to 8 bytes.
const OLDER: &str = "older_bfloat16_rm_5x7.tensorbin";
/// Its padding is 9.
const PADDED: &str = "bfloat16_tile_pad9_5x7.tensorbin";
/// Its topology does not say how the whole was cut: in 2x4 parts.
const FROM_HOST_SHARDS: &str = "bfloat16_from_host_shards.tensorbin";

fn pack(layout: &ShardLayout, data_type: DataType, values: &Array) -> Vec<u8> {
    if data_type.is_integer() {
        layout.pack_integers(&values.words)
    } else {
        layout.pack(&values.floats(), Rounding::Host)
    }
}

/// The values of a shard, as words.
fn unpack(layout: &ShardLayout, data_type: DataType, bytes: &[u8]) -> Vec<u32> {
    if data_type.is_integer() {
        layout.unpack_integers(bytes)
    } else {
        layout.unpack(bytes).into_iter().map(f32::to_bits).collect()
    }
}

/// The part of the whole that a file's topology gives each of its shards, in the order of the shards.
fn parts(file: &Golden, header: &Header) -> Vec<Array> {
    let whole = file.values();
    let topology = header.topology.as_ref().unwrap();
    let (sides, placements) = if file.file == FROM_HOST_SHARDS {
        (vec![2, 4], vec![Placement::Shard(0), Placement::Shard(1)])
    } else {
        (topology.distribution_shape.clone(), topology.placements.clone())
    };
    (0..header.shards.len())
        .map(|index| {
            let mut part = Array { shape: whole.shape.clone(), words: whole.words.clone() };
            let mut stride = header.shards.len();
            for (&side, placement) in sides.iter().zip(&placements) {
                let side = side as usize;
                stride /= side;
                if let Placement::Shard(dimension) = placement {
                    part = part.part(*dimension, index / stride % side, side);
                }
            }
            part
        })
        .collect()
}

#[test]
fn what_is_packed_is_what_tt_nn_stores() {
    for golden in golden() {
        let mut file = TensorBin::open(&golden.path()).unwrap();
        let spec = file.header().spec.clone();
        let layout = spec.shard_layout().unwrap();
        for (index, part) in parts(&golden, &file.header().clone()).iter().enumerate() {
            let shape: Vec<u32> = part.shape.iter().map(|&side| side as u32).collect();
            assert_eq!(shape, spec.shape, "{}", golden.file);
            let stored = file.read_shard(index).unwrap();
            if golden.file == PADDED {
                assert_eq!(unpack(&layout, spec.data_type, &stored), part.words, "{}", golden.file);
            } else {
                assert!(pack(&layout, spec.data_type, part) == stored, "{} shard {index}", golden.file);
            }
        }
    }
}

#[test]
fn what_is_unpacked_is_what_tt_nn_reads() {
    let mut compared = 0;
    for golden in golden() {
        let Some(readback) = golden.readback() else { continue };
        let mut file = TensorBin::open(&golden.path()).unwrap();
        let spec = file.header().spec.clone();
        let bytes = file.read_shard(0).unwrap();
        let values = unpack(&spec.shard_layout().unwrap(), spec.data_type, &bytes);
        assert!(values == readback.words, "{}", golden.file);
        compared += 1;
    }
    assert!(compared > 50, "{compared} files");
}

#[test]
fn what_is_read_is_written_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for golden in golden() {
        let mut file = TensorBin::open(&golden.path()).unwrap();
        let read = file.header().clone();
        // From what was read only what says how it is to be laid out: the offsets are computed anew.
        let header = Header::new(
            read.spec.clone(),
            read.mesh_shape.clone(),
            read.topology.clone().expect("files of this age have a topology"),
        );
        let header = header.unwrap();
        assert_eq!(header, read, "{}", golden.file);
        let path = dir.path().join(&golden.file);
        let writer = Writer::create(&path, &header).unwrap();
        for (buffer, span) in header.buffers().into_iter().enumerate() {
            let shard = read.shards.iter().position(|shard| shard.span == span).unwrap();
            writer.write(buffer, 0, &file.read_shard(shard).unwrap()).unwrap();
        }
        assert!(!path.exists(), "it has its name when it is whole");
        writer.finish().unwrap();
        let (written, original) = (fs::read(&path).unwrap(), fs::read(golden.path()).unwrap());
        if golden.file == OLDER {
            // The same data behind more padding.
            assert_eq!(written[written.len() - 70..], original[original.len() - 70..]);
            assert_eq!(TensorBin::open(&path).unwrap().header(), &read);
        } else {
            assert!(written == original, "{}: {:?}", golden.file, first_difference(&written, &original));
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), golden().len(), "no temporary file is left");
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    left.iter().zip(right).position(|(left, right)| left != right)
}
