//! Stage 1 for several ranks: what each holds, and what they are refused.

use super::ggml::{blocks_of, number_and_halves, write_gguf};
use super::*;
use crate::{ConvertProgress, Dtype, GgmlBlocks, GgufName, Kernels, Location, TensorInfo, WeightOutput};
use dsv3_kernels::Format;
use dsv3_mesh::Axis;
use std::collections::BTreeMap;

/// Any list of weights.
enum List {}

impl Module for List {
    type Hf = Vec<WeightSpec>;
    type Weights<W> = Vec<Leaf<W>>;
    type PrefillConfig = ();
    type DecodeConfig = ();
    type State = ();
    type Input<'a> = ();
    type Output = ();

    fn weight_specs(specs: &Self::Hf, _: &Prefix, _: Layout) -> Vec<Leaf<WeightSpec>> {
        specs.iter().cloned().map(Leaf).collect()
    }

    fn try_map<A, B, E>(
        weights: Vec<Leaf<A>>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<Vec<Leaf<B>>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(_: &Self::Hf, _: Layout) -> Result<(), Error> {
        Ok(())
    }

    fn decode_model_config(_: &Self::Hf, _: Layout) -> Result<(), Error> {
        Ok(())
    }

    fn create_state(_: &Self::Hf, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    fn forward_prefill((): (), _: &PrefillStep<'_>, _: PrefillRun<'_, Self>) -> Result<(), Error> {
        Ok(())
    }

    fn forward_decode((): (), _: &DecodeStep<'_>, _: DecodeRun<'_, Self>) -> Result<(), Error> {
        Ok(())
    }
}

pub(super) const BY_ROWS: Placement = Placement::Shard { dim: 0, axis: Axis::Columns };
pub(super) const BY_COLUMNS: Placement = Placement::Shard { dim: 1, axis: Axis::Columns };
const MATRIX: &str = "matrix.weight";

pub(super) fn layout(text: &str) -> Layout {
    Layout::from(text.parse::<MeshShape>().unwrap())
}

pub(super) fn spec(
    source: &str,
    shape: &[usize],
    placement: Placement,
    scale_block: Option<[usize; 2]>,
) -> WeightSpec {
    let kind = (shape.len() == 2).then_some(WeightKind("matrix"));
    WeightSpec { source: source.to_owned(), kind, shape: shape.to_vec(), placement, scale_block }
}

/// Bytes of a tensor of a type, no NaN among its values.
fn bytes_of(dtype: Dtype, shape: [usize; 2], seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let values = shape[0] * shape[1];
    let mut value = || f32::from(byte()) / 16.0 - 7.0;
    let scaled = |mut halves: Vec<u8>, rest: usize, byte: &mut dyn FnMut() -> u8| {
        halves.extend((0..rest).map(|_| byte()));
        halves
    };
    let half = |bits: u8| half::f16::from_f32(f32::from(bits) / 1024.0).to_le_bytes();
    match dtype {
        Dtype::F32 => (0..values).flat_map(|_| value().to_le_bytes()).collect(),
        Dtype::Bf16 => (0..values).flat_map(|_| dsv3_kernels::f32_to_bf16(value()).to_le_bytes()).collect(),
        Dtype::F16 => (0..values).flat_map(|_| half::f16::from_f32(value()).to_le_bytes()).collect(),
        Dtype::F8E4M3 => {
            (0..values).map(|_| Some(byte()).filter(|b| b & 0x7f != 0x7f).unwrap_or(0x38)).collect()
        }
        Dtype::Q8_0 => {
            let block = |_| scaled(half(byte()).to_vec(), 32, &mut byte);
            (0..values / 32).flat_map(block).collect()
        }
        Dtype::Q4K => {
            let block = |_| scaled([half(byte()), half(byte())].concat(), 140, &mut byte);
            (0..values / 256).flat_map(block).collect()
        }
        Dtype::Ggml(blocks) => blocks_of(blocks, values / blocks.block_cols(), 0.25, &mut byte),
        other => panic!("no weight is {other}"),
    }
}

/// A GGUF file of one matrix.
fn gguf(dir: &Path, dtype: Dtype, shape: [usize; 2], bytes: &[u8]) -> Checkpoint {
    let kind = match dtype {
        Dtype::Q8_0 => 8,
        Dtype::Ggml(blocks) => number_and_halves(blocks).0,
        _ => 12,
    };
    let rename = |_: &TensorInfo| GgufName::Whole(MATRIX.to_owned());
    write_gguf(dir, &[("m", kind, &shape, bytes)]).into_checkpoint(rename, BTreeMap::new()).unwrap()
}

/// A checkpoint of one matrix, and of one vector where it is no GGUF file.
fn checkpoint(dir: &Path, dtype: Dtype, shape: [usize; 2], block: [usize; 2]) -> Checkpoint {
    let bytes = bytes_of(dtype, shape, 7);
    let name = match dtype {
        Dtype::F32 => "F32",
        Dtype::Bf16 => "BF16",
        Dtype::F16 => "F16",
        Dtype::F8E4M3 => "F8_E4M3",
        _ => return gguf(dir, dtype, shape, &bytes),
    };
    let mut shard = ShardBuilder::new().raw("pad", "U8", &[1], &[0]).raw(MATRIX, name, &shape, &bytes);
    if dtype == Dtype::F8E4M3 {
        let grid = [shape[0].div_ceil(block[0]), shape[1].div_ceil(block[1])];
        let scales: Vec<f32> = (0..grid[0] * grid[1]).map(|index| 0.5 + index as f32).collect();
        shard = shard.f32("matrix.weight_scale_inv", &grid, &scales);
    }
    let vector: Vec<f32> = (0..shape[1]).map(|index| index as f32).collect();
    write_checkpoint(dir, &[("model.safetensors", shard.bf16("vector.weight", &[shape[1]], &vector))]);
    Checkpoint::open(dir).unwrap()
}

/// The values of a rank's part.
pub(super) fn values(
    checkpoint: &Checkpoint,
    spec: &WeightSpec,
    formats: &Formats,
    (layout, rank): (Layout, Rank),
) -> Result<(SavedWeight, Vec<Vec<f32>>), Error> {
    let dir = tempfile::tempdir().unwrap();
    let mut progress = |_: ConvertProgress<'_>| {};
    let out = WeightOutput::new(dir.path(), layout, rank, &mut progress);
    let mut out = out.with_formats(formats.clone());
    let saved = out.save(&WeightPath::default(), spec, checkpoint)?;
    let weight = WeightLoader::new(checkpoint, dir.path()).load(&saved)?;
    if let [_] = spec.shape[..] {
        return Ok((saved, vec![weight.vector().to_vec()]));
    }
    let matrix = weight.matrix();
    let mut rows = vec![vec![0.0; matrix.cols()]; matrix.rows()];
    for (row, out) in rows.iter_mut().enumerate() {
        Kernels::best().dequantize_row(&matrix, row, out);
    }
    Ok((saved, rows))
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

const DTYPES: [Dtype; 8] = [
    Dtype::F32,
    Dtype::Bf16,
    Dtype::F16,
    Dtype::F8E4M3,
    Dtype::Q8_0,
    Dtype::Q4K,
    Dtype::Ggml(GgmlBlocks::Q5_0),
    Dtype::Ggml(GgmlBlocks::Q6K),
];

proptest! {
    // Each case converts and loads as many times as there are ranks.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the type, the format that is asked for and the mesh: parts make up the whole, bit for bit, or are
    /// refused where they cut a block.
    #[test]
    fn parts_make_up_the_whole(
        dtype in prop::sample::select(&DTYPES[..]),
        asked in prop::sample::select(&[None, Some(Format::F32), Some(Format::Bf16), Some(Format::Q8_0), Some(Format::Q4K)][..]),
        (rows, columns) in (1_usize..3, 1_usize..5),
        (height, width) in (1_usize..4, prop::sample::select(&[1_usize, 3, 16, 32, 128, 256][..])),
        block in (1_usize..6, prop::sample::select(&[1_usize, 2, 5, 48, 128][..])),
        by_columns in any::<bool>(),
    ) {
        let (placement, mut shape) =
            if by_columns { (BY_COLUMNS, [height, width * columns]) } else { (BY_ROWS, [height * columns, width]) };
        if let Dtype::Ggml(blocks) = dtype {
            // Parts may begin and end inside a block.
            shape[1] = width.next_multiple_of(blocks.block_cols());
            prop_assume!(!by_columns || shape[1].is_multiple_of(columns));
        }
        if let Some(format) = dtype.format() {
            shape[1] = shape[1].next_multiple_of(format.block_cols() * if by_columns { columns } else { 1 });
            if by_columns && width == 16 && format.block_cols() > 1 {
                // Parts of half a block.
                shape[1] = format.block_cols() / 2 * columns * 2;
                prop_assume!(shape[1].is_multiple_of(format.block_cols()));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let block = [block.0, block.1];
        let checkpoint = checkpoint(dir.path(), dtype, shape, block);
        let spec = spec(MATRIX, &shape, placement, Some(block));
        let formats = |format: Option<Format>| Formats {
            name: String::new(),
            kinds: format.map(|format| ("matrix".to_owned(), format)).into_iter().collect(),
        };
        let layout = layout(&format!("{rows}x{columns}"));
        let parts: Vec<_> = layout
            .weight_ranks()
            .map(|rank| values(&checkpoint, &spec, &formats(asked), (layout, rank)).unwrap())
            .collect();
        let got = parts[0].0.format;
        // Asked for what they have, weights stay as they are.
        let same = Some(got).filter(|&format| dtype.format() != Some(format));
        let single = (Layout::SINGLE, Rank(0));
        let (_, whole) = values(&checkpoint, &spec, &formats(same), single).unwrap();
        let joined: Vec<Vec<f32>> = if by_columns {
            (0..shape[0]).map(|row| parts.iter().flat_map(|(_, part)| part[row].clone()).collect()).collect()
        } else {
            parts.iter().flat_map(|(_, part)| part.clone()).collect()
        };
        prop_assert_eq!(bits(&joined), bits(&whole));
        for (saved, _) in &parts {
            let in_place = dtype.format() == Some(got) && (!by_columns || columns == 1);
            prop_assert_eq!(saved.data.location == Location::Checkpoint, in_place);
        }
        let last = Rank(layout.mesh.devices() - 1);
        let (saved, _) = values(&checkpoint, &spec, &formats(asked), (layout, last)).unwrap();
        prop_assert_eq!(&saved, &parts.last().unwrap().0, "rows share weights");
    }

    /// Vectors are split where they lie.
    #[test]
    fn vectors_are_split_in_place(columns in 1_usize..6, length in 1_usize..9) {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path(), Dtype::Bf16, [1, length * columns], [1, 1]);
        let spec = spec("vector.weight", &[length * columns], BY_ROWS, None);
        let layout = layout(&format!("1x{columns}"));
        let parts = layout.weight_ranks().map(|rank| {
            let (saved, mut rows) = values(&checkpoint, &spec, &Formats::default(), (layout, rank)).unwrap();
            assert_eq!(saved.data.location, Location::Checkpoint);
            rows.pop().unwrap()
        });
        let joined: Vec<f32> = parts.flatten().collect();
        prop_assert_eq!(joined, (0..length * columns).map(|index| index as f32).collect::<Vec<_>>());
    }
}

#[test]
fn parts_that_cut_a_block_are_refused_with_what_to_do() {
    for (dtype, width, expected) in [
        (
            Dtype::Q8_0,
            32,
            "into 16 columns, inside a block of 32 of q8_0; take a mesh with fewer columns, or another format: --format matrix=bf16",
        ),
        (
            Dtype::Q4K,
            256,
            "into 128 columns, inside a block of 256 of q4_K; take a mesh with fewer columns, or another format: --format matrix=q8_0",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path(), dtype, [2, width], [1, 1]);
        let spec = spec(MATRIX, &[2, width], BY_COLUMNS, None);
        let error = values(&checkpoint, &spec, &Formats::default(), (layout("1x2"), Rank(1)))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("tensor matrix.weight: a mesh of 1x2 cuts ") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn scales_stay_as_coarse_as_a_cut_allows() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path(), Dtype::F8E4M3, [3, 400], [2, 128]);
    let spec = spec(MATRIX, &[3, 400], BY_COLUMNS, Some([2, 128]));
    let widths: Vec<_> = (0..8)
        .map(|rank| {
            let at = (layout("1x8"), Rank(rank));
            values(&checkpoint, &spec, &Formats::default(), at).unwrap().0.scales.unwrap().block[1]
        })
        .collect();
    // Parts of 50: the third, from 100 on, crosses into the second block; the sixth, from 250, into the third.
    assert_eq!(widths, [128, 128, 4, 128, 128, 2, 128, 2]);
}

/// A checkpoint with a matrix for rows, one for columns, two for single devices and a vector.
struct Place {
    dir: TempDir,
    specs: Vec<WeightSpec>,
    layout: Layout,
}

impl Place {
    fn new(mesh: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        let place = Self {
            dir,
            specs: vec![
                spec("rows.weight", &[6, 4], BY_ROWS, Some([4, 4])),
                spec("columns.weight", &[3, 8], BY_COLUMNS, None),
                spec("first.weight", &[2, 2], Placement::Member { index: 0, of: 4 }, None),
                spec("last.weight", &[2, 2], Placement::Member { index: 3, of: 4 }, None),
                spec("vector.weight", &[4], BY_ROWS, None),
            ],
            layout: Layout { experts: ExpertSharding::Expert, ..layout(mesh) },
        };
        place.write(&[1.0, 2.0, 3.0, 4.0]);
        place
    }

    fn write(&self, vector: &[f32; 4]) {
        let path = self.dir.path().join("model/model.safetensors");
        let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
        let numbers: Vec<f32> = (0..24).map(|index| index as f32).collect();
        let shard = ShardBuilder::new()
            .fp8("rows.weight", &[6, 4], &[0x38; 24])
            .f32("rows.weight_scale_inv", &[2, 1], &[2.0, 0.5])
            .bf16("columns.weight", &[3, 8], &numbers)
            .f32("first.weight", &[2, 2], &numbers[..4])
            .f32("last.weight", &[2, 2], &numbers[4..8])
            .f32("vector.weight", &[4], vector);
        write_checkpoint(&self.dir.path().join("model"), &[("model.safetensors", shard)]);
        if let Ok(modified) = modified {
            // The same checkpoint, as far as its fingerprint tells.
            File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        }
    }

    fn with<T>(&self, f: impl FnOnce(&WeightCache, &Source<'_>) -> T) -> T {
        let checkpoint = Checkpoint::open(&self.dir.path().join("model")).unwrap();
        let fingerprint = Fingerprint::of(&checkpoint, b"{}");
        let cache = WeightCache::locate(&self.dir.path().join("cache"), &checkpoint, self.layout);
        f(&cache, &Source { checkpoint: &checkpoint, fingerprint })
    }

    fn convert(&self, ranks: &[usize]) -> Result<Vec<(Rank, Converted)>, Error> {
        let ranks: Vec<Rank> = ranks.iter().copied().map(Rank).collect();
        self.with(|cache, source| {
            cache.convert_ranks::<List>(&ranks, &self.specs, source, false, &mut |_| {})
        })
    }

    fn load(&self, rank: usize) -> Result<Vec<Leaf<Weight>>, Error> {
        self.with(|cache, source| cache.of_rank(Rank(rank)).load::<List>(&self.specs, source))
    }

    fn cache(&self, rank: usize) -> WeightCache {
        self.with(|cache, _| cache.of_rank(Rank(rank)))
    }
}

#[test]
fn each_rank_has_a_cache_of_its_own_bytes() {
    let place = Place::new("2x2");
    let made = place.convert(&[0, 1, 2, 3]).unwrap();
    assert!(made.iter().all(|(_, converted)| matches!(converted, Converted::Made(_))));
    for rank in 0..4 {
        let weights = place.load(rank).unwrap();
        let shapes: Vec<_> =
            weights[..4].iter().map(|weight| [weight.matrix().rows(), weight.matrix().cols()]).collect();
        let held = |owner| if rank == owner { [2, 2] } else { [0, 2] };
        assert_eq!(shapes, [[3, 4], [3, 4], held(0), held(3)]);
        let half = rank % 2;
        assert_eq!(weights[4].vector(), &[[1.0, 2.0], [3.0, 4.0]][half]);
        let mut row = [0.0; 4];
        // Rows 0 to 3 are of the first block, 4 and 5 of the second.
        for (index, expected) in [[2.0, 2.0, 2.0], [2.0, 0.5, 0.5]][half].into_iter().enumerate() {
            Kernels::best().dequantize_row(&weights[0].matrix(), index, &mut row);
            assert_eq!(row, [expected; 4]);
        }
        Kernels::best().dequantize_row(&weights[1].matrix(), 2, &mut row);
        assert_eq!(row, [16.0, 17.0, 18.0, 19.0].map(|value| value + 4.0 * half as f32));
        assert_eq!(place.cache(rank).read_header().unwrap().rank, Rank(rank));
    }
    assert_eq!(place.convert(&[2]).unwrap().len(), 1);
    let listed = WeightCache::list(place.cache(0).mesh_dir()).unwrap();
    assert_eq!(listed.len(), 4);
    assert_eq!(listed[3].dir(), place.cache(3).dir());
}

#[test]
fn a_cache_of_another_rank_is_refused_with_the_mesh() {
    let place = Place::new("2x2");
    place.convert(&[0]).unwrap();
    fs::rename(place.cache(0).dir(), place.cache(1).dir()).unwrap();
    let error = place.load(1).unwrap_err().to_string();
    assert!(error.contains("was made for rank 0, expected rank 1; make it anew with"), "{error}");
    assert!(error.ends_with(" --mesh 2x2 --experts expert`"), "{error}");
}

#[test]
fn ranks_that_hold_the_same_share_a_cache() {
    let mut place = Place::new("3x2");
    place.layout.experts = ExpertSharding::Tensor;
    place.specs.retain(|spec| !matches!(spec.placement, Placement::Member { .. }));
    let made = place.convert(&[5, 0, 2, 3]).unwrap();
    assert_eq!(made.iter().map(|(rank, _)| rank.0).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(place.cache(4).dir(), place.cache(0).dir());
    assert!(place.cache(1).dir().ends_with("cpu-3x2/rank-1"), "{:?}", place.cache(1));
}

#[test]
fn uneven_splits_are_refused_before_anything_is_written() {
    let mut place = Place::new("1x4");
    for (mesh, expected) in [
        ("1x4", "a mesh of 1x4-expert: rows.weight: 6 do not divide over 4 devices"),
        ("3x1", "a mesh of 3x1-expert: first.weight: 4 do not divide over 3 devices"),
    ] {
        place.layout.mesh = mesh.parse().unwrap();
        assert_eq!(place.convert(&[0]).unwrap_err().to_string(), expected);
        assert!(!place.dir.path().join("cache").exists());
    }
}

#[test]
fn an_interrupted_rank_is_gone_on_with() {
    let place = Place::new("1x2");
    place.write(&[1.0, 2.0, f32::NAN, 4.0]);
    place.convert(&[0]).unwrap();
    let error = place.convert(&[0, 1]).unwrap_err().to_string();
    assert_eq!(error, "tensor vector.weight: expected finite values, got NaN at 2");
    assert!(place.cache(1).is_begun() && !place.cache(0).is_begun());
    let half_line = place.cache(1).sibling("tmp").join("journal.jsonl");
    File::options().append(true).open(half_line).unwrap().write_all(b"{\"sou").unwrap();
    place.write(&[1.0, 2.0, 3.0, 4.0]);
    let made = place.convert(&[0, 1]).unwrap();
    let [(_, Converted::Present), (_, Converted::Made(report))] = &made[..] else { panic!("{made:?}") };
    assert_eq!(
        (report.resumed, report.cut),
        (Tally { tensors: 1, bytes: 24 }, Tally { tensors: 1, bytes: 24 })
    );
    assert_eq!(place.load(1).unwrap()[4].vector(), [3.0, 4.0]);
}

#[test]
fn of_writers_of_overlapping_ranks_each_cache_has_one() {
    let place = &Place::new("2x2");
    let made: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = [[0, 1, 2], [3, 2, 1], [2, 0, 3], [1, 3, 0]]
            .into_iter()
            .map(|ranks| scope.spawn(move || place.convert(&ranks).unwrap()))
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    for rank in 0..4 {
        let of_rank = made.iter().filter(|(made, _)| made.0 == rank);
        assert_eq!(of_rank.filter(|(_, converted)| matches!(converted, Converted::Made(_))).count(), 1);
        place.load(rank).unwrap();
    }
}

/// What a place says, changed anywhere, is refused: rows of a checkpoint can only be the rank's.
#[test]
fn no_other_rows_of_the_checkpoint_are_taken() {
    let place = Place::new("1x2");
    place.convert(&[1]).unwrap();
    let path = place.cache(1).dir().join(WEIGHT_CONFIG_FILE);
    let whole: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let numbers = [
        "/weights/0/data/offset",
        "/weights/0/data/length",
        "/weights/0/scales/first_row",
        "/weights/0/scales/block/0",
        "/weights/0/scales/block/1",
        "/weights/0/scales/data/offset",
        "/weights/0/scales/data/length",
        "/weights/0/shape/0",
        "/weights/0/shape/1",
        "/weights/1/data/length",
        "/weights/1/shape/0",
        "/weights/2/shape/0",
        "/weights/3/shape/1",
        "/weights/4/data/offset",
        "/weights/4/data/length",
    ];
    for pointer in numbers {
        let at = whole.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).as_u64().unwrap();
        for other in [
            0,
            1,
            2,
            3,
            4,
            8,
            12,
            16,
            at ^ 1,
            at + 4,
            at + 12,
            at.wrapping_sub(12),
            u64::MAX,
            u64::MAX / 2 + 1,
        ] {
            if other == at {
                continue;
            }
            let mut changed = whole.clone();
            *changed.pointer_mut(pointer).unwrap() = other.into();
            fs::write(&path, changed.to_string()).unwrap();
            let error = place.load(1).err().unwrap_or_else(|| panic!("{pointer} {other} is taken"));
            assert!(error.to_string().contains("--mesh 1x2"), "{error}");
        }
    }
    for (pointer, text) in [
        ("/weights/0/format", "bf16"),
        ("/weights/4/format", "bf16"),
        ("/weights/0/data/location", "cache"),
        ("/weights/0/scales/data/location", "cache"),
        ("/weights/0/source", "first.weight"),
        ("/weights/0/data/file", "../model.safetensors"),
        ("/weights/0/data/file", "other"),
        ("/weights/1/data/location", "checkpoint"),
        ("/header/rank", "1"),
    ] {
        let mut changed = whole.clone();
        *changed.pointer_mut(pointer).unwrap() = text.into();
        fs::write(&path, changed.to_string()).unwrap();
        assert!(place.load(1).is_err(), "{pointer} {text}");
    }
}
