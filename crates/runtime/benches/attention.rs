//! Speed of attention at DeepSeek-V3's head sizes with 16 heads: decode by depth and cache format, and both forms of
//! prefill around the chunk lengths where the cost model changes from one to the other. An element is a multiply-add.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dsv3_runtime::{
    Capacity, Checkpoint, DecodeStep, Device, Extent, Format, Location, Order, PageId, SavedWeight, Tensor,
    Weight, WeightLoader, ops,
};
use std::fs;

const CONFIG: ops::AttentionConfig = ops::AttentionConfig {
    heads: 16,
    kv_lora_rank: 512,
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
    v_head_dim: 128,
    scale: 0.07,
};
const FEATURES: usize = 576;
const LENGTH: usize = 4608;
const PAGE_SIZE: usize = 64;

fn values(rows: usize, cols: usize) -> Tensor {
    let value = |i: usize| ((i * 2_654_435_761) >> 8 & 0xffff) as f32 / 65_536.0 - 0.5;
    Tensor::from_vec(rows, cols, (0..rows * cols).map(value).collect())
}

fn cache(format: ops::CacheFormat, pages: &[PageId]) -> ops::LatentCache {
    let capacity = Capacity { max_context: LENGTH, page_size: PAGE_SIZE, pages: pages.len() };
    let shape = ops::LatentShape { kv_lora_rank: 512, qk_rope_head_dim: 64 };
    let mut cache = ops::LatentCache::new(&capacity, shape, format).expect("a cache");
    let config = ops::PagedCacheConfig { features: FEATURES };
    ops::paged_fill_cache(&mut cache, &values(LENGTH, FEATURES), 0, pages, &config).expect("pages cover it");
    cache
}

/// `wkv_b` in bf16, from files as a model's weights are.
fn wkv_b() -> Weight {
    let dir = tempfile::tempdir().expect("a directory");
    let header = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    fs::write(dir.path().join("model.safetensors"), file).expect("a checkpoint");
    let shape = vec![CONFIG.heads * (CONFIG.qk_nope_head_dim + CONFIG.v_head_dim), CONFIG.kv_lora_rank];
    let bytes: Vec<u8> = values(shape[0], shape[1])
        .values()
        .iter()
        .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    fs::write(dir.path().join("wkv_b"), &bytes).expect("a weight");
    let data =
        Extent { location: Location::Cache, file: "wkv_b".into(), offset: 0, length: bytes.len() as u64 };
    let saved = SavedWeight { source: "wkv_b".into(), format: Format::Bf16, shape, data, scales: None };
    let checkpoint = Checkpoint::open(dir.path()).expect("a checkpoint");
    WeightLoader::new(&checkpoint, dir.path()).load(&saved).expect("a weight")
}

/// One user, two threads.
fn decode(criterion: &mut Criterion) {
    let pages: Vec<PageId> = (0..).take(LENGTH / PAGE_SIZE).map(PageId).collect();
    let device = Device::single(2).expect("two threads");
    let queries = values(1, CONFIG.heads * FEATURES);
    for depth in [512, 2048, 4096] {
        let mut group = criterion.benchmark_group(format!("absorbed decode at {depth}"));
        let pair = 2 * CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim;
        group.throughput(Throughput::Elements((depth * CONFIG.heads * pair) as u64));
        for format in ops::CacheFormat::ALL {
            let cache = cache(format, &pages);
            let (positions, tables) = ([depth - 1], [&pages[..]]);
            let step = DecodeStep::new(&positions, &tables);
            group.bench_function(BenchmarkId::from_parameter(format), |bencher| {
                bencher.iter(|| ops::paged_attention_decode(&queries, &cache, &step, &CONFIG, &device));
            });
        }
    }
}

/// Both forms of one chunk, with the products with `wkv_b` that each needs; the group's name says which one the cost
/// model takes.
fn prefill(criterion: &mut Criterion) {
    let pages: Vec<PageId> = (0..).take(LENGTH / PAGE_SIZE).map(PageId).collect();
    let device = Device::single(2).expect("two threads");
    let (cache, wkv_b) = (cache(ops::CacheFormat::Bf16, &pages), wkv_b());
    for (tokens, start) in
        [(16, 512), (96, 512), (128, 512), (192, 512), (96, 4096), (128, 4096), (192, 4096)]
    {
        let form = ops::prefill_form(tokens, start, ops::CacheFormat::Bf16, &CONFIG);
        let mut group = criterion.benchmark_group(format!("{tokens} tokens at {start}, taken {form:?}"));
        group.sample_size(10);
        let queries = values(tokens, CONFIG.heads * (CONFIG.qk_nope_head_dim + CONFIG.qk_rope_head_dim));
        group.bench_function("absorbed", |bencher| {
            bencher.iter(|| {
                let absorbed = ops::absorb_queries(&queries, &wkv_b, &CONFIG, Order::Fastest, &device);
                let attended =
                    ops::paged_attention_absorbed(&absorbed, start, &cache, &pages, &CONFIG, &device);
                ops::expand_values(
                    &attended.expect("pages cover it"),
                    &wkv_b,
                    &CONFIG,
                    Order::Fastest,
                    &device,
                )
            });
        });
        group.bench_function("expanded", |bencher| {
            bencher.iter(|| {
                let queries = ops::Queries { values: &queries, start, any_chunk: false };
                let expansion = ops::Expansion { wkv_b: &wkv_b };
                ops::paged_attention_prefill(queries, expansion, &cache, &pages, &CONFIG, &device)
            });
        });
    }
}

criterion_group!(benches, decode, prefill);
criterion_main!(benches);
