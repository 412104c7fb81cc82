//! Files that are broken, by hand and by chance. Nothing may panic, and nothing may be allocated because of a number
//! that a file only claims.

use super::*;
use proptest::prelude::*;
use safetensors::SafeTensors;

/// The message for a lone file.
fn file_error(content: &[u8]) -> String {
    open_error(single(content).path())
}

#[test]
fn broken_headers_say_what_is_broken() {
    let lying = |length: u64| file_error(&[&length.to_le_bytes(), &b"{}"[..]].concat());
    assert_eq!(file_error(b"short"), "model.safetensors: is truncated: a header length takes 8 bytes, got 5");
    assert_eq!(file_error(b""), "model.safetensors: is truncated: a header length takes 8 bytes, got 0");
    assert_eq!(
        lying(1 << 60),
        "model.safetensors: claims a header of 1152921504606846976 bytes, the format allows 100000000"
    );
    assert_eq!(
        lying(99_999_999),
        "model.safetensors: is truncated: expected a header of 99999999 bytes, got 2 bytes behind its length"
    );
    assert_eq!(
        file_error(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "model.safetensors: is a Git LFS pointer instead of the file itself: run `git lfs pull`"
    );
    let header = |header: &str| file_error(&file_of(header, &[0; 4]));
    assert!(
        header("[]")
            .starts_with("model.safetensors: malformed header: invalid type: sequence, expected an object")
    );
    assert!(header("{").starts_with("model.safetensors: malformed header: EOF while parsing"));
    assert!(header("{\"\u{1}\"").starts_with("model.safetensors: malformed header: control character"));
    assert!(header(&"[".repeat(100_000)).starts_with("model.safetensors: malformed header: "));
    assert!(header(r#"{"__metadata__": {"format": 3}}"#).contains("expected a string"));
    let message = header(r#"{"w": {"dtype": "F5", "shape": [1], "data_offsets": [0, 4]}}"#);
    assert!(message.contains("malformed header: tensor w: unknown variant `F5`"), "{message}");
    let message = header(r#"{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#);
    assert!(message.contains("tensor w: invalid value: integer `-1`"), "{message}");
    let message = header(r#"{"w": {"dtype": "F32", "shape": [1]}}"#);
    assert!(message.contains("tensor w: missing field `data_offsets`"), "{message}");
}

#[test]
fn a_header_that_is_not_text_is_refused() {
    let mut content = file_of(r#"{"__metadata__":{}}"#, &[]);
    content[12] = 0xff;
    let message = file_error(&content);
    assert!(message.starts_with("model.safetensors: malformed header: "), "{message}");
}

#[test]
fn contradictory_places_say_which_tensor() {
    // One or two tensors over 8 bytes of data.
    let message = |tensors: &[(&str, &str, &str)]| {
        let tensor = |(name, shape, offsets): &(&str, &str, &str)| {
            format!(r#""{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}"#)
        };
        let tensors: Vec<_> = tensors.iter().map(tensor).collect();
        let message = file_error(&file_of(&format!("{{{}}}", tensors.join(",")), &[0; 8]));
        message.strip_prefix("model.safetensors: ").unwrap_or(&message).to_owned()
    };
    let layout = "tensors lie without holes and do not overlap";
    assert_eq!(
        message(&[("v", "[1]", "[0, 4]"), ("w", "[2]", "[0, 8]")]),
        format!("tensor w: begins at byte 0 of the data, expected 4: {layout}")
    );
    assert_eq!(
        message(&[("w", "[1]", "[4, 8]")]),
        format!("tensor w: begins at byte 4 of the data, expected 0: {layout}")
    );
    assert_eq!(
        message(&[("w", "[3]", "[0, 8]")]),
        "tensor w: [3] of F32 takes 12 bytes, its offsets are 0..8"
    );
    assert_eq!(
        message(&[("v", "[0]", "[0, 0]"), ("w", "[2]", "[0, 8]"), ("x", "[1]", "[8, 4]")]),
        "tensor x: [1] of F32 takes 4 bytes, its offsets are 8..4"
    );
    assert_eq!(
        message(&[("w", "[4294967296, 4294967296]", "[0, 8]")]),
        "tensor w: [4294967296, 4294967296] of F32 takes more bytes than a file can have, its offsets are 0..8"
    );
    let message_f4 =
        file_error(&file_of(r#"{"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}"#, &[0]));
    assert!(message_f4.ends_with("tensor w: [3] of F4 takes no whole number of bytes, its offsets are 0..1"));
    assert_eq!(message(&[("w", "[1]", "[0, 4]")]), "is too long: expected 4 bytes of tensors, got 8");
    assert_eq!(message(&[("w", "[3]", "[0, 12]")]), "is truncated: expected 12 bytes of tensors, got 8");
    assert_eq!(
        message(&[("w", "[288230376151711743]", "[0, 1152921504606846972]")]),
        "is truncated: expected 1152921504606846972 bytes of tensors, got 8"
    );
    assert_eq!(
        message(&[("w", "[0]", "[0, 0]"), ("w", "[2]", "[0, 8]")]),
        "tensor w: occurs twice, in model.safetensors and in model.safetensors"
    );
}

#[test]
fn a_truncated_shard_says_what_is_left() {
    let dir = written(&two_shards());
    let path = dir.path().join(FIRST);
    let content = fs::read(&path).unwrap();
    fs::write(&path, &content[..content.len() - 3]).unwrap();
    assert_eq!(
        open_error(dir.path()),
        format!("{FIRST}: is truncated: expected 25 bytes of tensors, got 22")
    );
}

/// Uses all there is to use, if the checkpoint opens.
fn exercise(dir: &Path) {
    let Ok(checkpoint) = Checkpoint::open(dir) else { return };
    for info in checkpoint.tensors() {
        if let Ok(tensor) = checkpoint.tensor(&info.name) {
            assert_eq!(tensor.bytes.as_slice().len() as u64, info.length);
        }
        let _ = checkpoint.dequantized(&info.name, [2, 2]);
        let _ = checkpoint.tensor(&format!("{}.absent", info.name));
    }
}

/// Damage to a file of `length` bytes: bytes overwritten, and perhaps another length.
fn damage(length: usize) -> impl Strategy<Value = (Vec<(usize, u8)>, Option<usize>)> {
    // Structural characters and digits keep most of the damaged headers valid JSON.
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(&br#"0123456789[]{}",:-eFB "#[..])];
    (prop::collection::vec((0..length, byte), 0..6), proptest::option::weighted(0.3, 0..length + 20))
}

fn apply(content: &mut Vec<u8>, (bytes, length): &(Vec<(usize, u8)>, Option<usize>)) {
    for &(place, byte) in bytes {
        content[place] = byte;
    }
    if let &Some(length) = length {
        content.resize(length, 0);
    }
}

proptest! {
    /// This reader and that of the `safetensors` crate accept the same files.
    #[test]
    fn damaged_files_are_judged_as_the_safetensors_crate_judges(
        damage in damage(two_shards()[0].1.to_bytes().len())
    ) {
        let mut content = two_shards()[0].1.to_bytes();
        apply(&mut content, &damage);
        let dir = single(&content);
        let accepted = Checkpoint::open(dir.path()).is_ok();
        prop_assert_eq!(accepted, SafeTensors::deserialize(&content).is_ok());
        exercise(dir.path());
    }

    #[test]
    fn damaged_checkpoints_never_panic(
        file in 0..3_usize,
        damage in damage(150)
    ) {
        let dir = written(&two_shards());
        let path = dir.path().join([FIRST, SECOND, INDEX][file]);
        let mut content = fs::read(&path).unwrap();
        apply(&mut content, &damage);
        fs::write(&path, content).unwrap();
        exercise(dir.path());
    }

    #[test]
    fn any_header_is_judged_without_panic(header in any::<Vec<u8>>(), data in any::<Vec<u8>>()) {
        let length = (header.len() as u64).to_le_bytes();
        exercise(single(&[&length, &header[..], &data].concat()).path());
        exercise(single(&header).path());
    }
}
