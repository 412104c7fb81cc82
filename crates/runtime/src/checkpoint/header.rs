//! The head of one `.safetensors` file: 8 bytes of length, JSON, then the tensors' bytes without holes.
//!
//! Types come from the `safetensors` crate. Its own reader accepts the same files, but it buffers the whole header as
//! a tree and mostly does not say which tensor is wrong; a shard of a 700 GB download that is wrong somewhere must
//! say where. The tests hold the two readers against each other.

use super::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::HashMap;

/// The longest header the format allows, in bytes.
const HEADER_LIMIT: u64 = 100_000_000;
/// Bytes of the little-endian header length that a file begins with.
const LENGTH_BYTES: usize = 8;
/// What `git clone` leaves of a large file when Git LFS is not installed.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Reads the header of `file`, the whole file's bytes. Touches no byte behind the header.
///
/// Every tensor that is returned lies within the file and is as long as its shape and type say.
///
/// # Errors
/// A message that says what is wrong, expected and got; the caller knows the file's name.
pub(super) fn read_header(file: &[u8], shard: usize) -> Result<Vec<TensorInfo>, String> {
    if file.starts_with(LFS_POINTER) {
        return Err("is a Git LFS pointer instead of the file itself: run `git lfs pull`".into());
    }
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("is truncated: a header length takes {LENGTH_BYTES} bytes, got {}", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT {
        return Err(format!("claims a header of {length} bytes, the format allows {HEADER_LIMIT}"));
    }
    let available = rest.len();
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length)).ok_or_else(|| {
        format!("is truncated: expected a header of {length} bytes, got {available} bytes behind its length")
    })?;
    let Header(mut tensors) =
        serde_json::from_slice(header).map_err(|error| format!("malformed header: {error}"))?;
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    check_layout(&tensors, available - header.len())?;
    let data_start = LENGTH_BYTES + header.len();
    let info = |(name, tensor): (String, safetensors::tensor::TensorInfo)| {
        let (start, end) = tensor.data_offsets;
        TensorInfo {
            name,
            dtype: tensor.dtype.into(),
            shape: tensor.shape,
            shard,
            offset: (data_start + start) as u64,
            length: (end - start) as u64,
        }
    };
    Ok(tensors.into_iter().map(info).collect())
}

/// Checks that the tensors, sorted by their place, fill `data_bytes` without holes or overlaps.
fn check_layout(
    tensors: &[(String, safetensors::tensor::TensorInfo)],
    data_bytes: usize,
) -> Result<(), String> {
    let mut expected_start = 0;
    for (name, tensor) in tensors {
        let (start, end) = tensor.data_offsets;
        if start != expected_start {
            return Err(format!(
                "tensor {name}: begins at byte {start} of the data, expected {expected_start}: tensors lie without \
                 holes and do not overlap"
            ));
        }
        let expected = byte_length(&tensor.shape, tensor.dtype);
        if expected.is_err() || expected.ok() != end.checked_sub(start) {
            let expected = expected.map_or_else(str::to_owned, |expected| format!("{expected} bytes"));
            return Err(format!(
                "tensor {name}: {:?} of {} takes {expected}, its offsets are {start}..{end}",
                tensor.shape, tensor.dtype
            ));
        }
        expected_start = end;
    }
    if expected_start == data_bytes {
        return Ok(());
    }
    let problem = if data_bytes < expected_start { "is truncated" } else { "is too long" };
    Err(format!("{problem}: expected {expected_start} bytes of tensors, got {data_bytes}"))
}

/// The bytes that elements of this type and shape take.
fn byte_length(shape: &[usize], dtype: safetensors::Dtype) -> Result<usize, &'static str> {
    let elements = shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize()));
    match bits.ok_or("more bytes than a file can have")? {
        bits if bits % 8 == 0 => Ok(bits / 8),
        _ => Err("no whole number of bytes"),
    }
}

/// The JSON object: `__metadata__`, and a tensor under every other name.
struct Header(Vec<(String, safetensors::tensor::TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<Option<HashMap<String, String>>>()?;
            } else {
                let tensor =
                    map.next_value().map_err(|error| A::Error::custom(format!("tensor {name}: {error}")))?;
                tensors.push((name, tensor));
            }
        }
        Ok(Header(tensors))
    }
}
