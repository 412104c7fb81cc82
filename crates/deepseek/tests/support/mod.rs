//! What the tests against the golden files share: the checkpoints in f32, what transformers computed from them
//! (tools/golden/README.md), and how two tensors are compared.

// Every test binary compiles this file for itself and uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod mesh;
pub mod random;
pub mod shapes;
pub mod stages;

use dsv3_deepseek::{hf::HfConfig, reference::Weights};
use dsv3_runtime::{Error, Tensor, TokenId};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A checkpoint, and the file with what transformers computes from it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// For messages.
    pub name: &'static str,
    checkpoint: &'static str,
    golden: &'static str,
}

/// Every checkpoint that has a golden file; paths from the root of the workspace.
pub const CASES: &[Case] = &[
    Case { name: "odd-fp8", checkpoint: "testdata/odd-fp8", golden: "testdata/odd-fp8/golden.safetensors" },
    Case {
        name: "moonlight-bf16",
        checkpoint: "testdata/moonlight-bf16",
        golden: "testdata/moonlight-bf16/golden.safetensors",
    },
    Case { name: "tiny", checkpoint: "models/tiny", golden: "testdata/tiny/golden.safetensors" },
];

impl Case {
    /// The checkpoint's directory.
    pub fn checkpoint_path(&self) -> PathBuf {
        workspace().join(self.checkpoint)
    }

    /// The checkpoint's configuration.
    pub fn config(&self) -> HfConfig {
        HfConfig::from_file(&self.checkpoint_path().join("config.json")).unwrap()
    }

    /// The checkpoint's weights.
    pub fn weights(&self) -> F32Weights {
        F32Weights::read(&self.checkpoint_path(), &self.config())
    }

    /// What transformers computes.
    pub fn golden(&self) -> Golden {
        Golden(fs::read(workspace().join(self.golden)).unwrap())
    }
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All weights of a model in f32, by name. Those of a checkpoint are read without the runtime's checkpoint reader, so
/// that the two can be compared.
pub struct F32Weights(pub BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl F32Weights {
    fn read(folder: &Path, config: &HfConfig) -> Self {
        const SCALE: &str = "_scale_inv";
        let mut tensors = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("model") && name.ends_with(".safetensors") {
                let bytes = fs::read(&path).unwrap();
                for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                    tensors.insert(name.to_owned(), (view.shape().to_vec(), floats(&view)));
                }
            }
        }
        let scales: Vec<String> = tensors.keys().filter(|name| name.ends_with(SCALE)).cloned().collect();
        for scale_name in scales {
            let blocks = config.quantization.expect("only FP8 checkpoints have scales");
            let (grid, scales) = tensors.remove(&scale_name).unwrap();
            let (shape, values) = tensors.get_mut(scale_name.strip_suffix(SCALE).unwrap()).unwrap();
            assert_eq!(grid, blocks.grid(shape[0], shape[1]), "{scale_name}");
            for (place, value) in values.iter_mut().enumerate() {
                let (row, column) = (place / shape[1], place % shape[1]);
                *value *= scales[row / blocks.rows * grid[1] + column / blocks.cols];
            }
        }
        Self(tensors)
    }
}

impl Weights for F32Weights {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let missing =
            || Error::Tensor { name: name.to_owned(), message: "is not in the checkpoint".to_owned() };
        self.0.get(name).cloned().ok_or_else(missing)
    }
}

/// A golden file.
pub struct Golden(Vec<u8>);

impl Golden {
    /// Whether the file has a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.view(name).is_some()
    }

    /// An f32 tensor; a vector is one row.
    pub fn tensor(&self, name: &str) -> Tensor {
        let view = self.view(name).unwrap_or_else(|| panic!("no golden tensor {name}"));
        let (rows, cols) = match *view.shape() {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            ref other => panic!("{name} has the shape {other:?}"),
        };
        Tensor::from_vec(rows, cols, floats(&view))
    }

    /// An int32 tensor, row after row.
    pub fn integers(&self, name: &str) -> Vec<usize> {
        let view = self.view(name).unwrap_or_else(|| panic!("no golden tensor {name}"));
        assert_eq!(view.dtype(), Dtype::I32, "{name}");
        let integer = |bytes: &[u8]| i32::from_le_bytes(bytes.try_into().unwrap());
        view.data().chunks_exact(4).map(|bytes| usize::try_from(integer(bytes)).unwrap()).collect()
    }

    /// An int32 vector of tokens.
    pub fn tokens(&self, name: &str) -> Vec<TokenId> {
        self.integers(name).into_iter().map(|token| TokenId(token as u32)).collect()
    }

    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).ok()
    }
}

/// The values of a tensor of any of the formats of the checkpoints.
fn floats(view: &TensorView<'_>) -> Vec<f32> {
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::BF16 => data
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect(),
        Dtype::F8_E4M3 => data.iter().map(|&byte| e4m3(byte)).collect(),
        other => panic!("no checkpoint holds {other:?}"),
    }
}

/// The value of an e4m3fn byte: 1 sign bit, 4 exponent bits (bias 7), 3 mantissa bits; no infinities.
fn e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 0x7));
    let magnitude = match (exponent, byte & 0x7) {
        (0xf, 0x7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    sign * magnitude
}

/// What two f32 computations of one thing may differ by, relative, given the lengths of the sums on the way to it.
///
/// Adding n terms of random sign rounds n times; the roundings are independent, each below the unit roundoff
/// u = 2^-24 of a partial sum, and the partial sums grow like a random walk. So a sum carries about u * sqrt(n / 6)
/// of its own size, one sum after another adds up in squares, and u * sqrt(n) bounds both with room to spare.
/// Where no step rounds more than once, as in element-wise operations, the length is 1.
pub fn f32_tolerance(sums: impl IntoIterator<Item = usize>) -> f64 {
    let total: usize = sums.into_iter().sum();
    (total as f64).sqrt() * 2f64.powi(-24)
}

/// The sums inside the attention, for [`f32_tolerance`]: query, latent, key and value, scores, values, output.
pub fn mla_sums(hf: &HfConfig, tokens: usize) -> Vec<usize> {
    let shape = &hf.attention;
    let rank = shape.q_lora_rank.unwrap_or(0);
    let query = [hf.hidden_size, rank, rank]; // the projections and the norm between them
    let key_value = [hf.hidden_size, shape.kv_lora_rank, shape.kv_lora_rank];
    [&query[..], &key_value, &[shape.qk_head_dim(), tokens, tokens, shape.o_dim()]].concat()
}

/// The sums inside an MLP.
pub fn mlp_sums(hidden_size: usize, intermediate_size: usize) -> Vec<usize> {
    vec![hidden_size, hidden_size, intermediate_size]
}

/// The sums inside a mixture of experts: gate, one expert, the sum of all, the shared experts.
pub fn moe_sums(hf: &HfConfig) -> Vec<usize> {
    let moe = hf.moe.as_ref().expect("a model with experts");
    let expert = mlp_sums(hf.hidden_size, moe.intermediate_size);
    let shared = mlp_sums(hf.hidden_size, moe.shared_intermediate_size());
    [&[hf.hidden_size, moe.experts_per_token][..], &expert, &shared].concat()
}

/// The sums inside a decoder block, with its two norms.
pub fn block_sums(hf: &HfConfig, layer: usize, tokens: usize) -> Vec<usize> {
    let norms = [hf.hidden_size, hf.hidden_size];
    let feed_forward =
        if hf.is_moe(layer) { moe_sums(hf) } else { mlp_sums(hf.hidden_size, hf.intermediate_size) };
    [&norms[..], &mla_sums(hf, tokens), &feed_forward].concat()
}

/// `|got - expected| / |expected|` in the Euclidean norm.
pub fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!((got.rows(), got.cols()), (expected.rows(), expected.cols()), "shapes differ");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let pairs = got.values().iter().zip(expected.values());
    let difference = norm(&mut pairs.map(|(&got, &expected)| f64::from(got) - f64::from(expected)));
    difference / norm(&mut expected.values().iter().map(|&value| f64::from(value)))
}

/// Panics, with the name, where the relative error is above the tolerance.
pub fn assert_close(name: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = relative_error(got, expected);
    // A NaN is no small error.
    assert!(error <= tolerance, "{name}: relative error {error:.3e}, tolerance {tolerance:.3e}");
}

/// The rows of all parts, one part after another.
pub fn concat_rows(parts: impl Iterator<Item = Tensor>) -> Tensor {
    let parts: Vec<Tensor> = parts.collect();
    let rows = parts.iter().map(Tensor::rows).sum();
    Tensor::from_vec(rows, parts[0].cols(), parts.iter().flat_map(Tensor::values).copied().collect())
}
