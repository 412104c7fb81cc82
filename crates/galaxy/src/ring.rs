//! How experts' weights are packed for the fused operators (`moe_compute`): tile by tile, for a ring of cores, each beside a
//! bank of DRAM. The rules are those of TT-NN 0.81.1 (`ttnn/_experimental/moe_compute_utils.py`); a test holds them to what
//! TT-NN's own functions make.
//!
//! Both packed weights are made of blocks of four columns of tiles: a core has some for each expert. Gates and ups
//! (`quad_ring_w0_w1_experts`) stand in pairs, a column of gates and the same one of ups, and a block has two pairs. Each core
//! has a part of an expert's width. Downs (`quad_ring_w2_experts`) have a core's part of the hidden width in their blocks, and
//! their rows in the order in which the other cores' parts of the expert's width come around the ring.

use crate::{
    hardware::{DRAM_BANKS, TILE},
    types::{
        BufferType, CoreCoord, CoreRange, CoreRangeSet, MemoryConfig, MemoryLayout, ShardOrientation,
        ShardSpec,
    },
};
use std::ops::Range;

/// Cores of the ring.
pub const CORES: usize = DRAM_BANKS as usize;
/// Columns of tiles of a block.
pub const BLOCK_COLUMNS: usize = 4;
/// Rows of tiles that are read at a time, to which a block is filled up with zeros.
const ROWS_AT_A_TIME: usize = 7;
/// The order in which the ring visits the banks: cores beside them from the last row and column to the first
/// (`get_weight_core_shard_maps` on a Wormhole).
const BANK_RING: [u32; CORES] = [5, 0, 7, 8, 11, 3, 10, 2, 9, 6, 4, 1];

/// The packing of experts of some widths, in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPacking {
    hidden: usize,
    width: usize,
}

/// Which of an expert's weights a tile is of, and where it stands there: the tile of its rows, which are outputs, and of
/// its columns, which are inputs. It stands turned in the packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceTile {
    /// Of gates and ups: 0 is the gate, 1 is up. Of downs: 0.
    pub source: usize,
    /// The tile of outputs.
    pub output: usize,
    /// The tile of inputs.
    pub input: usize,
}

/// The part of `tiles` that a core of the ring has: parts differ by one, larger ones spread evenly. With `others`, the larger
/// parts go to those that have the smaller ones of the other dimension, where that evens out.
fn part(tiles: usize, core: usize, others: Option<usize>) -> usize {
    let larger = |tiles: usize| (core * (tiles % CORES)) % CORES < tiles % CORES;
    match others {
        Some(others) if tiles % CORES + others % CORES == CORES => {
            tiles / CORES + usize::from(!larger(others))
        }
        _ => tiles / CORES + usize::from(larger(tiles)),
    }
}

impl RingPacking {
    /// Of a hidden width and an expert's width, in elements; none where the widths are no whole tiles, or where TT-NN packs
    /// gates and ups in another way (columns of the largest part that are odd in number, or fewer than four).
    pub fn of(hidden: usize, width: usize) -> Option<Self> {
        let tile = TILE as usize;
        let whole = hidden > 0 && hidden.is_multiple_of(tile) && width.is_multiple_of(tile);
        let packing = Self { hidden: hidden / tile, width: width / tile };
        let columns = packing.width.div_ceil(CORES);
        (whole && columns >= BLOCK_COLUMNS && columns.is_multiple_of(2)).then_some(packing)
    }

    /// Blocks and rows of tiles that a core has of an expert's gates and ups.
    pub fn up_blocks(&self) -> [usize; 2] {
        [self.width.div_ceil(CORES) / 2, self.hidden.next_multiple_of(ROWS_AT_A_TIME)]
    }

    /// Blocks and rows of tiles that a core has of an expert's downs.
    pub fn down_blocks(&self) -> [usize; 2] {
        let columns = self.hidden.div_ceil(CORES);
        [columns.div_ceil(BLOCK_COLUMNS), self.width.next_multiple_of(ROWS_AT_A_TIME)]
    }

    fn up_part(&self, core: usize) -> Range<usize> {
        let first = (0..core).map(|core| part(self.width, core, None)).sum();
        first..first + part(self.width, core, None)
    }

    fn down_part(&self, core: usize) -> Range<usize> {
        let part = |core| part(self.hidden, core, Some(self.width));
        let first = (0..core).map(part).sum();
        first..first + part(core)
    }

    /// What stands in a tile of a core's block of gates and ups; none is zeros.
    pub fn up_tile(&self, core: usize, block: usize, [row, column]: [usize; 2]) -> Option<SourceTile> {
        let output = self.up_part(core).nth(2 * block + column / 2)?;
        (row < self.hidden).then_some(SourceTile { source: column % 2, output, input: row })
    }

    /// What stands in a tile of a core's block of downs; none is zeros.
    pub fn down_tile(&self, core: usize, block: usize, [row, column]: [usize; 2]) -> Option<SourceTile> {
        let output = self.down_part(core).nth(BLOCK_COLUMNS * block + column)?;
        // Its own part of the expert's width comes first, then that of the core before it.
        let from = (0..CORES).map(|step| (core + CORES - step) % CORES);
        let input = from.flat_map(|core| self.up_part(core)).nth(row)?;
        Some(SourceTile { source: 0, output, input })
    }

    /// The shape of a device's packed weight, from its blocks and rows of tiles: core, layer, expert, block, rows, columns.
    pub fn shape([blocks, rows]: [usize; 2], experts: usize) -> [usize; 6] {
        [CORES, 1, experts, blocks, rows * TILE as usize, BLOCK_COLUMNS * TILE as usize]
    }

    /// Where a packed weight of this shape lies: each core's part in its bank.
    pub fn memory_config(shape: [u32; 6]) -> MemoryConfig {
        let [_, layers, experts, blocks, rows, columns] = shape;
        let banks = BANK_RING.map(|bank| CoreRange::new(CoreCoord::new(bank, 0), CoreCoord::new(bank, 0)));
        let spec = ShardSpec {
            grid: CoreRangeSet(banks.to_vec()),
            shape: [layers * experts * blocks * rows, columns],
            orientation: ShardOrientation::RowMajor,
        };
        MemoryConfig::sharded(MemoryLayout::HeightSharded, BufferType::Dram, spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::{fs, path::Path};

    /// A tile's number in `tools/ttnn_check/ring_packing.py`: gates, then ups, from one on, by input and output.
    fn number(tile: Option<SourceTile>, [inputs, outputs]: [usize; 2]) -> u32 {
        let of = |SourceTile { source, output, input }| (source * inputs + input) * outputs + output + 1;
        tile.map_or(0, of) as u32
    }

    fn packed(packing: RingPacking) -> [Vec<u32>; 2] {
        let (hidden, width) = (packing.hidden, packing.width);
        let all = |[blocks, rows]: [usize; 2], tile: &dyn Fn(usize, usize, [usize; 2]) -> u32| {
            let mut all = Vec::new();
            for core in 0..CORES {
                for block in 0..blocks {
                    for row in 0..rows {
                        all.extend((0..BLOCK_COLUMNS).map(|column| tile(core, block, [row, column])));
                    }
                }
            }
            all
        };
        [
            all(packing.up_blocks(), &|core, block, at| {
                number(packing.up_tile(core, block, at), [hidden, width])
            }),
            all(packing.down_blocks(), &|core, block, at| {
                number(packing.down_tile(core, block, at), [width, hidden])
            }),
        ]
    }

    /// FNV-1a.
    fn hash(numbers: &[u32]) -> String {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// What TT-NN's own functions make, tile by tile: `ring_packing.py` had them pack numbered tiles.
    #[test]
    fn tiles_stand_where_tt_nn_puts_them() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/galaxy/ring_packing.json");
        let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.iter().any(|case| (&case["hidden"], &case["width"]) == (&7168.into(), &2048.into())));
        for case in cases {
            let side = |name: &str| case[name].as_u64().unwrap() as usize;
            let packing = RingPacking::of(side("hidden"), side("width")).unwrap();
            for (name, numbers) in ["w0_w1", "w2"].into_iter().zip(packed(packing)) {
                let blocks = if name == "w2" { packing.down_blocks() } else { packing.up_blocks() };
                let shape: Vec<usize> = RingPacking::shape(blocks, 1).to_vec();
                assert_eq!(Value::from(shape), case[name]["shape"], "{name} of {case}");
                assert_eq!(
                    Value::from(hash(&numbers)),
                    case[name]["fnv1a"],
                    "{name} of {}x{}",
                    side("hidden"),
                    side("width")
                );
                if let Some(tiles) = case[name].get("tiles") {
                    assert_eq!(&Value::from(numbers), tiles, "{name}");
                }
            }
        }
    }

    #[test]
    fn what_tt_nn_packs_otherwise_has_no_packing() {
        assert!(RingPacking::of(7168, 2048).is_some());
        for (hidden, width) in [(7168, 1500), (100, 2048), (7168, 32 * 36), (7168, 32 * 60)] {
            assert!(RingPacking::of(hidden, width).is_none(), "{hidden}, {width}");
        }
    }
}
