//! Operator configs that TT-NN accepted: each is read as the type it is, and written so that nothing of it is lost.

mod support;

use dsv3_galaxy::{
    tile::Tile,
    types::{
        ComputeKernelConfig, CoreGrid, DataType, Layout, MemoryConfig, ProgramConfig, Topology,
        UnaryWithParam,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};
use support::testdata;

/// Reads a value and writes it again.
fn round_trip<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    value: &Value,
) -> Result<Value, String> {
    let read: T = serde_json::from_value(value.clone()).map_err(|error| format!("{value}: {error}"))?;
    let written = serde_json::to_value(&read).unwrap();
    let again: T = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(again, read);
    Ok(written)
}

/// Whether all of a value stands in another one too, which may say more.
fn stands_in(value: &Value, other: &Value) -> bool {
    match (value, other) {
        (Value::Object(fields), Value::Object(others)) => {
            fields.iter().all(|(name, field)| others.get(name).is_some_and(|other| stands_in(field, other)))
        }
        (Value::Array(list), Value::Array(others)) => {
            list.len() == others.len() && list.iter().zip(others).all(|(item, other)| stands_in(item, other))
        }
        _ => value == other,
    }
}

/// A field's type, by its name; the fields of others are looked through.
fn visit(name: &str, value: &Value, seen: &mut BTreeMap<String, usize>) {
    let written = match name {
        "memory_config" | "output_memory_config" => round_trip::<MemoryConfig<CoreGrid>>(value),
        "program_config" => round_trip::<ProgramConfig>(value),
        "compute_kernel_config" => round_trip::<ComputeKernelConfig>(value),
        "mux_core_range_set" => round_trip::<CoreGrid>(value),
        "topology" => round_trip::<Topology>(value),
        "dtype" => round_trip::<DataType>(value),
        "layout" => round_trip::<Layout>(value),
        "tile" => round_trip::<Tile>(value),
        "input_tensor_a_activations" => round_trip::<Vec<UnaryWithParam>>(value),
        _ => {
            match value {
                Value::Object(fields) => fields.iter().for_each(|(name, field)| visit(name, field, seen)),
                Value::Array(items) => items.iter().for_each(|item| visit("", item, seen)),
                _ => {}
            }
            return;
        }
    };
    let written = written.unwrap();
    assert!(stands_in(value, &written), "{value} became {written}");
    *seen.entry(name.to_owned()).or_default() += 1;
}

#[test]
fn every_config_of_the_examples_is_a_type_of_ours() {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(testdata().join("examples")).unwrap() {
        let text = fs::read(entry.unwrap().path()).unwrap();
        visit("", &serde_json::from_slice(&text).unwrap(), &mut seen);
    }
    let least =
        [("memory_config", 200), ("program_config", 40), ("compute_kernel_config", 40), ("topology", 40)];
    for (name, least) in least {
        assert!(seen[name] >= least, "{} of {name}", seen[name]);
    }
}

#[test]
fn a_memory_config_has_two_forms() {
    let of_tt_nn = json!({
        "memory_layout": 3, "buffer_type": 0, "created_with_nd_shard_spec": false,
        "shard_spec": {
            "grid": [{"start": {"x": 0, "y": 0}, "end": {"x": 11, "y": 0}}], "shape": [7168, 192], "orientation": 0,
        },
    });
    let config: MemoryConfig = serde_json::from_value(of_tt_nn.clone()).unwrap();
    assert_eq!(config.to_json(), of_tt_nn);
    let short = json!({
        "memory_layout": "WIDTH_SHARDED", "buffer_type": "DRAM",
        "shard_spec": {"grid": [[[0, 0], [11, 0]]], "shape": [7168, 192], "orientation": "ROW_MAJOR"},
    });
    assert_eq!(serde_json::to_value(&config).unwrap(), short);
    assert_eq!(serde_json::from_value::<MemoryConfig>(short).unwrap(), config);
    assert_eq!(serde_json::to_value(MemoryConfig::<CoreGrid>::DRAM).unwrap(), json!("DRAM"));
    let nd = json!({
        "memory_layout": 5, "buffer_type": 1, "created_with_nd_shard_spec": true,
        "nd_shard_spec": {
            "shard_shape": [1, 32, 32], "grid": [{"start": {"x": 0, "y": 0}, "end": {"x": 1, "y": 1}}],
            "orientation": 0, "shard_distribution_strategy": 0,
        },
    });
    assert_eq!(serde_json::from_value::<MemoryConfig>(nd.clone()).unwrap().to_json(), nd);
}

#[test]
fn what_is_none_of_these_is_refused_by_name() {
    let refused = |value: Value| round_trip::<MemoryConfig<CoreGrid>>(&value).unwrap_err();
    for (value, part) in [
        (json!("L2"), "L1_WIDTH_SHARDED"),
        (json!({"buffer_type": "L2"}), "expected one of DRAM, L1"),
        (json!({"memory_layout": 1}), "MemoryLayout by name or number"),
        (json!({"memory_layuot": 0}), "unknown field `memory_layuot`"),
        (json!({"shard_spec": {"grid": "all", "shape": [1, 1]}}), "dram_workers"),
        (json!({"shard_spec": {"grid": [[[0, 0]]], "shape": [1, 1]}}), "invalid length 1"),
        (json!({"shard_spec": {"grid": {"cores": 4}, "shape": [32, 32]}}), "no memory_layout"),
        (json!({"created_with_nd_shard_spec": true}), "created_with_nd_shard_spec is true"),
    ] {
        let message = refused(value);
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    }
    let program = json!({"type": "MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig", "in0_block_w": 4,
        "per_core_M": 1, "per_core_N": 9, "per_core_K": 1});
    assert!(round_trip::<ProgramConfig>(&program).unwrap_err().contains("unknown field `per_core_K`"));
}
