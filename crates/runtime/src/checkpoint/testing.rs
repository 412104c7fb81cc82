//! Small checkpoints for tests, right and wrong ones.

use dsv3_kernels::f32_to_bf16;
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// Builds one `.safetensors` file. Tensors lie in the order they are added, and nothing is padded: like in real
/// checkpoints, one may begin at any offset.
#[derive(Clone, Debug, Default)]
pub struct ShardBuilder {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl ShardBuilder {
    /// A file without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor of any type, by the name that safetensors gives the type.
    #[must_use]
    pub fn raw(mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> Self {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        let tensor = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, self.data.len()] });
        self.header.insert(name.into(), tensor);
        self
    }

    /// Adds an F32 tensor.
    #[must_use]
    pub fn f32(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(name, "F32", shape, &bytes)
    }

    /// Adds a BF16 tensor; values are rounded.
    #[must_use]
    pub fn bf16(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|&value| f32_to_bf16(value).to_le_bytes()).collect();
        self.raw(name, "BF16", shape, &bytes)
    }

    /// Adds an F8_E4M3 tensor by its bytes.
    #[must_use]
    pub fn fp8(self, name: &str, shape: &[usize], bytes: &[u8]) -> Self {
        self.raw(name, "F8_E4M3", shape, bytes)
    }

    /// The file's content.
    pub fn to_bytes(&self) -> Vec<u8> {
        file_of(&Value::Object(self.header.clone()).to_string(), &self.data)
    }

    /// The names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.keys().map(String::as_str)
    }
}

/// A `.safetensors` file of any header, right or wrong.
pub fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    let length = header.len() as u64;
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}

/// Writes a checkpoint of named shards and their index into `dir`.
///
/// # Panics
/// If it cannot be written.
pub fn write_checkpoint(dir: &Path, shards: &[(&str, ShardBuilder)]) {
    let mut weight_map = Map::new();
    for (file, shard) in shards {
        fs::write(dir.join(file), shard.to_bytes()).expect("a shard can be written");
        weight_map.extend(shard.names().map(|name| (name.to_owned(), json!(file))));
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map }).to_string();
    fs::write(dir.join("model.safetensors.index.json"), index).expect("the index can be written");
}
