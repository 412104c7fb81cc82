//! What was typed and what the checkpoint says, resolved into what is run.

use crate::args::{GenerateArgs, SamplingArgs};
use anyhow::{Result, bail};
use dsv3_deepseek::HfConfig;
use dsv3_engine::{GenerationConfig, Request, SamplingParams, Tokenizer, default_output_path, random_seed};
use dsv3_runtime::{TokenId, ops::CacheFormat};
use serde_json::{Value, json};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The context where neither an option nor the prompts ask for more, and the room that an answer of no given length
/// gets.
const DEFAULT_CONTEXT: usize = 4096;

/// What is run. Everything has been checked.
pub(super) struct Settings {
    /// How tokens are chosen, and when that ends.
    pub(super) request: Request,
    /// Tokens that one sequence may have.
    pub(super) context: usize,
    /// How the latents are cached.
    pub(super) cache: CacheFormat,
    /// Whether stdout gets JSON.
    pub(super) json: bool,
    /// The file for the report.
    pub(super) report: Option<PathBuf>,
    /// The file for a line a prompt.
    pub(super) record_log: Option<PathBuf>,
}

impl Settings {
    /// The arguments, with the checkpoint's defaults; `longest` is the length of the longest prompt.
    ///
    /// # Errors
    /// Values that the model cannot serve.
    pub(super) fn resolve(
        args: GenerateArgs,
        defaults: &GenerationConfig,
        hf: &HfConfig,
        tokenizer: &Tokenizer,
        longest: usize,
    ) -> Result<Self> {
        let max_new_tokens = args.sampling.max_new_tokens;
        let context = context(args.running.context, hf.max_position_embeddings, longest, max_new_tokens)?;
        let sampling = sampling(&args.sampling, defaults)?;
        let request = Request {
            // Beyond every context: the context's end it is.
            max_new_tokens: max_new_tokens.unwrap_or(usize::MAX),
            eos_token_ids: end_tokens(defaults, hf, tokenizer),
            stop: args.sampling.stop,
            ..Request::of(sampling)
        };
        Ok(Self {
            request,
            context,
            cache: args.running.precision.or_fast().cache,
            json: args.output.json,
            report: args.output.output_path.or(args.prompts_file.as_deref().map(default_output_path)),
            record_log: args.output.checkpoint_jsonl,
        })
    }

    /// For the report: the model and everything that decides what it generates.
    pub(super) fn describe(&self, model: &Path) -> Value {
        let sampling = self.request.sampling;
        json!({
            "model": model,
            "temperature": sampling.temperature(),
            "top_p": sampling.top_p(),
            "top_k": sampling.top_k(),
            "min_p": sampling.min_p(),
            "repetition_penalty": sampling.penalties().repetition,
            "seed": (!sampling.is_greedy()).then(|| sampling.seed()),
            "max_new_tokens": (self.request.max_new_tokens < usize::MAX).then_some(self.request.max_new_tokens),
            "max_seq_len": self.context,
            "kv_cache": self.cache,
            "stop": self.request.stop,
            "eos_token_ids": self.request.eos_token_ids,
        })
    }
}

/// The settings in one line, with what it takes to repeat the run.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sampling = self.request.sampling;
        if sampling.is_greedy() {
            write!(f, "greedy")?;
        } else {
            write!(f, "temperature {}, top-p {}", sampling.temperature(), sampling.top_p())?;
            if sampling.top_k() > 0 {
                write!(f, ", top-k {}", sampling.top_k())?;
            }
            if sampling.min_p() > 0.0 {
                write!(f, ", min-p {}", sampling.min_p())?;
            }
            write!(f, ", seed {}", sampling.seed())?;
        }
        let penalty = sampling.penalties().repetition;
        if penalty != 1.0 {
            write!(f, ", repetition penalty {penalty}")?;
        }
        write!(f, "; context {}, cached in {}", self.context, self.cache)
    }
}

/// Each value from the options, or else from generation_config.json, whose `do_sample` decides whether its
/// temperature counts.
pub(in super::super) fn sampling(args: &SamplingArgs, defaults: &GenerationConfig) -> Result<SamplingParams> {
    let default_temperature = if defaults.do_sample { defaults.temperature } else { 0.0 };
    let temperature = args.temperature.unwrap_or(default_temperature);
    let (top_k, top_p) = (args.top_k.unwrap_or(defaults.top_k), args.top_p.unwrap_or(defaults.top_p));
    Ok(defaults.with(temperature, top_k, top_p, args.seed.unwrap_or_else(random_seed))?)
}

/// The ids that end a text: those of generation_config.json, else those of config.json, else the tokenizer's.
pub(in super::super) fn end_tokens(
    defaults: &GenerationConfig,
    hf: &HfConfig,
    tokenizer: &Tokenizer,
) -> Vec<TokenId> {
    if !defaults.eos_token_ids.is_empty() {
        defaults.eos_token_ids.clone()
    } else if !hf.eos_token_ids.is_empty() {
        hf.eos_token_ids.clone()
    } else {
        tokenizer.eos().into_iter().collect()
    }
}

/// The context to make state for: as asked, or as much as the prompts need and an answer is likely to.
pub(in super::super) fn context(
    asked: Option<usize>,
    model_limit: usize,
    longest: usize,
    max_new_tokens: Option<usize>,
) -> Result<usize> {
    match asked {
        Some(0) => bail!("--context is 0, but must be at least 1"),
        Some(asked) if asked > model_limit => {
            bail!("--context is {asked}, but the model's max_position_embeddings is {model_limit}")
        }
        Some(asked) => Ok(asked),
        None => {
            let needed = longest.saturating_add(max_new_tokens.unwrap_or(DEFAULT_CONTEXT));
            Ok(needed.max(DEFAULT_CONTEXT).min(model_limit))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_ARGS: SamplingArgs = SamplingArgs {
        max_new_tokens: None,
        temperature: None,
        top_p: None,
        top_k: None,
        seed: None,
        stop: Vec::new(),
    };

    #[test]
    fn the_checkpoint_decides_what_no_option_does() {
        let defaults = GenerationConfig {
            eos_token_ids: Vec::new(),
            do_sample: true,
            temperature: 0.6,
            top_p: 0.95,
            ..GenerationConfig::default()
        };
        let with = |args: &SamplingArgs, defaults| sampling(args, defaults).unwrap();
        let seed_7 = SamplingArgs { seed: Some(7), ..NO_ARGS };
        assert_eq!(with(&seed_7, &defaults), SamplingParams::new(0.6, 0, 0.95, 7).unwrap());
        let hot = SamplingArgs { temperature: Some(2.0), top_k: Some(3), ..seed_7 };
        assert_eq!(with(&hot, &defaults), SamplingParams::new(2.0, 3, 0.95, 7).unwrap());
        let greedy = SamplingArgs { temperature: Some(0.0), ..NO_ARGS };
        assert!(with(&greedy, &defaults).is_greedy());

        let greedy_defaults = GenerationConfig { do_sample: false, ..defaults.clone() };
        assert!(with(&NO_ARGS, &greedy_defaults).is_greedy());
        assert_eq!(with(&hot, &greedy_defaults).temperature(), 2.0);
    }

    #[test]
    fn the_context_holds_the_prompts_and_an_answer_within_the_model_limit() {
        assert_eq!(context(None, 163_840, 12, None).unwrap(), 4096 + 12);
        assert_eq!(context(None, 163_840, 12, Some(64)).unwrap(), 4096);
        assert_eq!(context(None, 163_840, 5000, Some(64)).unwrap(), 5064);
        assert_eq!(context(None, 163_840, 5000, Some(usize::MAX)).unwrap(), 163_840);
        assert_eq!(context(None, 256, 12, None).unwrap(), 256);
        assert_eq!(context(Some(100), 256, 12, None).unwrap(), 100);
        assert!(context(Some(0), 256, 12, None).is_err());
        let error = context(Some(257), 256, 12, None).unwrap_err().to_string();
        assert_eq!(error, "--context is 257, but the model's max_position_embeddings is 256");
    }
}
