//! `dsv3 inspect` on files of TT-NN.

mod support;

use serde_json::json;
use std::fs;
use support::{Workplace, testdata};

#[test]
fn inspect_shows_a_tensorbin() {
    let place = Workplace::new();
    let file = testdata("galaxy/golden/bfloat8_b_mesh4x8_rep_shard1.tensorbin");
    let text = place.run(["inspect".as_ref(), file.as_os_str()]).success().stdout;
    for part in [
        "  shape of a shard  [32, 32]\n",
        "  dtype             bfloat8_b\n",
        "  layout            TILE of 32x32\n",
        "  memory            INTERLEAVED in DRAM\n",
        "  mesh              4x8\n",
        "  distribution      4x8 shards: replicate, shard 1\n",
        "\n32 shards in 8 buffers\n",
        "  1088 bytes from 1088: [0, 1], [1, 1], [2, 1], [3, 1]\n",
    ] {
        assert!(text.contains(part), "expected {part:?} in\n{text}");
    }
    let json = place.run(["inspect".as_ref(), "--json".as_ref(), file.as_os_str()]).success().json();
    assert_eq!(json["memory_config"], "DRAM");
    assert_eq!(json["shards"], 32);
    let replicas = json!([[0, 7], [1, 7], [2, 7], [3, 7]]);
    assert_eq!(json["buffers"][7], json!({"offset": 7616, "bytes": 1088, "mesh_coordinates": replicas}));
    let start = json["data_start"].as_u64().unwrap();
    assert_eq!(start + 8 * 1088, fs::metadata(&file).unwrap().len());
}

#[test]
fn inspect_shows_how_a_shard_is_cut() {
    let place = Workplace::new();
    let show = |name: &str| {
        let file = testdata("galaxy/golden").join(name);
        place.run(["inspect".as_ref(), file.as_os_str()]).success().stdout
    };
    let text = show("bfloat8_b_dram_width_sharded_1x32x352.tensorbin");
    assert!(text.contains("WIDTH_SHARDED in DRAM\n"), "{text}");
    assert!(
        text.contains("  parts of a shard  [32, 32] on 12 cores ((0, 0)-(11, 0)), ROW_MAJOR\n"),
        "{text}"
    );
    let text = show("bfloat16_tile_nd_sharded_2x64x32.tensorbin");
    assert!(text.contains("[1, 32, 32] on 4 cores ((0, 0)-(1, 1)), ROW_MAJOR, ROUND_ROBIN_1D\n"), "{text}");
    let text = show("bfloat16_rm_5x7.tensorbin");
    assert!(
        text.contains("  layout            ROW_MAJOR\n") && text.contains("1 shard in 1 buffer\n"),
        "{text}"
    );
}

#[test]
fn a_damaged_tensorbin_is_refused_by_field() {
    let place = Workplace::new();
    let whole = fs::read(testdata("galaxy/golden/bfloat16_tile_5x7.tensorbin")).unwrap();
    let inspect = |content: &[u8]| {
        let file = place.file("weight.tensorbin", content);
        place.run(["inspect".as_ref(), file.as_os_str()])
    };
    inspect(&whole[..whole.len() - 1]).fails_with(&[
        "weight.tensorbin",
        "shards[0].buffer",
        "2048 bytes from 0",
    ]);
    inspect(&whole[..100]).fails_with(&["header length", "the file has 92 more"]);
    inspect(b"").fails_with(&["weight.tensorbin", "the file has 0"]);
    inspect(&[0xFF; 64]).fails_with(&["older .bin format"]);
    place.run(["inspect", "absent.tensorbin"]).fails_with(&["absent.tensorbin"]);
}
