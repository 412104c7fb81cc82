//! Stage 1 and the cache on a module of two weights.

use super::*;
use crate::{
    Capacity, DecodeRun, DecodeStep, Leaf, LeafFn, PrefillRun, PrefillStep, Tally, WeightKind, WeightSpec,
    WeightTree,
    checkpoint::testing::{ShardBuilder, write_checkpoint},
    weight_tree,
};
use dsv3_mesh::Placement;
use proptest::prelude::*;
use std::{io::Write, time::Duration};
use tempfile::TempDir;

mod ggml;
mod mesh;

enum Toy {}

weight_tree! { struct ToyWeights<W> { matrix: Leaf<W>, vector: Leaf<W> } }

impl Module for Toy {
    /// Rows and columns of an FP8 block.
    type Hf = Option<[usize; 2]>;
    type Weights<W> = ToyWeights<W>;
    type PrefillConfig = ();
    type DecodeConfig = ();
    type State = ();
    type Input<'a> = ();
    type Output = ();

    fn weight_specs(scale_block: &Self::Hf, at: &Prefix, _: Layout) -> ToyWeights<WeightSpec> {
        let spec = |name, shape: &[usize]| {
            let placement = Placement::Replicated;
            Leaf(WeightSpec {
                source: at.name(name),
                kind: (shape.len() == 2).then_some(WeightKind("matrix")),
                shape: shape.to_vec(),
                placement,
                scale_block: *scale_block,
            })
        };
        ToyWeights { matrix: spec("matrix.weight", &[2, 3]), vector: spec("vector.weight", &[3]) }
    }

    fn try_map<A, B, E>(
        weights: ToyWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<ToyWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(_: &Self::Hf, _: Layout) -> Result<(), Error> {
        Ok(())
    }

    fn decode_model_config(_: &Self::Hf, _: Layout) -> Result<(), Error> {
        Ok(())
    }

    fn create_state(_: &Self::Hf, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    fn forward_prefill((): (), _: &PrefillStep<'_>, _: PrefillRun<'_, Self>) -> Result<(), Error> {
        Ok(())
    }

    fn forward_decode((): (), _: &DecodeStep<'_>, _: DecodeRun<'_, Self>) -> Result<(), Error> {
        Ok(())
    }
}

/// A checkpoint in a directory of its own, and a root for caches.
struct Fixture {
    dir: TempDir,
    block: Option<[usize; 2]>,
}

const MATRIX: [f32; 6] = [1.0, -2.0, 0.5, 3.0, -0.25, 8.0];
const VECTOR: [f32; 3] = [0.75, 1.5, -1.0];

impl Fixture {
    fn new(shard: ShardBuilder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        write_checkpoint(&dir.path().join("model"), &[("model.safetensors", shard)]);
        Self { dir, block: None }
    }

    fn bf16() -> Self {
        Self::new(ShardBuilder::new().bf16("matrix.weight", &[2, 3], &MATRIX).f32(
            "vector.weight",
            &[3],
            &VECTOR,
        ))
    }

    fn f16() -> Self {
        let halves = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
        };
        let shard = ShardBuilder::new().raw("matrix.weight", "F16", &[2, 3], &halves(&MATRIX));
        Self::new(shard.raw("vector.weight", "F16", &[3], &halves(&VECTOR)))
    }

    fn fp8(scale: f32, block: Option<[usize; 2]>) -> Self {
        // 0x38 is 1.0.
        let shard =
            ShardBuilder::new().fp8("matrix.weight", &[2, 3], &[0x38; 6]).f32("vector.weight", &[3], &VECTOR);
        Self { block, ..Self::new(shard.f32("matrix.weight_scale_inv", &[1, 2], &[2.0, scale])) }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.dir.path().join("model")).unwrap()
    }

    fn cache(&self) -> WeightCache {
        WeightCache::locate(&self.dir.path().join("cache"), &self.checkpoint(), Layout::SINGLE)
    }

    fn convert(&self, force: bool) -> Result<Converted, Error> {
        let checkpoint = self.checkpoint();
        let fingerprint = Fingerprint::of(&checkpoint, b"{}");
        let source = Source { checkpoint: &checkpoint, fingerprint };
        self.cache().convert::<Toy>(&self.block, &source, force, &mut |_| {})
    }

    fn report(&self) -> ConvertReport {
        match self.convert(false).unwrap() {
            Converted::Made(report) => report,
            Converted::Present => panic!("a new cache is made"),
        }
    }

    fn load(&self) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let checkpoint = self.checkpoint();
        let fingerprint = Fingerprint::of(&checkpoint, b"{}");
        let source = Source { checkpoint: &checkpoint, fingerprint };
        let weights = self.cache().load::<Toy>(&self.block, &source)?;
        let matrix = weights.matrix.matrix();
        let mut values = vec![0.0; 6];
        for (row, out) in values.chunks_mut(3).enumerate() {
            dsv3_kernels::Kernels::best().dequantize_row(&matrix, row, out);
        }
        Ok((values, weights.vector.vector().to_vec()))
    }

    /// What lies beside the cache: after success or failure only the lock may.
    fn leftovers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache().dir().parent().unwrap()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn edit_config(&self, from: &str, to: &str) {
        let path = self.cache().dir().join(WEIGHT_CONFIG_FILE);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    }
}

#[test]
fn what_serves_as_it_is_stays_in_the_checkpoint() {
    let fixture = Fixture::bf16();
    let report = fixture.report();
    assert_eq!(
        report,
        ConvertReport { in_place: Tally { tensors: 2, bytes: 24 }, ..ConvertReport::default() }
    );
    assert_eq!(fixture.load().unwrap(), (MATRIX.to_vec(), VECTOR.to_vec()));
    assert!(!fixture.cache().dir().join(WEIGHTS_FILE).exists());
    assert_eq!(fixture.leftovers(), ["cpu-1x1", "cpu-1x1.lock"]);
    assert!(matches!(fixture.convert(false).unwrap(), Converted::Present));
}

#[test]
fn fp8_stays_in_place_with_its_scales() {
    let fixture = Fixture::fp8(0.5, Some([2, 2]));
    assert_eq!(fixture.report().in_place, Tally { tensors: 2, bytes: 6 + 8 + 12 });
    assert_eq!(fixture.load().unwrap().0, [2.0, 2.0, 0.5, 2.0, 2.0, 0.5]);
}

#[test]
fn f16_is_widened_without_loss() {
    let fixture = Fixture::f16();
    assert_eq!(fixture.report().widened, Tally { tensors: 2, bytes: 36 });
    assert_eq!(fixture.load().unwrap(), (MATRIX.to_vec(), VECTOR.to_vec()));
    // The vector starts at a cache line of its own.
    assert_eq!(fs::metadata(fixture.cache().dir().join(WEIGHTS_FILE)).unwrap().len(), 64 + 12);
}

#[test]
fn unusable_tensors_are_named_and_leave_nothing_behind() {
    let vector = |shard: ShardBuilder| shard.f32("vector.weight", &[3], &VECTOR);
    let cases = [
        (Fixture::new(vector(ShardBuilder::new())), "tensor matrix.weight: "),
        (
            Fixture::new(vector(ShardBuilder::new().f32("matrix.weight", &[3, 2], &MATRIX))),
            "tensor matrix.weight: expected shape [2, 3], as config.json says, got [3, 2]",
        ),
        (
            Fixture::new(vector(ShardBuilder::new().raw("matrix.weight", "I8", &[2, 3], &[0; 6]))),
            "tensor matrix.weight: ",
        ),
        (
            Fixture::fp8(0.5, None),
            "tensor matrix.weight: is F8_E4M3, but config.json has no quantization_config",
        ),
        (Fixture::fp8(f32::NAN, Some([2, 2])), "tensor matrix.weight_scale_inv: "),
        (Fixture::fp8(0.5, Some([1, 2])), "tensor matrix.weight_scale_inv: "),
    ];
    for (fixture, expected) in cases {
        let error = fixture.convert(false).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(fixture.leftovers(), ["cpu-1x1.lock"], "{error}");
    }
}

#[test]
fn a_checkpoint_that_changed_is_refused_until_forced() {
    let fixture = Fixture::bf16();
    fixture.report();
    let shard = fixture.dir.path().join("model/model.safetensors");
    let file = File::options().append(true).open(&shard).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified + Duration::from_nanos(1)).unwrap();
    for error in [fixture.load().unwrap_err(), fixture.convert(false).unwrap_err()] {
        let error = error.to_string();
        assert!(
            error
                .contains("a file of it has changed since; make it anew with `dsv3 convert --force --model "),
            "{error}"
        );
    }
    assert!(matches!(fixture.convert(true).unwrap(), Converted::Made(_)));
    assert_eq!(fixture.load().unwrap().0, MATRIX);
    assert_eq!(fixture.leftovers(), ["cpu-1x1", "cpu-1x1.lock"]);
}

#[test]
fn damaged_and_foreign_caches_are_refused_with_what_to_do() {
    type Damage = fn(&Fixture);
    let cases: [(Damage, &str); 9] = [
        (|f| f.edit_config("\"1x1\"", "\"1x2\""), "was made for cpu 1x2, expected cpu 1x1"),
        (
            |f| {
                f.edit_config("\"shape\": [\n        2,\n        3", "\"shape\": [\n        3,\n        2");
            },
            "expected matrix [2, 3], as config.json says, got matrix [3, 2]",
        ),
        (
            |f| f.edit_config("\"weights\"", "\"weight\""),
            "is damaged (weight_config.json: unknown field `weight`",
        ),
        (
            |f| f.edit_config("\"vector\"", "\"vectors\""),
            "is damaged (weight_config.json: unknown field `vectors`",
        ),
        (
            |f| {
                let field = |version| format!("\"format_version\": {version}");
                f.edit_config(&field(FORMAT_VERSION), &field(9));
            },
            "has format version 9, this program reads",
        ),
        (
            |f| fs::write(f.cache().dir().join(WEIGHT_CONFIG_FILE), "{\"header\":").unwrap(),
            "is damaged (weight_config.json: EOF",
        ),
        (
            |f| fs::write(f.cache().dir().join(WEIGHTS_FILE), "torn").unwrap(),
            "is damaged (weights.bin has 4 bytes, expected 76)",
        ),
        (|f| f.edit_config("\"offset\": 64", "\"offset\": 65"), "12 bytes at 65 lie beyond the 76 of"),
        (|f| f.edit_config("weights.bin", "../weights.bin"), "../weights.bin leads out of its directory"),
    ];
    for (damage, expected) in cases {
        let fixture = Fixture::f16();
        fixture.report();
        damage(&fixture);
        let error = fixture.load().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(matches!(fixture.convert(true).unwrap(), Converted::Made(_)), "{error}");
        fixture.load().unwrap();
    }
}

#[test]
fn an_older_cache_without_weights_of_its_own_is_made_anew() {
    let older = |fixture: &Fixture| {
        fixture.report();
        let field = |version| format!("\"format_version\": {version}");
        fixture.edit_config(&field(FORMAT_VERSION), &field(FORMAT_VERSION - 1));
    };
    let in_place = Fixture::bf16();
    older(&in_place);
    assert!(matches!(in_place.convert(false).unwrap(), Converted::Made(_)));
    assert_eq!(in_place.load().unwrap().0, MATRIX);
    assert_eq!(in_place.leftovers(), ["cpu-1x1", "cpu-1x1.lock"]);

    // What took long to write is thrown away by nobody but the user.
    let written = Fixture::f16();
    older(&written);
    let error = written.convert(false).unwrap_err().to_string();
    assert!(error.contains("this program reads"), "{error}");
}

#[test]
fn of_several_writers_one_writes() {
    let fixture = &Fixture::f16();
    let made = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8).map(|_| scope.spawn(|| fixture.convert(false).unwrap())).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(made.iter().filter(|made| matches!(made, Converted::Made(_))).count(), 1);
    assert_eq!(fixture.load().unwrap().0, MATRIX);
}

proptest! {
    /// Whatever happens to the WeightConfig's bytes, loading it works or is refused.
    #[test]
    fn no_weight_config_brings_the_loader_down(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let fixture = Fixture::f16();
        fixture.report();
        let path = fixture.cache().dir().join(WEIGHT_CONFIG_FILE);
        let mut bytes = fs::read(&path).unwrap();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = fixture.load() {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

/// What an interrupted run leaves, and what other formats do.
mod resumed {
    use super::*;
    use dsv3_kernels::Format;

    fn formats(format: Format) -> Formats {
        Formats { name: format.name().to_owned(), kinds: [("matrix".to_owned(), format)].into() }
    }

    fn convert(fixture: &Fixture, format: Format) -> Result<ConvertReport, Error> {
        let checkpoint = fixture.checkpoint();
        let source = Source { fingerprint: Fingerprint::of(&checkpoint, b"{}"), checkpoint: &checkpoint };
        let cache = fixture.cache().with_formats(formats(format));
        match cache.convert::<Toy>(&None, &source, false, &mut |_| {})? {
            Converted::Made(report) => Ok(report),
            Converted::Present => panic!("a new cache is made"),
        }
    }

    /// The matrix is written, then the vector turns out to be none.
    fn begun() -> Fixture {
        let fixture = Fixture::new(ShardBuilder::new().bf16("matrix.weight", &[2, 3], &MATRIX).f32(
            "vector.weight",
            &[3],
            &[1.0, f32::NAN, 1.0],
        ));
        let error = convert(&fixture, Format::F32).unwrap_err().to_string();
        assert!(error.starts_with("tensor vector.weight: "), "{error}");
        fixture
    }

    #[test]
    fn what_is_done_is_kept_and_gone_on_with() {
        let fixture = begun();
        let temporary = fixture.cache().with_formats(formats(Format::F32)).sibling("tmp");
        assert!(fixture.cache().with_formats(formats(Format::F32)).is_begun());
        // Half a line and half a weight, as a program leaves them that is cut off.
        let append = |name: &str, bytes: &[u8]| {
            File::options().append(true).open(temporary.join(name)).unwrap().write_all(bytes).unwrap();
        };
        append("journal.jsonl", b"{\"source\":\"vec");
        append(WEIGHTS_FILE, &[1, 2, 3]);
        // The same files, with a vector that is one: only the time tells, so the old one is put back.
        let shard = fixture.dir.path().join("model/model.safetensors");
        let modified = fs::metadata(&shard).unwrap().modified().unwrap();
        let bytes =
            ShardBuilder::new().bf16("matrix.weight", &[2, 3], &MATRIX).f32("vector.weight", &[3], &VECTOR);
        fs::write(&shard, bytes.to_bytes()).unwrap();
        File::options().append(true).open(&shard).unwrap().set_modified(modified).unwrap();
        let report = convert(&fixture, Format::F32).unwrap();
        assert_eq!(report.resumed, Tally { tensors: 1, bytes: 24 });
        assert_eq!(report.converted, [("f32", Tally { tensors: 1, bytes: 24 })].into());
        let cache = fixture.cache().with_formats(formats(Format::F32));
        assert_eq!(fs::read(cache.dir().join(WEIGHTS_FILE)).unwrap().len(), 24);
        assert!(!cache.dir().join("journal.jsonl").exists());
    }

    #[test]
    fn what_is_of_another_origin_is_begun_anew() {
        let fixture = begun();
        let shard = fixture.dir.path().join("model/model.safetensors");
        let bytes =
            ShardBuilder::new().bf16("matrix.weight", &[2, 3], &MATRIX).f32("vector.weight", &[3], &VECTOR);
        fs::write(&shard, bytes.to_bytes()).unwrap();
        let modified = fs::metadata(&shard).unwrap().modified().unwrap() + Duration::from_secs(1);
        File::options().append(true).open(&shard).unwrap().set_modified(modified).unwrap();
        assert_eq!(convert(&fixture, Format::F32).unwrap().resumed, Tally::default());
    }

    #[test]
    fn what_does_not_divide_stays_and_is_told() {
        let fixture = Fixture::bf16();
        let report = convert(&fixture, Format::Q4K).unwrap();
        let [fallback] = &report.fallbacks[..] else { panic!("{report:?}") };
        assert_eq!((fallback.asked, fallback.got, fallback.tensors), (Format::Q4K, Format::Bf16, 1));
        assert_eq!(report.in_place, Tally { tensors: 2, bytes: 24 });
    }
}
