//! Writes the operations of a step of a model on a mesh, for `tools/ttnn_check`.
//!
//! `operations CONFIG.json MESH MODE USERS_PER_ROW SEQUENCE_LENGTH FABRIC OUTPUT`

use dsv3_deepseek::HfConfig;
use dsv3_galaxy::plan::{
    plan,
    request::{Mode, Request},
};
use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [config, mesh, mode, users, length, fabric, output] = &args[..] else {
        return Err("usage: operations CONFIG MESH MODE USERS_PER_ROW SEQUENCE_LENGTH FABRIC OUTPUT".into());
    };
    let request = Request {
        mesh: mesh.parse()?,
        mode: if mode == "decode" { Mode::Decode } else { Mode::Prefill },
        users_per_row: users.parse()?,
        sequence_length: length.parse()?,
        fabric: fabric.parse()?,
    };
    let plan = plan(&HfConfig::from_file(Path::new(config))?, request)?;
    fs::write(output, serde_json::to_string_pretty(&plan.operations)?)?;
    Ok(())
}
