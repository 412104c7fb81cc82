//! A `.tensorbin` file of TT-NN: what its header says, and which devices share a buffer.

use super::line;
use crate::output::count;
use anyhow::Result;
use dsv3_galaxy::{
    tensorbin::{Header, PageConfig, Span, TensorBin},
    tile::Tile,
    types::{CoreRangeSet, DataType, Layout, MemoryConfig},
};
use indicatif::DecimalBytes;
use serde::Serialize;
use std::{collections::BTreeMap, fmt, path::PathBuf};

/// Devices of a buffer, and buffers, that are shown to a person; JSON has all.
const SHOWN: usize = 8;

/// A file.
#[derive(Serialize)]
pub(super) struct TensorBinContents {
    path: PathBuf,
    file_bytes: u64,
    /// Where in the file the data region starts; offsets count from there.
    data_start: u64,
    data_bytes: u64,
    /// Of one shard, without padding.
    shape: Vec<u32>,
    dtype: DataType,
    layout: Layout,
    #[serde(skip_serializing_if = "Option::is_none")]
    tile: Option<Tile>,
    transpose_tile: bool,
    alignment: Vec<u32>,
    memory_config: MemoryConfig,
    mesh_shape: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topology: Option<Topology>,
    shards: u64,
    /// In the order in which they lie in the file.
    buffers: Vec<Buffer>,
}

/// How a whole tensor was cut over the mesh.
#[derive(Serialize)]
struct Topology {
    distribution_shape: Vec<u32>,
    /// `replicate`, or `shard` and the dimension.
    placements: Vec<String>,
}

/// Bytes of the file, and the devices that hold them.
#[derive(Serialize)]
struct Buffer {
    offset: u64,
    bytes: u64,
    mesh_coordinates: Vec<Vec<u32>>,
}

impl TensorBinContents {
    /// Of a file.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of this format.
    pub(super) fn read(path: PathBuf) -> Result<Self> {
        let file = TensorBin::open(&path)?;
        let Header { spec, mesh_shape, shards, topology } = file.header();
        let (layout, tile, transpose_tile) = match spec.page {
            PageConfig::RowMajor => (Layout::RowMajor, None, false),
            PageConfig::Tile { tile, transpose } => (Layout::Tile, Some(tile), transpose),
        };
        let mut buffers: BTreeMap<Span, Vec<Vec<u32>>> = BTreeMap::new();
        for shard in shards {
            buffers.entry(shard.span).or_default().push(shard.coordinate.clone());
        }
        let topology = topology.as_ref().map(|topology| Topology {
            distribution_shape: topology.distribution_shape.clone(),
            placements: topology.placements.iter().map(ToString::to_string).collect(),
        });
        Ok(Self {
            file_bytes: file.file_bytes(),
            data_start: file.data_start(),
            data_bytes: file.header().data_bytes(),
            shape: spec.shape.clone(),
            dtype: spec.data_type,
            layout,
            tile,
            transpose_tile,
            alignment: spec.alignment.clone(),
            memory_config: spec.memory_config.clone(),
            mesh_shape: mesh_shape.clone(),
            topology,
            shards: shards.len() as u64,
            buffers: buffers.into_iter().map(Buffer::of).collect(),
            path,
        })
    }
}

impl Buffer {
    fn of((Span { offset, bytes }, mesh_coordinates): (Span, Vec<Vec<u32>>)) -> Self {
        Self { offset, bytes, mesh_coordinates }
    }
}

impl fmt::Display for TensorBinContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        line(f, "shape of a shard", format_args!("{:?}", self.shape))?;
        line(f, "dtype", self.dtype)?;
        match self.tile {
            Some(tile) => {
                let transposed = if self.transpose_tile { ", transposed" } else { "" };
                line(f, "layout", format_args!("{} of {tile}{transposed}", self.layout))?;
            }
            None => line(f, "layout", self.layout)?,
        }
        line(f, "alignment", format_args!("{:?}", self.alignment))?;
        describe_memory_config(f, &self.memory_config)?;
        line(f, "mesh", sides(&self.mesh_shape))?;
        if let Some(Topology { distribution_shape, placements }) = &self.topology {
            let what = format_args!("{} shards: {}", sides(distribution_shape), placements.join(", "));
            line(f, "distribution", what)?;
        }
        line(f, "data", format_args!("{} from byte {}", DecimalBytes(self.data_bytes), self.data_start))?;
        let buffers = count(self.buffers.len() as u64, "buffer");
        writeln!(f, "\n{} in {buffers}", count(self.shards, "shard"))?;
        for buffer in self.buffers.iter().take(SHOWN) {
            writeln!(f, "  {buffer}")?;
        }
        if self.buffers.len() > SHOWN {
            writeln!(f, "  ... and {} more (all of them with --json)", self.buffers.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, bytes, mesh_coordinates } = self;
        write!(f, "{bytes} bytes from {offset}: ")?;
        for (index, coordinate) in mesh_coordinates.iter().take(SHOWN).enumerate() {
            write!(f, "{}{coordinate:?}", if index == 0 { "" } else { ", " })?;
        }
        match mesh_coordinates.len() {
            shown if shown <= SHOWN => Ok(()),
            all => write!(f, " and {} more", all - SHOWN),
        }
    }
}

/// A shape as it is typed: 4x8.
fn sides(shape: &[u32]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}

fn describe_memory_config(f: &mut fmt::Formatter<'_>, config: &MemoryConfig) -> fmt::Result {
    line(f, "memory", format_args!("{} in {}", config.memory_layout, config.buffer_type))?;
    let on = |grid: &CoreRangeSet| format!("on {} ({grid})", count(grid.cores(), "core"));
    match (&config.shard_spec, &config.nd_shard_spec) {
        (_, Some(spec)) if config.created_with_nd_shard_spec => {
            let (orientation, strategy) = (spec.orientation, spec.shard_distribution_strategy);
            let what = format_args!("{:?} {}, {orientation}, {strategy}", spec.shard_shape, on(&spec.grid));
            line(f, "parts of a shard", what)
        }
        (Some(spec), _) => {
            let what = format_args!("{:?} {}, {}", spec.shape, on(&spec.grid), spec.orientation);
            line(f, "parts of a shard", what)
        }
        _ => Ok(()),
    }
}
