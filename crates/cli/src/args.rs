//! What is typed: one struct a command. Nothing here touches a file.

mod bench;
mod chat;
mod device;
pub(crate) mod eval;
mod galaxy;
mod galaxy_config;
mod layout;
mod mesh;
mod plan;
mod precision;
mod serve;

pub(crate) use bench::{
    BenchArgs, BenchCommand, BenchCountArgs, BenchKernelsArgs, BenchPlotArgs, BenchRunArgs, ReportArgs,
};
pub(crate) use chat::{ChatArgs, TemplateKwargs};
pub(crate) use device::{DeviceArgs, LoadArgs};
pub(crate) use galaxy::{GalaxyArgs, TargetArg};
pub(crate) use galaxy_config::GalaxyConfigArgs;
pub(crate) use layout::{LayoutArgs, MeshArg, Ranks};
pub(crate) use mesh::MeshArgs;
pub(crate) use plan::{MachineArgs, PlanArgs};
pub(crate) use precision::{CacheArg, Precision, PrecisionArgs};
pub(crate) use serve::{ListenArgs, LogArg, ServeArgs, SharingArgs};

use clap::{Args, Parser, Subcommand, ValueEnum};
use dsv3_deepseek::kinds::parse_formats;
use dsv3_runtime::{Formats, Isa};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  dsv3 generate \"What is 27 + 58?\"                     with the small model inside this binary
  dsv3 chat                                            a conversation with it
  dsv3 serve                                           for any client of OpenAI's API, at port 8080
  dsv3 generate --model ~/DeepSeek-V3 \"Why is ...?\"    with a checkpoint from Hugging Face
  dsv3 inspect ~/DeepSeek-V3                           is the download whole, and what is in it?
  dsv3 config --model config.json --mesh 4x8           operator configs for 32 devices
  dsv3 plan --model config.json --mesh 1x4 --link 100  would it fit, and how fast would it be?
  dsv3 bench run --model ~/DeepSeek-V3                 how fast is it here, and how fast could it be?

The three stages: `convert` prepares the weights, `config` makes the operator configs, \
`generate` runs the model. `generate` and `logits` run the first two by themselves where they are needed.";

/// DeepSeek-V3 inference, straight from Hugging Face checkpoints.
#[derive(Debug, Parser)]
#[command(name = "dsv3", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// Instructions to compute with: scalar, avx2, avx2-halves or avx512 [default: what this machine is fastest with]
    #[arg(long, value_name = "NAME", global = true, help_heading = "Running", hide_short_help = true)]
    pub(crate) isa: Option<Isa>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text from prompts
    ///
    /// Text goes to stdout as it is generated, all else to stderr. A prompt is a chat message, put into the
    /// checkpoint's chat template, unless there is none or --raw is given. How tokens are chosen follows the
    /// checkpoint's generation_config.json where no option says otherwise.
    Generate(Box<GenerateArgs>),
    /// Talk with the model
    ///
    /// Line by line, with an editor and a history on a terminal, plainly over pipes. Answers go to stdout, all else to
    /// stderr; /help lists what else there is than to talk.
    Chat(Box<ChatArgs>),
    /// Serve the model to many, over HTTP, as OpenAI's clients expect it
    ///
    /// Chat completions, completions, streams, tools, structured output; docs/server.md lists what there is. The same
    /// request with the same seed gets the same answer, whatever else runs. SIGTERM and Ctrl-C let streams finish.
    Serve(Box<ServeArgs>),
    /// Prepare a checkpoint's weights (stage 1)
    ///
    /// Weights that can be used where they lie in the checkpoint are not copied; only what cannot is written to the
    /// cache, with a WeightConfig that says where each weight lies. With --target galaxy all are written, as the files
    /// that Tenstorrent's demo loads on a Galaxy.
    Convert(Box<ConvertArgs>),
    /// Make the operator configs of a model (stage 2)
    ///
    /// Needs only config.json. The configs are JSON, for prefill and for decode, on a mesh of any size. With --target galaxy
    /// they are those of TT-NN's operators on a Tenstorrent Galaxy.
    Config(Box<ConfigArgs>),
    /// Tell what each device of a mesh will hold, read and send, and how fast that can be
    ///
    /// Loads nothing: a checkpoint's headers, or its config.json alone, are enough. The machine's memory bandwidth and
    /// arithmetic are measured in a second, unless they are given for machines that are elsewhere.
    Plan(Box<PlanArgs>),
    /// Write the logits of a sequence of tokens to a file
    ///
    /// For comparing with other implementations. The file is in safetensors format and holds one tensor, `logits`,
    /// F32, [tokens, vocabulary].
    Logits(LogitsArgs),
    /// Measure what the model is worth: perplexity, divergence from other logits, accuracy under teacher forcing
    Eval(Box<eval::EvalArgs>),
    /// Show what a checkpoint, a cache or a .tensorbin file holds, and whether it is whole
    ///
    /// Reads headers only. Fails if the checkpoint could not be used.
    Inspect(InspectArgs),
    /// Measure how fast a model runs on this machine, and how fast it could
    Bench(BenchArgs),
}

impl Command {
    /// Which model the command runs, and on what; none for a command that runs none.
    pub(crate) fn on_a_mesh(&self) -> Option<(&ModelArgs, DeviceArgs)> {
        match self {
            Self::Generate(args) => Some((&args.model, args.device)),
            Self::Chat(args) => Some((&args.model, args.device)),
            Self::Serve(args) => Some((&args.model, args.device)),
            Self::Logits(args) => Some((&args.model, args.device)),
            Self::Eval(args) => {
                let args = args.command.running();
                Some((&args.model, args.device))
            }
            Self::Bench(BenchArgs { command: BenchCommand::Run(args) }) => Some((&args.model, args.device())),
            Self::Bench(_) | Self::Convert(_) | Self::Config(_) | Self::Plan(_) | Self::Inspect(_) => None,
        }
    }
}

/// Which model, and where its cache lies.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// Directory of a Hugging Face checkpoint, or a GGUF file [default: the model inside this binary]
    #[arg(long, value_name = "DIR", env = "DEEPSEEK_V3_HF_MODEL", hide_env_values = true)]
    pub(crate) model: Option<PathBuf>,
    /// Directory for prepared weights [default: `dsv3` in the user's cache directory]
    #[arg(long, value_name = "DIR", env = "DEEPSEEK_V3_CACHE", hide_env_values = true)]
    pub(crate) cache: Option<PathBuf>,
    /// Storage formats of the weights [default: as in the checkpoint]
    ///
    /// A format (q8_0, q4_K, bf16, f32; fp8 where the checkpoint has it), or KIND=FORMAT with commas between, or a
    /// format and then exceptions: `q4_K,head=q4_K`. Kinds: experts, shared, dense, attention, kv_b (with attention,
    /// unless named), embedding, head, and * for all; `keep` leaves a kind as it is (what no kernel reads becomes f32
    /// or q8_0). A format alone keeps the embedding; q4_K alone takes q8_0 for kv_b and the head. Norms and gates are
    /// never quantised. What does not divide into blocks (q4_K: 256 columns, q8_0: 32) falls back from q4_K to q8_0
    /// and from there to what it is. Each choice has a cache of its own, made when it is first used.
    #[arg(long, value_name = "SPEC", default_value = "keep", hide_default_value = true, value_parser = parse_formats)]
    pub(crate) format: Formats,
}

/// `dsv3 generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The prompts; without any, stdin is one prompt
    #[arg(value_name = "PROMPT")]
    pub(crate) prompts: Vec<String>,
    /// JSON file of prompts: a list of strings, or of objects with the field `prompt`
    ///
    /// What comes of them is also written to a report, <FILE's stem>_output.json beside FILE unless --output-path
    /// says otherwise.
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    pub(crate) prompts_file: Option<PathBuf>,
    /// Take only the first N prompts of the file
    #[arg(long, value_name = "N", requires = "prompts_file", conflicts_with_all = ["prompts", "token_ids"])]
    pub(crate) num_prompts: Option<usize>,
    /// JSON file with a list of token ids, to be continued as they are
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "prompts_file", "raw", "system"])]
    pub(crate) token_ids: Option<PathBuf>,
    /// A system message in front of each prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Continue the prompts as plain text, without the chat template
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) running: RunningArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) configs: OperatorConfigArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How tokens are chosen, and when that ends.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Generate at most N tokens a prompt [default: to the end of the context]
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Divide the logits by T; 0 takes the likeliest token always [default: the checkpoint's]
    #[arg(long, value_name = "T", value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Choose from the likeliest tokens that hold the share P of the probability [default: the checkpoint's]
    #[arg(long, value_name = "P", value_parser = top_p, allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Choose from the K likeliest tokens; 0 is all [default: the checkpoint's]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Repeat a run: the same seed gives the same text [default: a random one, which is shown]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// End the text before STRING; may be given several times
    #[arg(long, value_name = "STRING", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
}

/// How the model runs.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct RunningArgs {
    /// Tokens that the prompt and its continuation may have together [default: as many as are needed, 4096 or more]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
}

/// Operator configs from stage 2, where they are not made on the spot.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct OperatorConfigArgs {
    /// Operator config for the prompts, as `dsv3 config --mode prefill` writes it [default: made for the model]
    ///
    /// It must be the model's own for this mesh; only these may differ: `rows_per_task`, by which work is divided between
    /// threads, `arithmetic`, which --arithmetic and --repeatable set everywhere, and of collectives `topology` and
    /// `payload` (f32, bf16 or bf8, blocks of 8 bits: less to send, and less exact).
    #[arg(long, value_name = "FILE")]
    pub(crate) prefill_config: Option<PathBuf>,
    /// Operator config for the tokens after them, as `dsv3 config --mode decode` writes it [default: made for the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) decode_config: Option<PathBuf>,
}

/// Where results go beside stdout.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Write one JSON object a prompt to stdout instead of text: token ids, text, finish reason, timings
    #[arg(long)]
    pub(crate) json: bool,
    /// Write all prompts, texts and statistics to a JSON file at the end
    #[arg(long, value_name = "FILE")]
    pub(crate) output_path: Option<PathBuf>,
    /// Add a line of JSON to a file as each prompt is done, so that a run that is cut off keeps what it has
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint_jsonl: Option<PathBuf>,
}

/// `dsv3 convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What the weights are for
    #[arg(long, value_enum, default_value_t = TargetArg::Cpu)]
    pub(crate) target: TargetArg,
    /// A GGUF file of a DeepSeek model (architecture deepseek2), the first of several; the same as --model FILE
    ///
    /// F32, BF16, q8_0 and q4_K tensors are used where they lie. Written are those in F16 (as f32), in q4_0, q4_1, q5_0,
    /// q5_1, q2_K, q3_K, q5_K, q6_K, iq4_nl and iq4_xs (as q8_0, 8.5 bits a weight, or as --format says), and
    /// `kv_b_proj` where the file has it in two: as bf16 if both are, as q8_0 if either is quantised, else as f32. Other
    /// types are refused by name.
    #[arg(long, value_name = "FILE")]
    pub(crate) from_gguf: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// Prepare the weights of these ranks only, as in 0,3-5: those that run on this host [default: all]
    ///
    /// Each rank has a cache of what it holds; ranks that hold the same share one.
    #[arg(long, value_name = "LIST", help_heading = "Mesh")]
    pub(crate) ranks: Option<Ranks>,
    /// Make the cache anew, whatever is there
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) galaxy: GalaxyArgs,
}

impl ConvertArgs {
    /// Whether files for TT-NN are asked for.
    pub(crate) fn is_for_galaxy(&self) -> bool {
        self.target == TargetArg::Galaxy
    }
}

/// `dsv3 config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// A config.json, or a directory with one [default: the model inside this binary]
    #[arg(long, value_name = "PATH", env = "DEEPSEEK_V3_HF_MODEL", hide_env_values = true)]
    pub(crate) model: Option<PathBuf>,
    /// Only the configs of this mode [default: both]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<ModeArg>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// What the configs are for
    #[arg(long, value_enum, default_value_t = TargetArg::Cpu)]
    pub(crate) target: TargetArg,
    /// Write to FILE instead of stdout; both modes go to two files, FILE with .prefill and .decode before its ending
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) galaxy: GalaxyConfigArgs,
}

/// The ways to run a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// Many tokens of one sequence
    Prefill,
    /// One token of each of several sequences
    Decode,
}

/// `dsv3 logits`.
#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// JSON file with a list of token ids
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: PathBuf,
    /// The safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
}

/// `dsv3 inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A checkpoint, a GGUF file, a config.json, the cache that `dsv3 convert` made, or a .tensorbin file of TT-NN
    /// [default: the model inside this binary]
    #[arg(value_name = "PATH", env = "DEEPSEEK_V3_HF_MODEL", hide_env_values = true)]
    pub(crate) path: Option<PathBuf>,
    /// Directory for prepared weights, where the embedded model is unpacked [default: as for `convert`]
    #[arg(long, value_name = "DIR", env = "DEEPSEEK_V3_CACHE", hide_env_values = true)]
    pub(crate) cache: Option<PathBuf>,
    /// Write JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|value: &f32| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "expected a number, 0 or more".to_owned())
}

fn top_p(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|&value: &f32| value > 0.0 && value <= 1.0);
    value.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for text in ["-1", "nan", "inf", "x", ""] {
            assert!(temperature(text).is_err(), "{text}");
            assert!(top_p(text).is_err(), "{text}");
        }
        assert!(top_p("0").is_err() && top_p("1.5").is_err());
        assert_eq!((temperature("0"), top_p("1")), (Ok(0.0), Ok(1.0)));
    }
}
