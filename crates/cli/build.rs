//! Lists the files of the model that is compiled into the binary, and names the directory it is unpacked into.

#[path = "src/embedded/dir_name.rs"]
mod dir_name;

use std::{env, error::Error, fmt::Write, fs, path::Path};

/// What a checkpoint is made of: all that the binary unpacks.
const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/embedded/dir_name.rs");
    let model = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../models/tiny");
    let mut contents = Vec::new();
    let mut list = String::new();
    for name in FILES {
        let path = model.join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        contents.push(fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?);
        writeln!(list, "    ({name:?}, include_bytes!({path:?})),")?;
    }
    let dir_name = dir_name::dir_name(FILES.into_iter().zip(contents.iter().map(Vec::as_slice)));
    let code =
        format!("const DIR_NAME: &str = {dir_name:?};\nconst FILES: &[(&str, &[u8])] = &[\n{list}];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("embedded_files.rs"), code)?;
    Ok(())
}
