//! `tokenizer_config.json`: the special tokens by name, whether plain text gets a BOS, and the chat templates.

use std::path::Path;

use serde::Deserialize;

use crate::{Error, files};

/// What the engine uses of a checkpoint's `tokenizer_config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// The text of the begin-of-sequence token.
    pub bos_token: Option<String>,
    /// The text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// The text of the padding token.
    pub pad_token: Option<String>,
    /// Whether plain text gets a BOS in front.
    pub add_bos_token: bool,
    /// The chat templates that stand in this file.
    pub chat_templates: Vec<NamedTemplate>,
}

/// One of a checkpoint's chat templates; one that stands alone is called `default`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NamedTemplate {
    /// Its name: `default`, `tool_use`, `rag`.
    pub name: String,
    /// Its Jinja source.
    pub template: String,
}

impl TokenizerConfig {
    /// Reads the file in a checkpoint's directory; without one, all is empty.
    ///
    /// # Errors
    /// If the file cannot be read, or a field is not of its type.
    pub fn from_dir(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("tokenizer_config.json");
        files::read_optional(&path)?.map_or_else(|| Ok(Self::default()), |bytes| Self::parse(&path, &bytes))
    }

    /// Parses the file's content; `path` is for the errors.
    ///
    /// # Errors
    /// If it is not JSON, or a field is not of its type.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let raw: Raw = files::parse_json(path, bytes)?;
        // transformers' Llama tokenizers, DeepSeek's class among them, add a BOS unless told not to.
        let is_llama = raw.tokenizer_class.is_some_and(|class| class.starts_with("LlamaTokenizer"));
        Ok(Self {
            bos_token: raw.bos_token.map(Special::into_text),
            eos_token: raw.eos_token.map(Special::into_text),
            pad_token: raw.pad_token.map(Special::into_text),
            add_bos_token: raw.add_bos_token.unwrap_or(is_llama),
            chat_templates: match raw.chat_template {
                None => Vec::new(),
                Some(Templates::One(template)) => {
                    vec![NamedTemplate { name: "default".to_owned(), template }]
                }
                Some(Templates::Several(templates)) => templates,
            },
        })
    }
}

#[derive(Deserialize)]
struct Raw {
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    pad_token: Option<Special>,
    add_bos_token: Option<bool>,
    tokenizer_class: Option<String>,
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or an object with the field `content`")]
enum Special {
    Text(String),
    Added { content: String },
}

impl Special {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of {name, template}")]
enum Templates {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<TokenizerConfig, Error> {
        TokenizerConfig::parse(Path::new("tokenizer_config.json"), json.as_bytes())
    }

    #[test]
    fn special_tokens_may_be_strings_or_objects() {
        let config = parse(
            r#"{"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": false}, "eos_token": "</s>",
                "pad_token": null, "model_max_length": 1000000000000000019884624838656}"#,
        )
        .unwrap();
        assert_eq!(config.bos_token.as_deref(), Some("<s>"));
        assert_eq!(config.eos_token.as_deref(), Some("</s>"));
        assert_eq!((config.pad_token, config.add_bos_token), (None, false));
    }

    #[test]
    fn a_llama_class_adds_bos_unless_told_not_to() {
        assert!(parse(r#"{"tokenizer_class": "LlamaTokenizerFast"}"#).unwrap().add_bos_token);
        assert!(
            !parse(r#"{"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}"#).unwrap().add_bos_token
        );
        assert!(!parse(r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#).unwrap().add_bos_token);
    }

    #[test]
    fn templates_may_be_one_or_several() {
        assert_eq!(parse(r#"{"chat_template": "x"}"#).unwrap().chat_templates[0].name, "default");
        let several =
            parse(r#"{"chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]}"#)
                .unwrap();
        assert_eq!(several.chat_templates[1].template, "y");
    }

    #[test]
    fn a_field_of_the_wrong_type_is_named() {
        let error = parse(r#"{"bos_token": 7}"#).unwrap_err().to_string();
        assert_eq!(
            error,
            "tokenizer_config.json: bos_token: expected a string or an object with the field `content` at line 1 column 16"
        );
        let error = parse(r#"{"add_bos_token": "yes"}"#).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer_config.json: add_bos_token: invalid type"), "{error}");
    }

    #[test]
    fn an_absent_file_is_an_empty_config() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(TokenizerConfig::from_dir(directory.path()).unwrap(), TokenizerConfig::default());
    }
}
