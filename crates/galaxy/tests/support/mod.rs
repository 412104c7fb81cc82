//! The golden files of `testdata/galaxy`.

// Every test binary compiles this file for itself and uses a part of it.
#![allow(dead_code, unreachable_pub)]

use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file that TT-NN wrote.
#[derive(Deserialize)]
pub struct Golden {
    pub file: String,
    values: String,
    readback: Option<String>,
}

/// NumPy's array of numbers of 4 bytes or less, each as it would be in a `u32`.
pub struct Array {
    pub shape: Vec<usize>,
    pub words: Vec<u32>,
}

pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/galaxy")
}

/// All golden files.
pub fn golden() -> Vec<Golden> {
    let files: Vec<Golden> =
        serde_json::from_slice(&fs::read(testdata().join("golden/index.json")).unwrap()).unwrap();
    assert!(files.len() > 60, "{} golden files", files.len());
    files
}

impl Golden {
    pub fn path(&self) -> PathBuf {
        testdata().join("golden").join(&self.file)
    }

    /// What it was made from.
    pub fn values(&self) -> Array {
        Array::read(&self.values)
    }

    /// What TT-NN reads from it.
    pub fn readback(&self) -> Option<Array> {
        self.readback.as_deref().map(Array::read)
    }
}

impl Array {
    fn read(name: &str) -> Self {
        let file = fs::read(testdata().join("golden").join(name)).unwrap();
        assert_eq!(file[..7], *b"\x93NUMPY\x01", "{name}");
        let length = usize::from(u16::from_le_bytes([file[8], file[9]]));
        let (header, data) = file[10..].split_at(length);
        let header = str::from_utf8(header).unwrap();
        assert!(header.contains("'fortran_order': False"), "{header}");
        let between = |from: &str, to: &str| {
            let start = header.find(from).unwrap() + from.len();
            &header[start..start + header[start..].find(to).unwrap()]
        };
        let shape =
            between("'shape': (", ")").split(',').filter_map(|side| side.trim().parse().ok()).collect();
        let words = match between("'descr': '", "'") {
            "<f4" | "<u4" | "<i4" => {
                data.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
            }
            "<u2" => data.as_chunks().0.iter().map(|&two| u16::from_le_bytes(two).into()).collect(),
            "|u1" => data.iter().map(|&byte| byte.into()).collect(),
            other => panic!("{name} has elements of type {other}"),
        };
        Self { shape, words }
    }

    /// Its numbers as floats.
    pub fn floats(&self) -> Vec<f32> {
        self.words.iter().map(|&word| f32::from_bits(word)).collect()
    }

    /// The part `index` of `count` along a dimension.
    pub fn part(&self, dimension: i32, index: usize, count: usize) -> Self {
        let dimension = usize::try_from(dimension).unwrap_or_else(|_| {
            self.shape.len().checked_add_signed(dimension as isize).expect("a dimension from the last")
        });
        let mut shape = self.shape.clone();
        assert!(shape[dimension].is_multiple_of(count), "{shape:?} in {count}");
        shape[dimension] /= count;
        let inner: usize = shape[dimension..].iter().product();
        let words = self.words.chunks_exact(inner).skip(index).step_by(count).flatten().copied().collect();
        Self { shape, words }
    }
}
