//! Both forms of attention against the definition in f64, over what the cache gives back.

use super::{
    AttentionConfig, Expansion, Queries, paged_attention_absorbed, paged_attention_decode,
    paged_attention_prefill,
};
use crate::{
    Capacity, DecodeStep, Device, PageId, Tensor, Weight,
    ops::{CacheFormat, LatentCache, LatentShape, PagedCacheConfig, paged_fill_cache},
};
use dsv3_kernels::{Format, Kernels};

const SHAPE: LatentShape = LatentShape { kv_lora_rank: 24, qk_rope_head_dim: 6 };
const LENGTH: usize = 1100;

fn config(heads: usize) -> AttentionConfig {
    AttentionConfig {
        heads,
        kv_lora_rank: 24,
        qk_nope_head_dim: 10,
        qk_rope_head_dim: 6,
        v_head_dim: 18,
        scale: 0.5,
    }
}

/// Values between -1 and 1 that look random.
fn random(rows: usize, cols: usize, seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let value = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    Tensor::from_vec(rows, cols, (0..rows * cols).map(value).collect())
}

/// A full cache, its pages in a wild order, and what it gives back.
struct Filled {
    cache: LatentCache,
    pages: Vec<PageId>,
    /// `[LENGTH][features]`.
    latents: Vec<Vec<f64>>,
}

impl Filled {
    fn new(format: CacheFormat, page_size: usize) -> Self {
        let count = LENGTH.div_ceil(page_size);
        let pages: Vec<_> = (0..count).map(|i| PageId((i * 7 % count) as u32)).collect();
        let pages =
            if count.is_multiple_of(7) { (0..count as u32).rev().map(PageId).collect() } else { pages };
        let capacity = Capacity { max_context: LENGTH, page_size, pages: count };
        let mut cache = LatentCache::new(&capacity, SHAPE, format).unwrap();
        let latents = random(LENGTH, SHAPE.features(), 1);
        let written = PagedCacheConfig { features: SHAPE.features() };
        paged_fill_cache(&mut cache, &latents, 0, &pages, &written).unwrap();
        let mut panel = vec![0.0; LENGTH * cache.panel_stride()];
        cache.read(&pages, 0..LENGTH, Kernels::best(), &mut panel);
        let row = |row: &[f32]| row[..SHAPE.features()].iter().map(|&value| f64::from(value)).collect();
        let latents = panel.chunks(cache.panel_stride()).map(row).collect();
        Self { cache, pages, latents }
    }
}

/// A bound of the relative error of a sum of `terms` products in f32, in any order.
fn sum_error(terms: usize) -> f64 {
    let roundings = (terms + 5) as f64 * f64::from(f32::EPSILON) / 2.0;
    roundings / (1.0 - roundings)
}

/// The attention of one query, and the error that f32 may make. `score_error` is that of a score; values are off by
/// `value_error`.
fn attention(keys: &[Vec<f64>], values: &[Vec<f64>], query: &[f64], errors: [f64; 2]) -> (Vec<f64>, f64) {
    let score = |key: &Vec<f64>| key.iter().zip(query).map(|(k, q)| k * q).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; values[0].len()];
    let mut largest: f64 = 0.0;
    for (weight, value) in weights.iter().zip(values) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight * value / sum;
            largest = largest.max(value.abs());
        }
    }
    // Weights are off by twice the scores' error (the score's and the maximum's), by the rounding of the argument of
    // exp, by its own four roundings for each of the segments and blocks, and by their sum's.
    let weight_error = 2.0 * errors[0] + sum_error(1) * (max - min) + sum_error(keys.len() + 4 * 200);
    (out, 2.0 * largest * weight_error + errors[1])
}

fn assert_near(got: &[f32], (expected, bound): &(Vec<f64>, f64), message: &str) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= *bound, "{message}: {error} > {bound}");
    }
}

/// One result, whatever the number of threads.
fn on_all_devices(run: impl Fn(&Device) -> Tensor) -> Tensor {
    let mut results = (1..=4).map(|threads| run(&Device::single(threads).unwrap()));
    let first = results.next().unwrap();
    assert!(results.all(|other| other == first), "the number of threads shows");
    first
}

#[test]
fn users_at_all_depths_are_decoded_as_defined() {
    let positions = [0, 4, 63, 64, 130, 511, 512, LENGTH - 1];
    for (heads, format, page_size) in [
        (3, CacheFormat::F32, 7),
        (16, CacheFormat::Bf16, 64),
        (16, CacheFormat::Bf16, 30),
        (16, CacheFormat::Bf16, 100),
        (20, CacheFormat::Q8, 30),
        (40, CacheFormat::F32, 64),
    ] {
        let (config, filled) = (config(heads), Filled::new(format, page_size));
        let queries = random(positions.len(), heads * SHAPE.features(), 2);
        let pages = [&filled.pages[..]; 8];
        let step = DecodeStep::new(&positions, &pages);
        let got = on_all_devices(|device| {
            paged_attention_decode(&queries, &filled.cache, &step, &config, device).unwrap()
        });
        for (user, &position) in positions.iter().enumerate() {
            let keys = &filled.latents[..=position];
            let values: Vec<_> = keys.iter().map(|key| key[..24].to_vec()).collect();
            for (head, got) in got.row(user).chunks(24).enumerate() {
                let query = &queries.row(user)[head * 30..][..30];
                let query: Vec<f64> = query.iter().map(|&q| f64::from(q) * 0.5).collect();
                let score_error = sum_error(30) * query.iter().map(|q| q.abs()).sum::<f64>();
                let expected = attention(keys, &values, &query, [score_error, 0.0]);
                assert_near(got, &expected, &format!("{heads} heads, {format}, position {position}"));
            }
        }
    }
}

#[test]
fn a_chunk_is_absorbed_as_its_tokens_are_decoded() {
    let (config, filled) = (config(5), Filled::new(CacheFormat::F32, 64));
    let (start, tokens) = (700, 9);
    let queries = random(tokens, 5 * SHAPE.features(), 3);
    let device = Device::single(2).unwrap();
    let chunk =
        paged_attention_absorbed(&queries, start, &filled.cache, &filled.pages, &config, &device).unwrap();
    for token in 0..tokens {
        let query = Tensor::from_vec(1, queries.cols(), queries.row(token).to_vec());
        let (positions, pages) = ([start + token], [&filled.pages[..]]);
        let step = DecodeStep::new(&positions, &pages);
        let one = paged_attention_decode(&query, &filled.cache, &step, &config, &device).unwrap();
        assert_eq!(one.row(0), chunk.row(token));
    }
}

/// `wkv_b` in f32, and its values.
fn wkv_b(heads: usize) -> (Weight, Tensor) {
    let values = random(heads * 28, 24, 4);
    let bytes: Vec<u8> = values.values().iter().flat_map(|value| value.to_le_bytes()).collect();
    (Weight::in_memory(Format::F32, [values.rows(), values.cols()], bytes), values)
}

/// Keys and values of a head, and bounds of the error of a value and (times a query's size) of a key.
fn expanded(latents: &[Vec<f64>], weights: &Tensor, head: usize) -> (Vec<Vec<f64>>, Vec<Vec<f64>>, f64) {
    let mut largest: f64 = 0.0;
    let mut product = |latent: &[f64], row: usize| {
        let products = latent.iter().zip(weights.row(row)).map(|(l, w)| l * f64::from(*w));
        largest = largest.max(products.clone().map(f64::abs).sum());
        products.sum()
    };
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for latent in latents {
        let key = (0..10).map(|i| product(latent, head * 28 + i)).chain(latent[24..].iter().copied());
        keys.push(key.collect::<Vec<f64>>());
        values.push((10..28).map(|i| product(latent, head * 28 + i)).collect());
    }
    (keys, values, sum_error(24) * largest)
}

#[test]
fn chunks_of_all_lengths_are_prefilled_as_defined() {
    for (heads, format, page_size, start, tokens) in [
        (1, CacheFormat::F32, 7, 0, 1),
        (3, CacheFormat::Bf16, 64, 0, 50),
        (2, CacheFormat::Q8, 30, 61, 16),
        (40, CacheFormat::F32, 64, 120, 17),
        (2, CacheFormat::F32, 64, LENGTH - 33, 33),
    ] {
        let (config, filled) = (config(heads), Filled::new(format, page_size));
        let (weight, weights) = wkv_b(heads);
        let queries = random(tokens, heads * 16, 5);
        let prefill = |device: &Device, queries: &Tensor, start: usize| {
            let (queries, expansion) =
                (Queries { values: queries, start, any_chunk: false }, Expansion { wkv_b: &weight });
            paged_attention_prefill(queries, expansion, &filled.cache, &filled.pages, &config, device)
                .unwrap()
        };
        let got = on_all_devices(|device| prefill(device, &queries, start));
        // The same in two chunks, whose strips are others.
        let device = Device::single(2).unwrap();
        let cut = tokens / 2;
        let part = |range: std::ops::Range<usize>| {
            let values = range.clone().flat_map(|row| queries.row(row)).copied().collect();
            prefill(&device, &Tensor::from_vec(range.len(), queries.cols(), values), start + range.start)
        };
        let parts = [part(0..cut), part(cut..tokens)];
        for head in 0..heads {
            let (keys, values, value_error) = expanded(&filled.latents[..start + tokens], &weights, head);
            for token in 0..tokens {
                let query: Vec<f64> =
                    queries.row(token)[head * 16..][..16].iter().map(|&q| f64::from(q) * 0.5).collect();
                let size: f64 = query.iter().map(|q| q.abs()).sum();
                let largest = keys.iter().flatten().fold(0.0_f64, |largest, key| largest.max(key.abs()));
                let score_error = size * (value_error + sum_error(16) * largest);
                let seen = start + token + 1;
                let expected = attention(&keys[..seen], &values[..seen], &query, [score_error, value_error]);
                let message = format!("{heads} heads, {format}, {tokens} tokens at {start}: {token}");
                assert_near(&got.row(token)[head * 18..][..18], &expected, &message);
                let (part, row) = if token < cut { (0, token) } else { (1, token - cut) };
                assert_near(&parts[part].row(row)[head * 18..][..18], &expected, &message);
            }
        }
    }
}
