//! Files of prompts, as the original's demo reads them and vLLM's benchmark files have them.

use std::path::Path;

use serde_json::Value;

use crate::{Error, files};

/// Reads the first `limit` prompts of a JSON file: a list, or an object whose `prompts` is the list, of strings or of
/// objects whose `prompt` is the string. The two forms may be mixed; other fields are passed over.
///
/// # Errors
/// If the file cannot be read, has another layout, or holds no prompt; the error names the prompt at fault. Prompts
/// beyond the limit are not looked at.
pub fn read_prompts(path: &Path, limit: Option<usize>) -> Result<Vec<String>, Error> {
    parse_prompts(path, &files::read(path)?, limit)
}

fn parse_prompts(path: &Path, bytes: &[u8], limit: Option<usize>) -> Result<Vec<String>, Error> {
    let root: Value = files::parse_json(path, bytes)?;
    let (prefix, list) = match &root {
        Value::Array(list) => ("", list),
        Value::Object(fields) => match fields.get("prompts") {
            Some(Value::Array(list)) => ("prompts", list),
            Some(other) => return Err(field(path, "prompts".to_owned(), "a list", other)),
            None => {
                let message = "expected a list of prompts, or an object with the field `prompts`".to_owned();
                return Err(Error::Format { path: path.to_owned(), message });
            }
        },
        other => return Err(field(path, "the file".to_owned(), "a list of prompts", other)),
    };
    let prompts = list
        .iter()
        .take(limit.unwrap_or(usize::MAX))
        .enumerate()
        .map(|(index, item)| match item {
            Value::String(text) => Ok(text.clone()),
            Value::Object(fields) => match fields.get("prompt") {
                Some(Value::String(text)) => Ok(text.clone()),
                other => {
                    let name = format!("{prefix}[{index}].prompt");
                    Err(field(path, name, "a string", other.unwrap_or(&Value::Null)))
                }
            },
            other => Err(field(path, format!("{prefix}[{index}]"), "a string or an object", other)),
        })
        .collect::<Result<Vec<String>, Error>>()?;
    if prompts.is_empty() {
        let message = match limit {
            Some(0) => "a limit of 0 prompts leaves none",
            _ => "the list of prompts is empty",
        };
        return Err(Error::Format { path: path.to_owned(), message: message.to_owned() });
    }
    Ok(prompts)
}

fn field(path: &Path, field: String, expected: &str, got: &Value) -> Error {
    let kind = match got {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Error::Field { path: path.to_owned(), field, message: format!("expected {expected}, got {kind}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, limit: Option<usize>) -> Result<Vec<String>, Error> {
        parse_prompts(Path::new("p.json"), json.as_bytes(), limit)
    }

    #[test]
    fn all_layouts_are_read() {
        for json in [
            r#"["a", "b"]"#,
            r#"[{"prompt": "a", "answer": 7}, {"prompt": "b"}]"#,
            r#"{"prompts": [{"prompt": "a"}, {"prompt": "b"}], "task": "aime"}"#,
            r#"{"prompts": ["a", {"prompt": "b"}]}"#,
        ] {
            assert_eq!(parse(json, None).unwrap(), ["a", "b"], "{json}");
            assert_eq!(parse(json, Some(1)).unwrap(), ["a"], "{json}");
            assert_eq!(parse(json, Some(9)).unwrap(), ["a", "b"], "{json}");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_prompt() {
        for (json, expected) in [
            (r#"["a", 7]"#, "p.json: [1]: expected a string or an object, got a number"),
            (r#"{"prompts": [{"text": "a"}]}"#, "p.json: prompts[0].prompt: expected a string, got nothing"),
            (r#"[{"prompt": ["a"]}]"#, "p.json: [0].prompt: expected a string, got a list"),
            (r#"{"prompts": "a"}"#, "p.json: prompts: expected a list, got a string"),
            ("7", "p.json: the file: expected a list of prompts, got a number"),
            ("{}", "p.json: expected a list of prompts, or an object with the field `prompts`"),
            ("[]", "p.json: the list of prompts is empty"),
        ] {
            assert_eq!(parse(json, None).unwrap_err().to_string(), expected);
        }
        assert_eq!(
            parse(r#"["a"]"#, Some(0)).unwrap_err().to_string(),
            "p.json: a limit of 0 prompts leaves none"
        );
        assert!(parse("[", None).unwrap_err().to_string().starts_with("p.json: EOF while parsing"));
    }

    #[test]
    fn prompts_beyond_the_limit_are_not_looked_at() {
        assert_eq!(parse(r#"["a", 7]"#, Some(1)).unwrap(), ["a"]);
    }

    #[test]
    fn an_absent_file_is_named() {
        let error = read_prompts(Path::new("/no/such/prompts.json"), None).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/prompts.json: "), "{error}");
    }
}
