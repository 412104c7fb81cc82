//! The tokenizer and the chat template of a GGUF file, as the files that a checkpoint of Hugging Face has beside it.

use dsv3_runtime::GgufValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Kinds of tokens in `tokenizer.ggml.token_type`, as llama.cpp numbers them.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
/// DeepSeek-V3's way to cut text into words, as its own tokenizer.json has it.
const WORDS: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| \
     ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

/// What the metadata of a GGUF file stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.json`; none for vocabularies that are not byte-level BPE cut as DeepSeek-V3 does.
    pub tokenizer_json: Option<Value>,
    /// `tokenizer_config.json`: the special tokens by name, and the chat template.
    pub tokenizer_config_json: Value,
}

impl GgufTokenizer {
    /// Reads the metadata of a GGUF file.
    pub fn new(metadata: &BTreeMap<String, GgufValue>) -> Self {
        let get = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}"));
        let tokens = get("tokens").and_then(GgufValue::as_list).unwrap_or_default();
        let token = |key: &str| {
            let id = get(&format!("{key}_token_id"))?.as_u64()?;
            tokens.get(usize::try_from(id).ok()?)?.as_str()
        };
        let config = json!({
            "bos_token": token("bos"),
            "eos_token": token("eos"),
            "add_bos_token": get("add_bos_token") == Some(&GgufValue::Bool(true)),
            "chat_template": metadata.get("tokenizer.chat_template").and_then(GgufValue::as_str),
        });
        let text = |key: &str| get(key).and_then(GgufValue::as_str);
        let is_known = text("model") == Some("gpt2") && text("pre") == Some("deepseek-v3");
        let list = |key: &str| get(key).and_then(GgufValue::as_list).unwrap_or_default();
        let tokenizer = is_known.then(|| tokenizer_json(tokens, list("token_type"), list("merges")));
        Self { tokenizer_json: tokenizer, tokenizer_config_json: config }
    }
}

fn tokenizer_json(tokens: &[GgufValue], kinds: &[GgufValue], merges: &[GgufValue]) -> Value {
    let (mut vocabulary, mut added) = (Map::new(), Vec::new());
    for (id, token) in tokens.iter().enumerate() {
        let Some(content) = token.as_str() else { continue };
        let kind = match kinds.get(id) {
            Some(&GgufValue::Integer(kind)) => kind,
            _ => 0,
        };
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            }));
        }
        vocabulary.insert(content.to_owned(), json!(id));
    }
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let words: Vec<Value> = WORDS.map(split).into_iter().chain([bytes.clone()]).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": words },
        "post_processor": bytes,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
            "merges": merges.iter().filter_map(GgufValue::as_str).collect::<Vec<_>>(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tokenizer, TokenizerConfig};
    use std::path::Path;

    fn texts(texts: &[&str]) -> GgufValue {
        GgufValue::List(texts.iter().map(|&text| GgufValue::Text(text.to_owned())).collect())
    }

    fn metadata(pre: &str) -> BTreeMap<String, GgufValue> {
        let kinds = [3, 1, 1, 1, 1, 4].map(GgufValue::Integer).to_vec();
        let pairs = [
            ("tokenizer.ggml.model", GgufValue::Text("gpt2".to_owned())),
            ("tokenizer.ggml.pre", GgufValue::Text(pre.to_owned())),
            ("tokenizer.ggml.tokens", texts(&["<s>", "a", "b", "Ġ", "ab", "<user>"])),
            ("tokenizer.ggml.token_type", GgufValue::List(kinds)),
            ("tokenizer.ggml.merges", texts(&["a b"])),
            ("tokenizer.ggml.bos_token_id", GgufValue::Integer(0)),
            ("tokenizer.ggml.eos_token_id", GgufValue::Integer(7)),
            ("tokenizer.chat_template", GgufValue::Text("{{ messages }}".to_owned())),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).into()
    }

    #[test]
    fn a_vocabulary_becomes_a_tokenizer() {
        let files = GgufTokenizer::new(&metadata("deepseek-v3"));
        let dir = tempfile::tempdir().unwrap();
        let write =
            |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        write("tokenizer.json", &files.tokenizer_json.unwrap());
        write("tokenizer_config.json", &files.tokenizer_config_json);
        let config = TokenizerConfig::from_dir(dir.path()).unwrap();
        assert_eq!((config.bos_token.as_deref(), config.add_bos_token), (Some("<s>"), false));
        Tokenizer::from_dir(dir.path(), 6).unwrap();
    }

    #[test]
    fn another_vocabulary_is_none() {
        assert_eq!(GgufTokenizer::new(&metadata("qwen2")).tokenizer_json, None);
        let empty = GgufTokenizer::new(&BTreeMap::new());
        assert_eq!(empty.tokenizer_json, None);
        TokenizerConfig::parse(Path::new("x"), empty.tokenizer_config_json.to_string().as_bytes()).unwrap();
    }
}
