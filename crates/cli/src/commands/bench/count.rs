//! `dsv3 bench count`: the floor, from config.json alone.

use super::{digits, table::Table};
use crate::{args::BenchCountArgs, commands::config::read_config, output};
use anyhow::Result;
use dsv3_deepseek::{
    HfConfig,
    counts::{self, AttentionCount, MatrixCount},
};
use dsv3_runtime::Format;
use serde::Serialize;
use std::collections::BTreeMap;

/// Runs the command.
pub(super) fn run(args: &BenchCountArgs) -> Result<()> {
    let hf = read_config(args.model.as_deref())?;
    let count = Count::new(&hf, args);
    output::print(&if args.json { output::pretty_json(&count)? } else { count.text(args) })
}

/// The report, as JSON has it.
#[derive(Serialize)]
struct Count {
    matrices: Vec<Matrix>,
    /// Of one layer.
    attention: Attention,
    /// Bytes of weights that a decoded token reads, by format.
    token_bytes: BTreeMap<&'static str, u64>,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
    copies: usize,
    active: usize,
    /// Of a token.
    flops: u64,
    /// Of a token that passes alone.
    bytes: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Attention {
    absorbed_flops: u64,
    expanded_flops: u64,
    expansion_flops: u64,
    cached_bytes: u64,
}

/// A decode step, or a prefill in one chunk.
#[derive(Serialize)]
struct Step {
    work: &'static str,
    depth: usize,
    tokens: usize,
    /// Of the step.
    flops: u64,
    /// Of them, the attention's.
    attention_flops: u64,
    cache_bytes: u64,
    /// Milliseconds that the arithmetic takes at least.
    flops_ms: f64,
    /// Milliseconds that reading takes at least, by format.
    bytes_ms: BTreeMap<&'static str, f64>,
    /// Tokens in a second that are left, by format.
    tokens_per_second: BTreeMap<&'static str, f64>,
}

impl Count {
    fn new(hf: &HfConfig, args: &BenchCountArgs) -> Self {
        let by_format = |bytes: &dyn Fn(Format) -> u64| {
            args.formats.iter().map(|&format| (format.name(), bytes(format))).collect()
        };
        let matrix = |count: MatrixCount| Matrix {
            flops: count.flops(),
            bytes: by_format(&|format| count.active as u64 * count.bytes(hf, format)),
            name: count.name,
            rows: count.rows,
            cols: count.cols,
            copies: count.copies,
            active: count.active,
        };
        let attention = AttentionCount::of(&hf.attention);
        let depths = || args.depths.iter().map(|&depth| depth as usize);
        let decode = depths().map(|depth| Step::new(hf, args, depth, 1));
        let prefill = depths().map(|depth| Step::new(hf, args, depth, args.prompt as usize));
        Self {
            matrices: counts::matrices(hf).into_iter().map(matrix).collect(),
            attention: Attention {
                absorbed_flops: attention.absorbed,
                expanded_flops: attention.expanded,
                expansion_flops: attention.expansion,
                cached_bytes: counts::cached_bytes(hf, 1, 1, args.kv_cache.into()),
            },
            token_bytes: by_format(&|format| counts::step_bytes_in(hf, format, 1)),
            steps: decode.chain(prefill).collect(),
        }
    }

    fn text(&self, args: &BenchCountArgs) -> String {
        let attention = &self.attention;
        format!(
            "Matrices, and what a token takes of them alone (MB by format):\n{}\n\
             Attention of a token to a cached position, in each layer: {} FLOP absorbed, {} expanded and {} once a \
             chunk to expand the position; {} bytes cached.\n\n\
             Floors at {} GB/s and {} GFLOP/s (ms to read, by format; tokens/s, by format, where reading and \
             arithmetic hide one another):\n{}",
            self.matrices_table(args).text(),
            attention.absorbed_flops,
            attention.expanded_flops,
            attention.expansion_flops,
            attention.cached_bytes,
            args.bandwidth,
            args.flops,
            self.steps_table(args).text()
        )
    }

    fn matrices_table(&self, args: &BenchCountArgs) -> Table {
        let formats = || args.formats.iter().map(|format| format.name());
        let header = ["matrix", "rows", "columns", "in the model", "a token's", "MFLOP"];
        let mut table = Table::new(header.into_iter().chain(formats()));
        let megabytes = |bytes: &BTreeMap<&str, u64>| -> Vec<String> {
            formats().map(|format| digits(bytes[format] as f64 / 1e6)).collect()
        };
        for matrix in &self.matrices {
            let mut row = vec![matrix.name.clone()];
            row.extend(
                [matrix.rows, matrix.cols, matrix.copies, matrix.active].map(|number| number.to_string()),
            );
            row.push(digits(matrix.flops as f64 / 1e6));
            row.extend(megabytes(&matrix.bytes));
            table.row(row);
        }
        let mut row = vec!["all, norms and a row of the embedding".to_owned()];
        row.extend([const { String::new() }; 4]);
        row.push(digits(self.matrices.iter().map(|matrix| matrix.flops).sum::<u64>() as f64 / 1e6));
        row.extend(megabytes(&self.token_bytes));
        table.row(row);
        table
    }

    fn steps_table(&self, args: &BenchCountArgs) -> Table {
        let formats = || args.formats.iter().map(|format| format.name());
        let header =
            ["step", "depth", "tokens", "GFLOP", "attention", "cache MB", "ms to compute"].map(str::to_owned);
        let header = header.into_iter().chain(formats().map(|format| format!("ms {format}")));
        let mut table = Table::new(header.chain(formats().map(|format| format!("tokens/s {format}"))));
        for step in &self.steps {
            let mut row = vec![step.work.to_owned(), step.depth.to_string(), step.tokens.to_string()];
            row.push(digits(step.flops as f64 / 1e9));
            row.push(digits(step.attention_flops as f64 / 1e9));
            row.push(digits(step.cache_bytes as f64 / 1e6));
            row.push(digits(step.flops_ms));
            row.extend(formats().map(|format| digits(step.bytes_ms[format])));
            row.extend(formats().map(|format| digits(step.tokens_per_second[format])));
            table.row(row);
        }
        table
    }
}

impl Step {
    /// Of `tokens` behind `depth` others.
    fn new(hf: &HfConfig, args: &BenchCountArgs, depth: usize, tokens: usize) -> Self {
        let flops = counts::chunk_flops(hf, depth, tokens, 1);
        let attention = AttentionCount::of(&hf.attention).flops(depth, tokens);
        let cache_bytes =
            counts::cached_bytes(hf, hf.num_hidden_layers, depth + tokens, args.kv_cache.into());
        let flops_ms = flops as f64 / args.flops / 1e6;
        let bytes_ms: BTreeMap<_, _> = args
            .formats
            .iter()
            .map(|&format| {
                let bytes = counts::step_bytes_in(hf, format, tokens) + cache_bytes;
                (format.name(), bytes as f64 / args.bandwidth / 1e6)
            })
            .collect();
        let speed = |(&format, &ms): (&&'static str, &f64)| (format, 1e3 * tokens as f64 / ms.max(flops_ms));
        Self {
            work: if tokens == 1 { "decode" } else { "prefill" },
            depth,
            tokens,
            flops,
            attention_flops: hf.num_hidden_layers as u64 * attention,
            cache_bytes,
            flops_ms,
            tokens_per_second: bytes_ms.iter().map(speed).collect(),
            bytes_ms,
        }
    }
}
