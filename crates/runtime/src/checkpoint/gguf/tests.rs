//! Heads that are right, broken by hand and broken by chance.

use super::*;
use proptest::prelude::*;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A file of one number, one list of texts, a bf16 matrix [2, 3], a q8_0 stack [2, 1, 32] and an iq2_xxs vector.
fn file() -> Vec<u8> {
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &3_u64.to_le_bytes(), &2_u64.to_le_bytes()].concat();
    file.extend(text("a.rate"));
    file.extend([6_u32.to_le_bytes(), 0.1_f32.to_le_bytes()].concat());
    file.extend(text("a.list"));
    file.extend([&9_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &2_u64.to_le_bytes()].concat());
    file.extend([text("x"), text("yz")].concat());
    for (name, sides, kind, offset) in
        [("m", &[3_u64, 2][..], 30_u32, 0_u64), ("s", &[32, 1, 2], 8, 32), ("v", &[256], 16, 128)]
    {
        file.extend(text(name));
        file.extend((sides.len() as u32).to_le_bytes());
        file.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend(offset.to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..128).map(|i| i as u8));
    file
}

fn message(file: &[u8]) -> String {
    Head::read(file, 0).err().unwrap()
}

#[test]
fn a_head_is_read() {
    let file = file();
    let head = Head::read(&file, 0).unwrap();
    assert_eq!(head.metadata["a.rate"], GgufValue::Float(0.1));
    let list = head.metadata["a.list"].as_list().unwrap();
    assert_eq!(list.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>(), ["x", "yz"]);
    let [m, s, v] = &head.tensors[..] else { panic!("{:?}", head.tensors) };
    let start = (file.len() - 128) as u64;
    assert_eq!((&m.shape[..], m.dtype, m.offset, m.length), (&[2, 3][..], Dtype::Bf16, start, 12));
    assert_eq!((&s.shape[..], s.dtype, s.offset, s.length), (&[2, 1, 32][..], Dtype::Q8_0, start + 32, 68));
    assert_eq!((v.dtype.to_string(), v.dtype.is_weight()), ("iq2_xxs".to_owned(), false));
}

#[test]
fn a_stack_is_cut_into_tensors_of_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file()).unwrap();
    assert!(Gguf::is_gguf(&path));
    let names = |count: usize| {
        move |info: &TensorInfo| match &info.name[..] {
            "m" => GgufName::Whole("matrix".to_owned()),
            "s" => GgufName::Stacked((0..count).map(|i| format!("part.{i}")).collect()),
            _ => GgufName::Ignored,
        }
    };
    let gguf = Gguf::open(&path).unwrap();
    let checkpoint = gguf.clone().into_checkpoint(names(2), BTreeMap::new()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["matrix", "part.0", "part.1"]);
    let part = checkpoint.tensor("part.1").unwrap();
    assert_eq!(part.info.shape, [1, 32]);
    assert_eq!(part.bytes.as_slice(), (66..100).collect::<Vec<u8>>());
    let error = gguf.into_checkpoint(names(3), BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(error, "tensor s: expected 3 slices, got shape [2, 1, 32]");
}

#[test]
fn several_files_are_found_by_the_first() {
    let names = |path: &str| {
        let names = parts(Path::new(path)).into_iter().map(|path| path.display().to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names("a/m-00001-of-00002.gguf"), ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"]);
    assert_eq!(names("a/m-00002-of-00002.gguf"), ["a/m-00002-of-00002.gguf"]);
    assert_eq!(names("a/m.gguf"), ["a/m.gguf"]);
}

#[test]
fn broken_heads_say_what_is_broken() {
    let file = file();
    assert_eq!(message(b"GGU"), "is truncated: expected 4 bytes at 0, got 3");
    assert_eq!(message(b"GGML...."), "is no GGUF file");
    let with = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        message(&file)
    };
    assert_eq!(with(4, &9_u32.to_le_bytes()), "has GGUF version 9, expected 2 or 3");
    let huge = u64::MAX.to_le_bytes();
    assert!(with(8, &huge).contains("is truncated"));
    assert!(with(16, &huge).contains("is truncated"));
    assert!(with(24, &huge).starts_with("is truncated: expected 18446744073709551615 bytes"));
    assert_eq!(with(38, &13_u32.to_le_bytes()), "a.rate: expected a type of value from 0 to 12, got 13");
    let last = file.len() - 1;
    assert!(message(&file[..last - 60]).starts_with("tensor s: [2, 1, 32] in q8_0 at "));
}

proptest! {
    #[test]
    fn any_damage_is_judged_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut file = file();
        for (index, byte) in changes {
            let index = index.index(file.len());
            file[index] = byte;
        }
        let _ = Head::read(&file, 0);
        file.truncate(length.index(file.len()));
        if let Ok(head) = Head::read(&file, 0) {
            for tensor in head.tensors {
                prop_assert!(tensor.length == 0 || tensor.offset + tensor.length <= file.len() as u64);
            }
        }
    }
}
