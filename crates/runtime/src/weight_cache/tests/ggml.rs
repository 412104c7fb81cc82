//! Stage 1 of GGUF files whose tensors lie in blocks that no kernel reads.

use super::mesh::{BY_COLUMNS, BY_ROWS, layout, spec, values};
use super::*;
use crate::{ConvertProgress, GgmlBlocks, Gguf, GgufName, Kernels, Part, TensorInfo, WeightOutput};
use dsv3_kernels::Format;
use std::collections::BTreeMap;

/// A format's number in `ggml.h`, and where the halves of its blocks lie.
pub(super) fn number_and_halves(blocks: GgmlBlocks) -> (u32, &'static [usize]) {
    match blocks {
        GgmlBlocks::Q4_0 => (2, &[0]),
        GgmlBlocks::Q4_1 => (3, &[0, 2]),
        GgmlBlocks::Q5_0 => (6, &[0]),
        GgmlBlocks::Q5_1 => (7, &[0, 2]),
        GgmlBlocks::Q2K => (10, &[80, 82]),
        GgmlBlocks::Q3K => (11, &[108]),
        GgmlBlocks::Q5K => (13, &[0, 2]),
        GgmlBlocks::Q6K => (14, &[208]),
        GgmlBlocks::Iq4Nl => (20, &[0]),
        GgmlBlocks::Iq4Xs => (23, &[0]),
    }
}

/// Blocks of any bits, whose halves are `scale` times 1/16 to 1.
pub(super) fn blocks_of(
    blocks: GgmlBlocks,
    count: usize,
    scale: f32,
    byte: &mut dyn FnMut() -> u8,
) -> Vec<u8> {
    let (_, halves) = number_and_halves(blocks);
    let block = |_| {
        let mut block: Vec<u8> = (0..blocks.block_bytes()).map(|_| byte()).collect();
        for &at in halves {
            let half = half::f16::from_f32(scale * f32::from(block[at] % 16 + 1) / 16.0);
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        block
    };
    (0..count).flat_map(block).collect()
}

fn random(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    }
}

/// A tensor of a GGUF file.
struct Tensor {
    name: &'static str,
    blocks: GgmlBlocks,
    /// Outermost first.
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(name: &'static str, blocks: GgmlBlocks, shape: &[usize], scale: f32) -> Self {
        let count = shape.iter().product::<usize>() / blocks.block_cols();
        let bytes = blocks_of(blocks, count, scale, &mut random(count as u64));
        Self { name, blocks, shape: shape.to_vec(), bytes }
    }

    /// All values, row by row.
    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.blocks.decode(&self.bytes, &mut values);
        values
    }
}

fn open(dir: &Path, tensors: &[Tensor]) -> Gguf {
    let number = |tensor: &Tensor| number_and_halves(tensor.blocks).0;
    let tensors: Vec<_> = tensors
        .iter()
        .map(|tensor| (tensor.name, number(tensor), &tensor.shape[..], &tensor.bytes[..]))
        .collect();
    write_gguf(dir, &tensors)
}

/// A GGUF file of tensors: their names, types by ggml's number, shapes (outermost first) and bytes.
pub(super) fn write_gguf(dir: &Path, tensors: &[(&str, u32, &[usize], &[u8])]) -> Gguf {
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    file.extend([tensors.len() as u64, 0].map(u64::to_le_bytes).concat());
    let mut data = Vec::new();
    for &(name, number, shape, bytes) in tensors {
        file.extend([&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat());
        file.extend((shape.len() as u32).to_le_bytes());
        file.extend(shape.iter().rev().flat_map(|&side| (side as u64).to_le_bytes()));
        file.extend(number.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    let path = dir.join("model.gguf");
    fs::write(&path, [file, data].concat()).unwrap();
    Gguf::open(&path).unwrap()
}

fn whole(info: &TensorInfo) -> GgufName {
    GgufName::Whole(info.name.clone())
}

/// A tensor that stage 1 wrote for one device, its bytes, and the report.
fn written(
    checkpoint: &Checkpoint,
    (source, shape): (&str, &[usize]),
    format: Option<Format>,
) -> Result<(SavedWeight, Vec<u8>, ConvertReport), Error> {
    let dir = tempfile::tempdir().unwrap();
    let kinds = format.map(|format| ("matrix".to_owned(), format)).into_iter().collect();
    let mut progress = |_: ConvertProgress<'_>| {};
    let mut out = WeightOutput::new(dir.path(), Layout::SINGLE, Rank(0), &mut progress)
        .with_formats(Formats { name: String::new(), kinds });
    let spec = spec(source, shape, Placement::Replicated, None);
    let saved = out.save(&WeightPath::default(), &spec, checkpoint)?;
    if format.is_none() {
        assert_eq!(spec.stored_format(checkpoint, Layout::SINGLE, Rank(0))?, saved.format);
    }
    let report = out.finish()?;
    let bytes = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    Ok((saved, bytes, report))
}

/// Rows of values in a format.
fn quantized(values: &[f32], cols: usize, format: Format) -> Vec<u8> {
    let row = |row: &[f32]| {
        let mut out = vec![0; format.bytes(cols)];
        Kernels::best().quantize_row(format, row, &mut out);
        out
    };
    values.chunks_exact(cols).flat_map(row).collect()
}

#[test]
fn blocks_become_those_of_q8_0_or_what_is_asked_for() {
    for blocks in GgmlBlocks::ALL {
        let dir = tempfile::tempdir().unwrap();
        let tensor = Tensor::new("matrix.weight", blocks, &[300, 512], 0.5);
        let vector = Tensor::new("vector.weight", blocks, &[256], 0.5);
        let (values, in_vector) = (tensor.values(), vector.values());
        let gguf = open(dir.path(), &[tensor, vector]);
        let checkpoint = gguf.into_checkpoint(whole, BTreeMap::new()).unwrap();
        for (asked, got) in [
            (None, Format::Q8_0),
            (Some(Format::Q8_0), Format::Q8_0),
            (Some(Format::Bf16), Format::Bf16),
            (Some(Format::F32), Format::F32),
            (Some(Format::Q4K), Format::Q4K),
        ] {
            let matrix = ("matrix.weight", &[300, 512][..]);
            let (saved, bytes, report) = written(&checkpoint, matrix, asked).unwrap();
            assert_eq!(saved.format, got);
            assert!(bytes == quantized(&values, 512, got), "{} as {got}", blocks.name());
            let tally = Tally { tensors: 1, bytes: bytes.len() as u64 };
            assert_eq!(report.decoded, [((blocks.name().to_owned(), got.name()), tally)].into());
            assert_eq!((report.written_bytes(), report.fallbacks.len()), (tally.bytes, 0));
        }
        let (saved, bytes, _) = written(&checkpoint, ("vector.weight", &[256]), None).unwrap();
        assert_eq!(saved.format, Format::F32, "as vectors are held");
        assert!(bytes == quantized(&in_vector, 256, Format::F32));
    }
}

#[test]
fn stacks_are_cut_and_halves_put_together() {
    // Two heads of 32 key rows, stored transposed, and of 8 value rows, as llama.cpp cuts `kv_b_proj`.
    const RANK: usize = 256;
    for (keys, values) in [(GgmlBlocks::Q5_0, GgmlBlocks::Q6K), (GgmlBlocks::Iq4Nl, GgmlBlocks::Q3K)] {
        let dir = tempfile::tempdir().unwrap();
        let k_b = Tensor::new("k_b", keys, &[2, RANK, 32], 0.5);
        let v_b = Tensor::new("v_b", values, &[2, 8, RANK], 0.5);
        let (in_keys, in_values) = (k_b.values(), v_b.values());
        let mut joined = Vec::new();
        for head in 0..2 {
            let keys = &in_keys[head * RANK * 32..][..RANK * 32];
            joined.extend((0..32).flat_map(|row| (0..RANK).map(move |col| keys[col * 32 + row])));
            joined.extend(&in_values[head * 8 * RANK..][..8 * RANK]);
        }
        let gguf = open(dir.path(), &[k_b, v_b]);
        let rename = |info: &TensorInfo| {
            GgufName::Stacked((0..2).map(|head| format!("{}.{head}", info.name)).collect())
        };
        let part = |name: &str, head| Part { tensor: format!("{name}.{head}"), is_transposed: name == "k_b" };
        let parts = (0..2).flat_map(|head| [part("k_b", head), part("v_b", head)]).collect();
        let checkpoint = gguf.into_checkpoint(rename, [("kv_b".to_owned(), parts)].into()).unwrap();
        let (saved, bytes, report) = written(&checkpoint, ("kv_b", &[80, RANK]), None).unwrap();
        assert_eq!(saved.format, Format::Q8_0);
        assert!(bytes == quantized(&joined, RANK, Format::Q8_0));
        let from = format!("{} and {}", keys.name(), values.name());
        assert_eq!(report.decoded.keys().collect::<Vec<_>>(), [&(from, "q8_0")]);
        let (_, bytes, report) = written(&checkpoint, ("v_b.1", &[8, RANK]), None).unwrap();
        assert!(bytes == quantized(&in_values[8 * RANK..], RANK, Format::Q8_0));
        assert_eq!(report.decoded.keys().collect::<Vec<_>>(), [&(values.name().to_owned(), "q8_0")]);
    }
}

/// A row in a format.
fn rounded(row: &[f32], format: Format) -> Vec<f32> {
    let bytes = quantized(row, row.len(), format);
    let view = dsv3_kernels::MatrixView::from_bytes(format, &bytes, 1, row.len(), None);
    let mut rounded = vec![0.0; row.len()];
    Kernels::best().dequantize_row(&view, 0, &mut rounded);
    rounded
}

#[test]
fn what_is_put_together_is_cut_for_a_mesh() {
    const RANK: usize = 256;
    let dir = tempfile::tempdir().unwrap();
    let lying = Tensor::new("lying", GgmlBlocks::Q5_0, &[RANK, 32], 0.5);
    let upright = Tensor::new("upright", GgmlBlocks::Q6K, &[48, RANK], 0.5);
    let columns = lying.values();
    let mut joined: Vec<f32> =
        (0..32).flat_map(|row| (0..RANK).map(|col| columns[col * 32 + row]).collect::<Vec<_>>()).collect();
    joined.extend(upright.values());
    let part = |name: &str| Part { tensor: name.to_owned(), is_transposed: name == "lying" };
    let joins = [("joined".to_owned(), vec![part("lying"), part("upright")])].into();
    let checkpoint = open(dir.path(), &[lying, upright]).into_checkpoint(whole, joins).unwrap();
    let spec = spec("joined", &[80, RANK], BY_ROWS, None);
    // Rows of the transposed part, of both, of the other.
    for (mesh, rank, rows) in [("1x5", 0, 0..16), ("1x2", 0, 0..40), ("1x5", 3, 48..64)] {
        let at = (layout(mesh), Rank(rank));
        let (_, got) = values(&checkpoint, &spec, &Formats::default(), at).unwrap();
        assert_eq!(got.len(), rows.len());
        for (got, row) in got.iter().zip(rows) {
            assert_eq!(*got, rounded(&joined[row * RANK..][..RANK], Format::Q8_0), "row {row} on {mesh}");
        }
    }
}

#[test]
fn parts_of_other_widths_than_blocks_are_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = Tensor::new("matrix.weight", GgmlBlocks::Q6K, &[3, 256], 0.5);
    let all = tensor.values();
    let checkpoint = open(dir.path(), &[tensor]).into_checkpoint(whole, BTreeMap::new()).unwrap();
    let spec = spec("matrix.weight", &[3, 256], BY_COLUMNS, None);
    for (mesh, cols, format) in [("1x16", 16, Format::Bf16), ("1x8", 32, Format::Q8_0)] {
        let at = (layout(mesh), Rank(5));
        assert_eq!(spec.stored_format(&checkpoint, at.0, at.1).unwrap(), format);
        let (saved, rows) = values(&checkpoint, &spec, &Formats::default(), at).unwrap();
        assert_eq!(saved.format, format);
        for (got, all) in rows.iter().zip(all.chunks_exact(256)) {
            assert_eq!(*got, rounded(&all[5 * cols..6 * cols], format));
        }
    }
}

#[test]
fn scales_that_are_no_numbers_are_refused_by_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensor = Tensor::new("matrix.weight", GgmlBlocks::Q6K, &[2, 512], 0.5);
    let last = tensor.bytes.len() - 2;
    tensor.bytes[last..].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let checkpoint = open(dir.path(), &[tensor]).into_checkpoint(whole, BTreeMap::new()).unwrap();
    let error = written(&checkpoint, ("matrix.weight", &[2, 512]), None).unwrap_err().to_string();
    assert!(error.starts_with("tensor matrix.weight: expected finite values"), "{error}");
    assert!(error.ends_with("got another at [1, 256]"), "{error}");
}
