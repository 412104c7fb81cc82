//! `generation_config.json`: how the model's authors would have it sample, and the ids that end a text.

use std::path::Path;

use dsv3_runtime::TokenId;
use serde::Deserialize;

use crate::{Error, Penalties, SamplingParams, files};

/// A checkpoint's defaults for sampling; requests override them.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// All of these end a text. Empty if the file has none: fall back on the tokenizer's EOS.
    pub eos_token_ids: Vec<TokenId>,
    /// Whether to sample at all; if not, greedy whatever the temperature.
    pub do_sample: bool,
    /// The divisor of the logits.
    pub temperature: f32,
    /// How many of the highest logits are kept; 0 is all. A file without it keeps all, as in vLLM, SGLang and
    /// DeepSeek's own code; transformers alone would fill in 50.
    pub top_k: usize,
    /// The share of the probability that is kept.
    pub top_p: f32,
    /// The share of the likeliest token's probability that a token must have.
    pub min_p: f32,
    /// Divides the logits of tokens that are there already, also where nothing is drawn.
    pub repetition_penalty: f32,
}

impl Default for GenerationConfig {
    /// An empty file's: greedy, as in transformers.
    fn default() -> Self {
        Self {
            eos_token_ids: Vec::new(),
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
        }
    }
}

impl GenerationConfig {
    /// Reads the file in a checkpoint's directory; without one, the default.
    ///
    /// # Errors
    /// If the file cannot be read, or a field is not of its type or out of its range.
    pub fn from_dir(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("generation_config.json");
        files::read_optional(&path)?.map_or_else(|| Ok(Self::default()), |bytes| Self::parse(&path, &bytes))
    }

    /// Parses the file's content; `path` is for the errors.
    ///
    /// # Errors
    /// If it is not JSON, or a field is not of its type or out of its range.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let raw: Raw = files::parse_json(path, bytes)?;
        let default = Self::default();
        let config = Self {
            eos_token_ids: match raw.eos_token_id {
                None => Vec::new(),
                Some(EosIds::One(id)) => vec![id],
                Some(EosIds::Several(ids)) => ids,
            },
            do_sample: raw.do_sample.unwrap_or(default.do_sample),
            temperature: raw.temperature.unwrap_or(default.temperature),
            top_k: raw.top_k.unwrap_or(default.top_k),
            top_p: raw.top_p.unwrap_or(default.top_p),
            min_p: raw.min_p.unwrap_or(default.min_p),
            repetition_penalty: raw.repetition_penalty.unwrap_or(default.repetition_penalty),
        };
        match config.drawn(config.temperature, config.top_k, config.top_p, 0) {
            Ok(_) => Ok(config),
            Err(Error::Parameter { parameter, value, expected }) => Err(Error::Field {
                path: path.to_owned(),
                field: parameter.to_owned(),
                message: format!("expected a value {expected}, got {value}"),
            }),
            Err(other) => Err(other),
        }
    }

    /// The defaults as parameters of a request.
    ///
    /// # Errors
    /// [`Error::Parameter`] if a field was set to what is out of its range.
    pub fn sampling_params(&self, seed: u64) -> Result<SamplingParams, Error> {
        let temperature = if self.do_sample { self.temperature } else { 0.0 };
        self.with(temperature, self.top_k, self.top_p, seed)
    }

    /// The defaults but for these; temperature 0 is greedy.
    ///
    /// # Errors
    /// [`Error::Parameter`] if one of them, or a field, is out of its range.
    pub fn with(
        &self,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        seed: u64,
    ) -> Result<SamplingParams, Error> {
        if temperature == 0.0 {
            return SamplingParams::GREEDY.with_penalties(self.penalties());
        }
        self.drawn(temperature, top_k, top_p, seed)
    }

    fn drawn(&self, temperature: f32, top_k: usize, top_p: f32, seed: u64) -> Result<SamplingParams, Error> {
        let params = SamplingParams::new(temperature, top_k, top_p, seed)?;
        params.with_min_p(self.min_p)?.with_penalties(self.penalties())
    }

    fn penalties(&self) -> Penalties {
        Penalties { repetition: self.repetition_penalty, ..Penalties::NONE }
    }
}

#[derive(Deserialize)]
struct Raw {
    eos_token_id: Option<EosIds>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected an id or a list of ids")]
enum EosIds {
    One(TokenId),
    Several(Vec<TokenId>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<GenerationConfig, Error> {
        GenerationConfig::parse(Path::new("generation_config.json"), json.as_bytes())
    }

    #[test]
    fn deepseeks_file_is_read() {
        let config = parse(
            r#"{"_from_model_config": true, "bos_token_id": 0, "eos_token_id": 1, "do_sample": true,
                "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.39.3"}"#,
        )
        .unwrap();
        assert_eq!(config.eos_token_ids, [TokenId(1)]);
        assert_eq!(config.sampling_params(3).unwrap(), SamplingParams::new(0.6, 0, 0.95, 3).unwrap());
    }

    #[test]
    fn a_penalty_holds_where_nothing_is_drawn_and_min_p_where_something_is() {
        let config = parse(r#"{"repetition_penalty": 1.2, "min_p": 0.1}"#).unwrap();
        let penalties = Penalties { repetition: 1.2, ..Penalties::NONE };
        let greedy = config.sampling_params(3).unwrap();
        assert_eq!((greedy.is_greedy(), greedy.penalties()), (true, penalties));
        let drawn = config.with(0.5, 0, 1.0, 3).unwrap();
        assert_eq!((drawn.min_p(), drawn.penalties()), (0.1, penalties));
    }

    #[test]
    fn several_ids_may_end_a_text() {
        let config = parse(r#"{"eos_token_id": [163585, 163586]}"#).unwrap();
        assert_eq!(config.eos_token_ids, [TokenId(163_585), TokenId(163_586)]);
        assert!(parse(r#"{"eos_token_id": null}"#).unwrap().eos_token_ids.is_empty());
    }

    #[test]
    fn without_do_sample_it_is_greedy() {
        assert!(parse(r#"{"temperature": 0.6}"#).unwrap().sampling_params(1).unwrap().is_greedy());
        assert!(parse("{}").unwrap().sampling_params(1).unwrap().is_greedy());
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(GenerationConfig::from_dir(directory.path()).unwrap(), GenerationConfig::default());
    }

    #[test]
    fn errors_name_file_and_field() {
        for (json, start) in [
            (
                r#"{"eos_token_id": -1}"#,
                "generation_config.json: eos_token_id: expected an id or a list of ids",
            ),
            (r#"{"top_p": "x"}"#, "generation_config.json: top_p: invalid type: string"),
            (
                r#"{"top_p": 0}"#,
                "generation_config.json: top_p: expected a value above 0 and at most 1, got 0",
            ),
            (
                r#"{"temperature": -2}"#,
                "generation_config.json: temperature: expected a value finite and not negative",
            ),
            (
                r#"{"repetition_penalty": 0}"#,
                "generation_config.json: repetition_penalty: expected a value at least 0.01 and at most 100, got 0",
            ),
            ("[", "generation_config.json: "),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
