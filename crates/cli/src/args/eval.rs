//! `dsv3 eval`: what is typed.

use super::{DeviceArgs, ModelArgs, PrecisionArgs};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  dsv3 eval perplexity --text story.txt --window 512
  dsv3 eval divergence --text story.txt --save-base exact.kld          the base, at the exact settings
  dsv3 eval divergence --base exact.kld --model OTHER                  another checkpoint or setting against it
  dsv3 eval teacher-forcing --save reference.json --text prompt.txt
  dsv3 eval teacher-forcing --reference reference.json --min-top1 0.97

docs/accuracy.md says what each figure means and how it is measured.";

/// `dsv3 eval`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EvalArgs {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) command: EvalCommand,
}

/// The measures.
#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Perplexity of a text, with its standard error
    ///
    /// The text is cut into windows as llama.cpp's llama-perplexity does it: the second half of each counts. With
    /// --stride the windows overlap, and the last N tokens of each count.
    Perplexity(PerplexityArgs),
    /// Kullback-Leibler divergence from saved logits, and agreement on the likeliest token
    ///
    /// The base is a file of llama-perplexity's format (its --kl-divergence-base; also what --save-base writes), which
    /// holds the text's tokens too, or the logits that `dsv3 logits` writes of the same tokens.
    Divergence(DivergenceArgs),
    /// Accuracy of the next token, while the model is given a reference's tokens
    ///
    /// Top-1: the model's likeliest token is the reference's; top-5: it is one of the reference's five likeliest. The
    /// file is JSON: {"format_version": "multi_prompt_v1", "entries": [{"prompt_tokens": [..], "generated_tokens":
    /// [..], "top5_tokens": [[..5 ids..], ..]}]}. The prompt runs by prefill, the rest token by token.
    TeacherForcing(TeacherForcingArgs),
}

impl EvalCommand {
    /// How the model runs.
    pub(crate) fn running(&self) -> &EvalRunArgs {
        match self {
            Self::Perplexity(args) => &args.run,
            Self::Divergence(args) => &args.run,
            Self::TeacherForcing(args) => &args.run,
        }
    }
}

/// A text to measure on.
#[derive(Clone, Debug, Args)]
#[group(id = "input", multiple = false)]
pub(crate) struct TextArgs {
    /// File of plain text (UTF-8), for the checkpoint's tokenizer
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// JSON file with a list of token ids
    #[arg(long, value_name = "FILE")]
    pub(crate) token_ids: Option<PathBuf>,
}

/// How a text is cut into windows.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Windows")]
pub(crate) struct WindowArgs {
    /// Tokens of a window [default: 512]
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Measure the first N windows only
    #[arg(long, value_name = "N")]
    pub(crate) max_windows: Option<usize>,
    /// Whether the begin-of-sequence token stands in front of the text and in place of each window's first token
    #[arg(long, value_enum, default_value_t = BosArg::Auto)]
    pub(crate) bos: BosArg,
}

/// Where there is a begin-of-sequence token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BosArg {
    /// As the checkpoint's tokenizer would have it; none where there is no tokenizer
    Auto,
    /// The checkpoint's
    Always,
    /// None
    Never,
}

/// How the model runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct EvalRunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
    /// Write the figures as JSON to stdout instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// `dsv3 eval perplexity`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("needed").args(["text", "token_ids"]).required(true))]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) windows: WindowArgs,
    /// Begin a window every N tokens, and count the last N tokens of each; no token is replaced by a BOS then
    ///
    /// As llama-perplexity's --ppl-stride, where --window is what that prints as its "Calculation chunk".
    #[arg(long, value_name = "N", help_heading = "Windows")]
    pub(crate) stride: Option<usize>,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
}

/// `dsv3 eval divergence`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").args(["base", "save_base"]).required(true))]
pub(crate) struct DivergenceArgs {
    /// Compare with this file: llama-perplexity's log-probabilities, or safetensors with a tensor `logits`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["window"])]
    pub(crate) base: Option<PathBuf>,
    /// Write the model's log-probabilities in llama-perplexity's format, to be compared with
    #[arg(long, value_name = "FILE", requires = "input")]
    pub(crate) save_base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) windows: WindowArgs,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
}

/// `dsv3 eval teacher-forcing`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").args(["reference", "save"]).required(true))]
pub(crate) struct TeacherForcingArgs {
    /// Follow this file
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    pub(crate) reference: Option<PathBuf>,
    /// Write such a file of the model's own greedy continuation of a prompt
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// JSON file of prompts, as for `generate`; they are continued as plain text
    #[arg(long, value_name = "FILE", group = "input")]
    pub(crate) prompts_file: Option<PathBuf>,
    /// Tokens to generate after each prompt, if the model does not end the text before
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "reference")]
    pub(crate) max_new_tokens: usize,
    /// Fail (exit code 1) if the top-1 accuracy is below this share
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "save")]
    pub(crate) min_top1: Option<f64>,
    /// Fail (exit code 1) if the top-5 accuracy is below this share
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "save")]
    pub(crate) min_top5: Option<f64>,
    #[command(flatten)]
    pub(crate) run: EvalRunArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}
