//! `dsv3 bench kernels`: the products of the model's own matrices, and its attention.

mod attention;

use super::{ceilings::Ceilings, digits, percent, print, spread::Spread, table::Table};
use crate::{
    args::BenchKernelsArgs,
    load::free_memory,
    model::{ModelPlace, OpenModel},
    output::note,
    progress::{Progress, Unit},
};
use anyhow::{Result, bail};
use attention::{Attention, Lengths};
use dsv3_deepseek::ModelWeights;
use dsv3_runtime::{
    Device, Format, Kernels, Mode, Tensor, Weight, WeightTree,
    ops::{Arithmetic, CacheFormat, LinearConfig, linear},
};
use indicatif::DecimalBytes;
use serde::Serialize;
use std::{collections::BTreeMap, hint::black_box, iter, time::Instant};

/// What is read before each measurement, so that no cache holds weights.
const EVICTING_BYTES: usize = 128 << 20;
/// Matrices are multiplied until so many bytes have been read in one measurement, or all of their shape.
const MEASURED_BYTES: u64 = 64 << 20;
/// Or until so many operations have been done.
const MEASURED_OPERATIONS: f64 = 10e9;
/// More rows than these are a prefill's.
const DECODE_ROWS: usize = 8;

/// Runs the command.
pub(super) fn run(args: &BenchKernelsArgs) -> Result<()> {
    let model = OpenModel::open(&ModelPlace::resolve(&args.model)?)?;
    let weights = model.weights()?;
    let shapes = shapes(&weights);
    check_memory(&shapes, &args.rows, free_memory())?;
    let threads = if args.threads.is_empty() { vec![0] } else { args.threads.clone() };
    let products: Vec<_> = shapes.iter().flat_map(|shape| shape.products(&args.rows)).collect();
    let total = (threads.len() * (products.len() + CacheFormat::ALL.len() * args.rows.len())) as u64;
    let mut progress = Progress::new("measuring", Unit::Measurements);
    let mut report = Report { ceilings: Vec::new(), kernels: Vec::new() };
    for threads in threads {
        let device = Device::single(usize::from(threads))?;
        let ceilings = Ceilings::measure(&device);
        note(format_args!("{ceilings}"));
        report.ceilings.push(ceilings);
        let bench = Bench { device, ceilings, evicting: vec![1; EVICTING_BYTES], repeat: args.repeat };
        for &product in &products {
            report.kernels.push(bench.measure(product));
            progress.update(report.kernels.len() as u64, total);
        }
        for format in CacheFormat::ALL {
            for &rows in &args.rows {
                let lengths = Lengths { depth: args.depth as usize, tokens: rows as usize };
                let attention = Attention::new(&model.hf, &weights, format, lengths)?;
                report.kernels.push(bench.attend(&attention)?);
                progress.update(report.kernels.len() as u64, total);
            }
        }
    }
    drop(progress);
    print(&report, &report.table(), args.report)
}

/// The report, as JSON has it.
#[derive(Serialize)]
struct Report {
    ceilings: Vec<Ceilings>,
    kernels: Vec<Measurement>,
}

/// The matrices of one shape and format.
struct Shape {
    /// Their ways in the weight tree, without numbers.
    names: Vec<String>,
    rows: usize,
    cols: usize,
    format: Format,
    matrices: Vec<Weight>,
}

/// What is measured of a shape.
#[derive(Clone, Copy)]
struct Product<'a> {
    shape: &'a Shape,
    /// Rows of activations.
    tokens: usize,
    arithmetic: Arithmetic,
}

impl Shape {
    /// In f32 always, in integers where a step in integers takes them.
    fn products(&self, rows: &[u32]) -> impl Iterator<Item = Product<'_>> {
        rows.iter().flat_map(move |&tokens| {
            let tokens = tokens as usize;
            let takes_integers = Kernels::best().takes_integers(&self.matrices[0].matrix(), tokens);
            let arithmetics =
                iter::once(Arithmetic::Float).chain(takes_integers.then_some(Arithmetic::Integer));
            arithmetics.map(move |arithmetic| Product { shape: self, tokens, arithmetic })
        })
    }
}

/// One line.
#[derive(Serialize)]
struct Measurement {
    #[serde(flatten)]
    work: Work,
    /// The instruction set.
    kernels: String,
    threads: usize,
    seconds: Spread,
    bytes_per_second: f64,
    /// Of the bandwidth.
    bytes_share: f64,
    flops: f64,
    /// Of the multiply-add rate in this arithmetic.
    flops_share: f64,
}

/// What a line is about: one product, or attention in one layer.
#[derive(Serialize)]
struct Work {
    names: Vec<String>,
    /// Of attention, its heads.
    rows: usize,
    /// Of attention, features of a position.
    cols: usize,
    /// Of attention, the cache's.
    format: String,
    arithmetic: Arithmetic,
    /// Of attention, the positions that are cached before the tokens.
    depth: Option<usize>,
    /// Rows of activations.
    tokens: usize,
    /// What is read.
    bytes: u64,
    operations: f64,
}

/// Groups the matrices that tokens are multiplied with.
fn shapes(weights: &ModelWeights<Weight>) -> Vec<Shape> {
    let mut shapes = BTreeMap::new();
    weights.clone().for_each(|path, weight| {
        let path = path.to_string();
        let parts: Vec<&str> = path.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
        if matches!(weight, Weight::Matrix(_)) && !matches!(parts[0], "embedding" | "mtp") {
            let (name, view) = (parts.join("."), weight.matrix());
            let (rows, cols, format) = (view.rows(), view.cols(), view.format());
            let shape = shapes.entry((rows, cols, format.name())).or_insert_with(|| Shape {
                names: Vec::new(),
                rows,
                cols,
                format,
                matrices: Vec::new(),
            });
            if !shape.names.contains(&name) {
                shape.names.push(name);
            }
            shape.matrices.push(weight);
        }
    });
    shapes.into_values().collect()
}

/// Refuses more rows than there is memory for; `free` is what there is, where it is known.
fn check_memory(shapes: &[Shape], rows: &[u32], free: Option<u64>) -> Result<()> {
    let most = rows.iter().copied().max().unwrap_or(0);
    // Activations in f32 and in integers, and the product.
    let values = shapes.iter().map(|shape| 2 * shape.cols + shape.rows).max().unwrap_or(0);
    let bytes = u64::from(most) * (values * size_of::<f32>()) as u64;
    if let Some(free) = free.filter(|&free| bytes > free) {
        let (bytes, free) = (DecimalBytes(bytes), DecimalBytes(free));
        bail!("--rows {most} takes {bytes} of memory, and this system has {free} free: choose fewer");
    }
    Ok(())
}

struct Bench {
    device: Device,
    ceilings: Ceilings,
    evicting: Vec<u8>,
    repeat: u32,
}

impl Bench {
    /// Multiplies as many matrices of the shape as it takes for a clock to be exact, each once.
    fn measure(&self, Product { shape, tokens, arithmetic }: Product<'_>) -> Measurement {
        let mode = if tokens > DECODE_ROWS { Mode::Prefill } else { Mode::Decode };
        let config = LinearConfig { arithmetic, ..LinearConfig::new(mode, shape.cols, shape.rows) };
        let x = values(tokens, shape.cols);
        let bytes = shape.matrices[0].bytes();
        let operations = 2.0 * (tokens * shape.rows * shape.cols) as f64;
        let count = MEASURED_BYTES.div_ceil(bytes).min((MEASURED_OPERATIONS / operations) as u64);
        let matrices = &shape.matrices[..shape.matrices.len().min(count.max(1) as usize)];
        self.multiply(matrices, &x, &config); // what is not in the page cache comes now
        let seconds = self.time(|| self.multiply(matrices, &x, &config), matrices.len());
        let work = Work {
            names: shape.names.clone(),
            rows: shape.rows,
            cols: shape.cols,
            format: shape.format.to_string(),
            arithmetic,
            depth: None,
            tokens,
            bytes,
            operations,
        };
        self.measurement(work, seconds)
    }

    /// How long each of `count` parts of `f` takes, with what it reads in memory.
    fn time(&self, mut f: impl FnMut(), count: usize) -> Spread {
        let times = (0..self.repeat).map(|_| {
            self.evict();
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64() / count as f64
        });
        Spread::of(times.collect())
    }

    fn measurement(&self, work: Work, seconds: Spread) -> Measurement {
        let (bytes_per_second, flops) =
            (work.bytes as f64 / seconds.median, work.operations / seconds.median);
        let most = if work.arithmetic.is_integer() { self.ceilings.int8 } else { self.ceilings.flops };
        Measurement {
            work,
            kernels: self.device.kernels().isa().to_string(),
            threads: self.device.threads(),
            seconds,
            bytes_per_second,
            bytes_share: bytes_per_second / self.ceilings.read,
            flops,
            flops_share: flops / most,
        }
    }

    fn multiply(&self, matrices: &[Weight], x: &Tensor, config: &LinearConfig) {
        for matrix in matrices {
            black_box(linear(x, matrix, config, &self.device));
        }
    }

    fn evict(&self) {
        let part = self.evicting.len().div_ceil(self.device.threads());
        let kernels = self.device.kernels();
        let mut parts: Vec<&[u8]> = self.evicting.chunks(part).collect();
        self.device.for_each_chunk(&mut parts, 1, |_, part| {
            black_box(kernels.xor_words(part[0]));
        });
    }
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new([
            "matrix",
            "format",
            "arithmetic",
            "rows",
            "columns",
            "depth",
            "kernels",
            "threads",
            "tokens",
            "µs",
            "min",
            "max",
            "GB/s",
            "of memory",
            "G/s",
            "of peak",
        ]);
        for found in &self.kernels {
            let micros = |seconds: f64| digits(seconds * 1e6);
            table.row(vec![
                short(&found.work.names),
                found.work.format.clone(),
                if found.work.arithmetic.is_integer() { "int8" } else { "f32" }.to_owned(),
                found.work.rows.to_string(),
                found.work.cols.to_string(),
                found.work.depth.map_or_else(String::new, |depth| depth.to_string()),
                found.kernels.clone(),
                found.threads.to_string(),
                found.work.tokens.to_string(),
                micros(found.seconds.median),
                micros(found.seconds.min),
                micros(found.seconds.max),
                digits(found.bytes_per_second / 1e9),
                percent(found.bytes_share),
                digits(found.flops / 1e9),
                percent(found.flops_share),
            ]);
        }
        table
    }
}

/// Activations: some values of either sign, none large.
fn values(rows: usize, cols: usize) -> Tensor {
    Tensor::from_vec(rows, cols, (0..rows * cols).map(|index| (index % 17) as f32 / 8.0 - 1.0).collect())
}

/// The last two parts of each name: `mla.wq_a`, `experts.w1, experts.w3`. Both kinds of blocks have them.
fn short(names: &[String]) -> String {
    let mut all: Vec<&str> = Vec::new();
    for name in names {
        let start = name.rmatch_indices('.').nth(1).map_or(0, |(dot, _)| dot + 1);
        if !all.contains(&&name[start..]) {
            all.push(&name[start..]);
        }
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice;

    #[test]
    fn more_rows_than_memory_holds_are_refused() {
        let shape =
            Shape { names: Vec::new(), rows: 1000, cols: 200, format: Format::F32, matrices: Vec::new() };
        let check = |free| check_memory(slice::from_ref(&shape), &[1, 50], free);
        check(None).unwrap();
        check(Some(50 * 1400 * 4)).unwrap();
        let error = check(Some(50 * 1400 * 4 - 1)).unwrap_err().to_string();
        assert!(error.starts_with("--rows 50 takes "), "{error}");
    }

    #[test]
    fn names_are_shortened_and_said_once() {
        let names = ["mlp_decoder_block.mla.wq_a", "moe_decoder_block.mla.wq_a", "lm_head.weight"];
        assert_eq!(short(&names.map(str::to_owned)), "mla.wq_a, lm_head.weight");
    }
}
