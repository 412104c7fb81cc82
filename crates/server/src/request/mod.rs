//! What clients send: OpenAI's fields, and those of vLLM that have become usual beside them.
//!
//! A field is taken, or is of no consequence and ignored, or is refused by name. So is one that nobody knows: a misspelt
//! `temprature` would change an answer in silence.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod form;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod tokenize;
pub(crate) mod tools;

use std::collections::BTreeMap;

use dsv3_engine::{GenerationConfig, ModelLimits, Penalties, Request, SamplingParams, random_seed};
use dsv3_runtime::TokenId;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::ApiError;

/// Stop strings that one request may have: each costs a comparison for every byte of the answer.
const MOST_STOPS: usize = 16;
/// Answers that one request may ask for.
const MOST_CHOICES: usize = 128;

/// One value, or a list of them.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// How a stream is to be.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk says how many tokens there were.
    pub(crate) include_usage: Option<bool>,
    /// Whether every chunk does (as in vLLM).
    pub(crate) continuous_usage_stats: Option<bool>,
    /// OpenAI's padding against eavesdroppers, which this server does not send.
    #[allow(dead_code, reason = "it is read to be ignored")]
    include_obfuscation: Option<bool>,
}

/// What requests of all kinds have in common: how tokens are chosen, and when that ends. What is absent is as the model's
/// `generation_config.json` says.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Common {
    /// The model; the one that is served, if absent.
    pub(crate) model: Option<String>,
    /// Whether the answer comes as server-sent events.
    pub(crate) stream: Option<bool>,
    /// How the events are to be.
    pub(crate) stream_options: Option<StreamOptions>,
    /// The divisor of the logits; 0 takes the likeliest token always.
    #[schema(minimum = 0)]
    temperature: Option<f32>,
    /// The share of the probability that is kept.
    #[schema(maximum = 1)]
    top_p: Option<f32>,
    /// How many of the likeliest tokens are kept; 0 and -1 are all.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// The share of the likeliest token's probability that a token must have.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// Taken off the logits of tokens that the answer holds.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    /// Taken off the logits of tokens for each time that the answer holds them.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// Divides the logits of tokens that prompt or answer hold; 1 changes nothing.
    repetition_penalty: Option<f32>,
    /// Added to the logits of token ids.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed gives the same answer to the same request, whatever else runs.
    seed: Option<i64>,
    /// How many answers there are to be.
    #[schema(minimum = 1, maximum = 128)]
    n: Option<usize>,
    /// Strings that end the answer and are no part of it; 16 at most.
    stop: Option<OneOrMany>,
    /// Token ids that end the answer.
    stop_token_ids: Option<Vec<u32>>,
    /// Whether the string that ended the answer is part of it.
    include_stop_str_in_output: Option<bool>,
    /// Whether the model cannot end the answer.
    ignore_eos: Option<bool>,
    /// Whether special tokens are left out of the text, as they are without this field.
    skip_special_tokens: Option<bool>,
    /// What is cached of prompts is shared only between requests with the same salt.
    cache_salt: Option<String>,
    /// The form of the answer.
    response_format: Option<form::ResponseFormat>,
    /// The form of the answer, as in vLLM.
    structured_outputs: Option<form::StructuredOutputs>,
    /// The same as `structured_outputs.json`.
    guided_json: Option<serde_json::Value>,
    /// The same as `structured_outputs.regex`.
    guided_regex: Option<String>,
    /// The same as `structured_outputs.choice`.
    guided_choice: Option<Vec<String>>,
    /// The same as `structured_outputs.grammar`.
    guided_grammar: Option<String>,
}

/// What a request is made with, beside its own fields.
pub(crate) struct Defaults<'a> {
    pub(crate) config: &'a GenerationConfig,
    pub(crate) end_tokens: &'a [TokenId],
    pub(crate) limits: ModelLimits,
}

impl Common {
    pub(crate) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// How the stream is to be.
    ///
    /// # Errors
    /// Options without a stream.
    pub(crate) fn stream_options(&self) -> Result<StreamOptions, ApiError> {
        match self.stream_options {
            Some(_) if !self.streams() => {
                Err(ApiError::field("stream_options", "stream_options is given, but stream is not true"))
            }
            options => Ok(options.unwrap_or_default()),
        }
    }

    pub(crate) fn choices(&self) -> usize {
        self.n.unwrap_or(1)
    }

    /// The form of the answer, and the field that says it.
    ///
    /// # Errors
    /// Several forms.
    pub(crate) fn form(&self) -> Result<Option<(form::Form, &'static str)>, ApiError> {
        let mut forms = Vec::new();
        if let Some(form) =
            self.response_format.as_ref().map(form::ResponseFormat::form).transpose()?.flatten()
        {
            forms.push((form, "response_format"));
        }
        if let Some(outputs) = &self.structured_outputs {
            forms.push((outputs.form()?, "structured_outputs"));
        }
        let guided = form::StructuredOutputs {
            json: self.guided_json.clone(),
            regex: self.guided_regex.clone(),
            choice: self.guided_choice.clone(),
            grammar: self.guided_grammar.clone(),
            json_object: None,
        };
        forms.extend(guided.forms("guided_")?);
        match forms.len() {
            0 | 1 => Ok(forms.pop()),
            _ => {
                let message = format!("{} and {} both give the answer a form", forms[0].1, forms[1].1);
                Err(ApiError::field(forms[1].1, message))
            }
        }
    }

    /// As the engine is asked, without a form.
    ///
    /// # Errors
    /// Values out of their range.
    pub(crate) fn request(
        &self,
        defaults: &Defaults<'_>,
        max_tokens: Option<usize>,
    ) -> Result<Request, ApiError> {
        let choices = self.choices();
        if !(1..=MOST_CHOICES).contains(&choices) {
            let message = format!("n is {choices}, but must be at least 1 and at most {MOST_CHOICES}");
            return Err(ApiError::field("n", message));
        }
        let request = Request {
            logit_bias: self.logit_bias()?,
            max_new_tokens: max_tokens.unwrap_or(usize::MAX),
            eos_token_ids: self.end_tokens(defaults)?,
            stop: self.stops()?,
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            skip_special: self.skip_special_tokens.unwrap_or(true),
            choices,
            cache_salt: self.cache_salt.clone().unwrap_or_default(),
            ..Request::of(self.sampling(defaults.config)?)
        };
        request.check(&defaults.limits)?;
        Ok(request)
    }

    fn sampling(&self, config: &GenerationConfig) -> Result<SamplingParams, ApiError> {
        let top_k = match self.top_k {
            None => config.top_k,
            Some(-1) => 0,
            Some(top_k) => usize::try_from(top_k).map_err(|_| {
                ApiError::field("top_k", format!("top_k is {top_k}, but must be at least 0, or -1"))
            })?,
        };
        let default_temperature = if config.do_sample { config.temperature } else { 0.0 };
        let temperature = self.temperature.unwrap_or(default_temperature);
        // OpenAI's clients may send 0, which means the same as the smallest share.
        let top_p = self.top_p.unwrap_or(config.top_p);
        let top_p = if top_p == 0.0 { f32::MIN_POSITIVE } else { top_p };
        let seed = self.seed.map_or_else(random_seed, i64::cast_unsigned);
        let penalties = Penalties {
            presence: self.presence_penalty.unwrap_or(0.0),
            frequency: self.frequency_penalty.unwrap_or(0.0),
            repetition: self.repetition_penalty.unwrap_or(config.repetition_penalty),
        };
        let drawn = SamplingParams::new(temperature, top_k, top_p, seed)?
            .with_min_p(self.min_p.unwrap_or(config.min_p))?
            .with_penalties(penalties)?;
        Ok(if temperature == 0.0 { SamplingParams::GREEDY.with_penalties(penalties)? } else { drawn })
    }

    fn logit_bias(&self) -> Result<Vec<(TokenId, f32)>, ApiError> {
        let bias = self.logit_bias.iter().flatten();
        bias.map(|(id, &bias)| {
            let field = || format!("logit_bias.{id}");
            let id = id.parse().map_err(|_| {
                ApiError::field(field(), format!("logit_bias: expected token ids as names, got {id:?}"))
            })?;
            Ok((TokenId(id), bias))
        })
        .collect()
    }

    fn end_tokens(&self, defaults: &Defaults<'_>) -> Result<Vec<TokenId>, ApiError> {
        let own = if self.ignore_eos.unwrap_or(false) { &[][..] } else { defaults.end_tokens };
        let mut ids = own.to_vec();
        for &id in self.stop_token_ids.iter().flatten() {
            let vocab_size = defaults.limits.vocab_size;
            if id as usize >= vocab_size {
                let message = format!("stop_token_ids: {id} is none of the vocabulary's {vocab_size} ids");
                return Err(ApiError::field("stop_token_ids", message));
            }
            if !ids.contains(&TokenId(id)) {
                ids.push(TokenId(id));
            }
        }
        Ok(ids)
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = self.stop.clone().map_or_else(Vec::new, OneOrMany::into_vec);
        if stops.len() > MOST_STOPS {
            let message = format!("stop has {} strings, and {MOST_STOPS} are the most", stops.len());
            return Err(ApiError::field("stop", message));
        }
        Ok(stops)
    }
}

/// How many alternatives there may be to a token.
pub(crate) const MOST_TOP_LOGPROBS: usize = dsv3_engine::MOST_TOP_LOGPROBS;

/// Refuses more alternatives than there can be.
pub(crate) fn check_top_logprobs(field: &'static str, count: usize) -> Result<(), ApiError> {
    if count > MOST_TOP_LOGPROBS {
        let message = format!("{field} is {count}, but must be at most {MOST_TOP_LOGPROBS}");
        return Err(ApiError::field(field, message));
    }
    Ok(())
}

/// Whether a body is a request of one of the kinds that there are, as far as that can be said without a model. For tests
/// that try any bytes.
///
/// # Errors
/// As a client would get it.
pub fn check_body(bytes: &[u8]) -> Result<(), ApiError> {
    let config = GenerationConfig::default();
    let limits = ModelLimits { vocab_size: 1000, max_context: 1000, page_size: 64, page_count: 16, rows: 1 };
    let defaults = Defaults { config: &config, end_tokens: &[TokenId(1)], limits };
    let chat = chat::ChatRequest::parse(bytes).and_then(|request| {
        request.common.stream_options()?;
        request.common.form()?;
        request.logprobs()?;
        tools::plan(&request.tools()?, request.chat.tool_choice.as_ref(), request.chat.parallel_tool_calls)?;
        request.common.request(&defaults, request.max_tokens())
    });
    let completion = completion::CompletionRequest::parse(bytes).and_then(|request| {
        request.common.stream_options()?;
        request.common.form()?;
        request.logprobs()?;
        request.prompts()?;
        request.common.request(&defaults, Some(request.max_tokens()))
    });
    chat.or(completion).map(drop)
}
