//! Speed of the kernels that decode and prefill consist of, by format: decode in bytes of weights per second, to set
//! beside the machine's memory bandwidth; prefill in multiply-adds per second, to set beside its FMA rate.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dsv3_kernels::{BlockScales, Format, IntegerMatrix, Kernels, MatrixMut, MatrixRef, MatrixView};
use std::hint::black_box;

const BLOCK: usize = 128;

/// Several matrices, one after another in memory, so that each call reads one that no cache holds.
struct Weights {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    scales: Vec<u8>,
}

impl Weights {
    /// At least `total` bytes of matrices; all values are finite and not subnormal.
    fn new(format: Format, rows: usize, cols: usize, total: usize) -> Self {
        let matrix = rows * format.bytes(cols);
        let pattern = [0x3c, 0x3d, 0xbc, 0x3e, 0xbb];
        let bytes = pattern.into_iter().cycle().take(matrix * total.div_ceil(matrix)).collect();
        let scales = vec![0x3c; rows.div_ceil(BLOCK) * cols.div_ceil(BLOCK) * size_of::<f32>()];
        Self { format, rows, cols, bytes, scales }
    }

    fn get(&self, number: usize) -> MatrixView<'_> {
        let length = self.rows * self.format.bytes(self.cols);
        let start = number % (self.bytes.len() / length) * length;
        let scales = BlockScales {
            bytes: &self.scales,
            block_rows: BLOCK,
            block_cols: BLOCK,
            grid_cols: self.cols.div_ceil(BLOCK),
            first_row: 0,
        };
        let scales = (self.format == Format::Fp8).then_some(scales);
        MatrixView::from_bytes(self.format, &self.bytes[start..start + length], self.rows, self.cols, scales)
    }
}

/// The formats, each in f32 and, where it has an integer product for as many tokens, in integers.
fn ways(tokens: usize) -> impl Iterator<Item = (Format, bool, String)> {
    Format::ALL.into_iter().flat_map(move |format| {
        let weights = Weights::new(format, 1, 256, 1);
        let has_integers = Kernels::best().takes_integers(&weights.get(0), tokens);
        let integer = has_integers.then(|| (format, true, format!("{format} integer")));
        [Some((format, false, format!("{format} float"))), integer].into_iter().flatten()
    })
}

/// One product; the integers, if any, are made before.
fn multiply(w: &MatrixView<'_>, x: MatrixRef<'_>, integers: Option<&IntegerMatrix>, out: MatrixMut<'_>) {
    let kernels = Kernels::best();
    match integers {
        None => kernels.matmul(w, x, out),
        Some(integers) => kernels.matmul_integer(w, integers.as_ref(), out),
    }
}

/// `x` as integers, for weights in `format`.
fn quantized(x: MatrixRef<'_>, format: Format) -> IntegerMatrix {
    let mut integers = IntegerMatrix::default();
    Kernels::best().quantize(x, integers.reshape(x.rows(), x.cols(), format));
    integers
}

/// Few tokens through weights that come from memory.
fn decode(criterion: &mut Criterion) {
    let (rows, cols) = (2048, 7168);
    for tokens in [1, 4] {
        let x = vec![0.5; tokens * cols];
        let x = MatrixRef::new(&x, tokens, cols);
        let mut out = vec![0.0; tokens * rows];
        let mut group = criterion.benchmark_group(format!("decode {tokens} x (2048 x 7168)"));
        for (format, in_integers, name) in ways(tokens) {
            let weights = Weights::new(format, rows, cols, 256 << 20);
            let integers = in_integers.then(|| quantized(x, format));
            let mut number = 0;
            group.throughput(Throughput::Bytes((rows * format.bytes(cols)) as u64));
            group.bench_function(BenchmarkId::new(Kernels::best().isa().name(), name), |bencher| {
                bencher.iter(|| {
                    number += 1;
                    let out = MatrixMut::new(&mut out, tokens, rows);
                    multiply(&weights.get(number), black_box(x), integers.as_ref(), out);
                });
            });
        }
    }
}

/// Many tokens through one matrix; an element is a multiply-add.
fn prefill(criterion: &mut Criterion) {
    let (rows, cols) = (2048, 2048);
    for tokens in [8, 64, 256] {
        let x = vec![0.5; tokens * cols];
        let x = MatrixRef::new(&x, tokens, cols);
        let mut out = vec![0.0; tokens * rows];
        let mut group = criterion.benchmark_group(format!("prefill {tokens} x (2048 x 2048)"));
        group.sample_size(20);
        for (format, in_integers, name) in ways(tokens) {
            let weights = Weights::new(format, rows, cols, 1);
            let integers = in_integers.then(|| quantized(x, format));
            group.throughput(Throughput::Elements((tokens * rows * cols) as u64));
            group.bench_function(BenchmarkId::new(Kernels::best().isa().name(), name), |bencher| {
                bencher.iter(|| {
                    let out = MatrixMut::new(&mut out, tokens, rows);
                    multiply(&weights.get(0), black_box(x), integers.as_ref(), out);
                });
            });
        }
    }
}

/// Activations to integers; an element is one of them.
fn quantize(criterion: &mut Criterion) {
    let kernels = Kernels::best();
    let (tokens, cols) = (64, 2048);
    let x = vec![0.5; tokens * cols];
    let mut group = criterion.benchmark_group(format!("quantize {tokens} x {cols}"));
    group.throughput(Throughput::Elements((tokens * cols) as u64));
    let mut integers = IntegerMatrix::default();
    group.bench_function(kernels.isa().name(), |bencher| {
        bencher.iter(|| {
            let x = MatrixRef::new(black_box(&x), tokens, cols);
            kernels.quantize(x, integers.reshape(tokens, cols, Format::Fp8));
        });
    });
}

/// Probabilities of 16 heads times 4096 cached latents of 512 (and 64 more columns that are not read).
fn attention(criterion: &mut Criterion) {
    let kernels = Kernels::best();
    let (heads, positions, latent, width) = (16, 4096, 512, 576);
    let probabilities = vec![0.5; heads * positions];
    let mut out = vec![0.0; heads * latent];
    let mut group = criterion.benchmark_group("probabilities 16 x 4096 x 512");
    for format in [Format::F32, Format::Bf16] {
        let cache = Weights::new(format, positions, width, 1);
        group.throughput(Throughput::Elements((heads * positions * latent) as u64));
        group.bench_function(BenchmarkId::new(kernels.isa().name(), format!("{format:?}")), |bencher| {
            bencher.iter(|| {
                let x = MatrixRef::new(black_box(&probabilities), heads, positions);
                let latents = cache.get(0).column_range(0..latent);
                kernels.matmul_transposed(&latents, x, MatrixMut::new(&mut out, heads, latent));
            });
        });
    }
}

criterion_group!(benches, decode, prefill, quantize, attention);
criterion_main!(benches);
