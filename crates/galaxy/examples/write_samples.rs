//! Writes files in the layouts of DeepSeek-V3's weights, small ones, and the values they were made from, for
//! `tools/ttnn_check`.

use dsv3_galaxy::{
    block_float::Rounding,
    tensorbin::{Header, Placement, TensorSpec, TensorTopology, Writer},
    types::{BufferType, CoreRangeSet, DataType, MemoryConfig, MemoryLayout, ShardOrientation, ShardSpec},
};
use serde_json::json;
use std::{error::Error, fs, path::Path};

/// A tensor on a mesh.
struct Sample {
    name: &'static str,
    /// Of the whole tensor.
    shape: Vec<u32>,
    spec: fn(&[u32]) -> TensorSpec,
    mesh: [u32; 2],
    placements: [Placement; 2],
}

fn over_banks(layout: MemoryLayout, shape: [u32; 2]) -> MemoryConfig {
    let grid = CoreRangeSet::rectangle(12, 1);
    let spec = ShardSpec { grid, shape, orientation: ShardOrientation::RowMajor };
    MemoryConfig::sharded(layout, BufferType::Dram, spec)
}

fn samples() -> Vec<Sample> {
    use Placement::{Replicate, Shard};
    vec![
        Sample {
            name: "columns_over_banks",
            shape: vec![1, 64, 8 * 384],
            spec: |shape| {
                let config = over_banks(MemoryLayout::WidthSharded, [64, 32]);
                TensorSpec::tiled(shape, DataType::Bfloat8B, config)
            },
            mesh: [4, 8],
            placements: [Replicate, Shard(-1)],
        },
        Sample {
            name: "experts",
            shape: vec![1, 64, 96, 64],
            spec: |shape| TensorSpec::tiled(shape, DataType::Bfloat4B, MemoryConfig::DRAM),
            mesh: [8, 8],
            placements: [Shard(1), Replicate],
        },
        Sample {
            name: "heads_over_banks",
            shape: vec![1, 128, 32, 64],
            spec: |shape| {
                let config = over_banks(MemoryLayout::HeightSharded, [64, 64]);
                TensorSpec::tiled(shape, DataType::Bfloat8B, config)
            },
            mesh: [16, 8],
            placements: [Replicate, Shard(1)],
        },
        Sample {
            name: "norm",
            shape: vec![1, 224, 32],
            spec: |shape| TensorSpec::row_major(shape, DataType::Bfloat16, MemoryConfig::DRAM),
            mesh: [4, 8],
            placements: [Replicate, Shard(-2)],
        },
        Sample {
            name: "embedding",
            shape: vec![1, 1, 50, 8 * 7],
            spec: |shape| TensorSpec::row_major(shape, DataType::Bfloat16, MemoryConfig::DRAM),
            mesh: [4, 8],
            placements: [Replicate, Shard(-1)],
        },
        Sample {
            name: "gate",
            shape: vec![1, 1, 70, 50],
            spec: |shape| TensorSpec::tiled(shape, DataType::Float32, MemoryConfig::DRAM),
            mesh: [4, 8],
            placements: [Replicate, Replicate],
        },
    ]
}

/// Values over many powers of two, the same in each run.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        // The constants of Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    (0..count)
        .map(|_| {
            let value = next() as f32 / (1 << 23) as f32 - 1.0;
            value * f32::from(next() as u16 % 12).exp2()
        })
        .collect()
}

/// The part of a tensor that a placement gives one of `count` devices.
fn part(shape: &mut [u32], values: &[f32], placement: Placement, index: u32, count: u32) -> Vec<f32> {
    let Placement::Shard(dimension) = placement else { return values.to_vec() };
    let from_last = if dimension < 0 { shape.len() } else { 0 };
    let dimension = from_last.checked_add_signed(dimension as isize).expect("a dimension");
    assert!(shape[dimension].is_multiple_of(count), "{shape:?} in {count}");
    shape[dimension] /= count;
    let inner = shape[dimension..].iter().product::<u32>() as usize;
    values.chunks_exact(inner).skip(index as usize).step_by(count as usize).flatten().copied().collect()
}

/// NumPy's format, version 1.
fn npy(shape: &[u32], values: &[f32]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(|side| format!("{side},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
    let length = (header.len() + 11).next_multiple_of(64) - 10;
    header.push_str(&" ".repeat(length - header.len() - 1));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn write(dir: &Path, sample: &Sample) -> Result<(), Box<dyn Error>> {
    let whole = values(sample.shape.iter().product::<u32>() as usize);
    let [rows, columns] = sample.mesh;
    let cut = |row, column| {
        let mut shape = sample.shape.clone();
        let values = part(&mut shape, &whole, sample.placements[0], row, rows);
        let values = part(&mut shape, &values, sample.placements[1], column, columns);
        (shape, values)
    };
    let spec = (sample.spec)(&cut(0, 0).0);
    let topology = TensorTopology::mesh(rows, columns, sample.placements);
    let header = Header::new(spec, sample.mesh.to_vec(), topology)?;
    let layout = header.spec.shard_layout()?;
    let writer = Writer::create(&dir.join(format!("{}.tensorbin", sample.name)), &header)?;
    for (buffer, span) in header.buffers().into_iter().enumerate() {
        let shard = header.shards.iter().find(|shard| shard.span == span).expect("a shard of each buffer");
        let (_, values) = cut(shard.coordinate[0], shard.coordinate[1]);
        writer.write(buffer, 0, &layout.pack(&values, Rounding::Host))?;
    }
    writer.finish()?;
    fs::write(dir.join(format!("{}.npy", sample.name)), npy(&sample.shape, &whole))?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: write_samples DIR")?;
    let dir = Path::new(&dir);
    let mut index = Vec::new();
    for sample in samples() {
        write(dir, &sample)?;
        let name = sample.name;
        index.push(json!({"file": format!("{name}.tensorbin"), "expect": format!("{name}.npy")}));
    }
    fs::write(dir.join("index.json"), serde_json::to_vec_pretty(&index)?)?;
    Ok(())
}
