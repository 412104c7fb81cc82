//! What the tests share: the real binary over a cache of its own, checkpoints to break, and the golden files.

// Every test binary compiles this file for itself and uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod gguf;

use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};
use tempfile::TempDir;

/// A directory with a cache in it, in which the binary runs.
pub struct Workplace {
    dir: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl Workplace {
    /// A fresh one, with an empty cache.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in it.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A copy of a directory of testdata without its golden file, to be broken.
    pub fn copy(&self, name: &str) -> PathBuf {
        self.copy_of(&testdata(name))
    }

    /// A copy of a checkpoint without its golden file.
    pub fn copy_of(&self, from: &Path) -> PathBuf {
        let to = self.path("copy");
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "golden.safetensors" {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
        to
    }

    /// The binary with these arguments, its cache in here and nothing on stdin.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dsv3"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("DEEPSEEK_V3_CACHE", self.path("cache"))
            .env_remove("DEEPSEEK_V3_HF_MODEL")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    /// Runs it.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    /// Runs it with a text on stdin.
    pub fn run_with_stdin<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, stdin: &[u8]) -> Run {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child: Child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        Run::of(child.wait_with_output().unwrap())
    }

    /// `generate --token-ids` with these ids, greedily, with `--json`, cached in f32: the tokens are compared with those of
    /// transformers, which rounds nothing.
    pub fn generate_ids(&self, model: &Path, ids: &[u32], more: &[&str]) -> Run {
        let file = self.file("ids.json", serde_json::to_string(ids).unwrap());
        let args: [&OsStr; 12] = [
            "generate".as_ref(),
            "--model".as_ref(),
            model.as_ref(),
            "--token-ids".as_ref(),
            file.as_ref(),
            "--temperature".as_ref(),
            "0".as_ref(),
            "--json".as_ref(),
            "--kv-cache".as_ref(),
            "f32".as_ref(),
            "--arithmetic".as_ref(),
            "float".as_ref(),
        ];
        self.run(args.into_iter().chain(more.iter().map(OsStr::new)))
    }
}

impl Run {
    /// The end of a process.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it ended by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// That it succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// That it failed with one line on stderr, which holds all of `parts`, without a word on stdout.
    #[track_caller]
    pub fn fails_with(&self, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (1, ""), "{self:#?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let [line] = lines[..] else { panic!("expected one line: {self:#?}") };
        assert!(line.starts_with("dsv3: error: "), "{line}");
        for part in parts {
            assert!(line.contains(part), "expected {part:?} in {line:?}");
        }
    }

    /// That the command line was refused, for a reason that holds `part`.
    #[track_caller]
    pub fn is_usage_error(&self, part: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (2, ""), "{self:#?}");
        assert!(self.stderr.starts_with("error: ") && self.stderr.contains(part), "{self:#?}");
    }

    /// stdout as one JSON value.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// The checkpoint of the embedded model.
pub fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny")
}

/// A directory or file of testdata.
pub fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

/// The header of a shard as JSON, and where its tensors' bytes begin.
pub fn header(shard: &[u8]) -> (Value, usize) {
    let length = usize::try_from(u64::from_le_bytes(shard[..8].try_into().unwrap())).unwrap();
    (serde_json::from_slice(&shard[8..8 + length]).unwrap(), 8 + length)
}

/// The shard of a tensor, and the tensor's first byte in it.
pub fn find_tensor(model: &Path, name: &str) -> (PathBuf, usize) {
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let path = model.join(shard);
        let (header, data) = header(&fs::read(&path).unwrap());
        if let Some(offset) = header[name]["data_offsets"][0].as_u64() {
            return (path, data + usize::try_from(offset).unwrap());
        }
    }
    panic!("{name} is in no shard");
}

/// What transformers computed from a checkpoint.
pub struct Golden(Vec<u8>);

impl Golden {
    /// Of a checkpoint in testdata.
    pub fn of(name: &str) -> Self {
        Self(fs::read(testdata(name).join("golden.safetensors")).unwrap())
    }

    /// An i32 tensor of token ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = file.tensor(name).unwrap().data().to_vec();
        bytes.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect()
    }

    /// An f32 tensor: shape and values.
    pub fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        floats(&self.0, name)
    }
}

/// An f32 tensor of a safetensors file: shape and values.
pub fn floats(file: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::deserialize(file).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    let values = tensor.data().as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect();
    (tensor.shape().to_vec(), values)
}

/// Token ids of a line of `generate --json`.
pub fn token_ids(record: &Value) -> Vec<u32> {
    serde_json::from_value(record["token_ids"].clone()).unwrap()
}
