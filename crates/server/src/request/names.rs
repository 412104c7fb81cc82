//! Which fields there are: taken, ignored, refused.

use serde_json::{Map, Value, json};

use crate::ApiError;

/// Those of [`Common`](super::Common).
pub(crate) const COMMON: &[&str] = &[
    "model",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "n",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "cache_salt",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
];

/// What changes no answer: who asks, what OpenAI keeps of it, how it is routed and billed, and hints for speed.
const IGNORED: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "request_id",
    "priority",
    "spaces_between_special_tokens",
    "cache_prompt",
    "timings_per_token",
];

/// The value of a field that asks for nothing.
type Neutral = fn() -> Value;

/// What other servers know and this one does not do, each with the value that asks for nothing.
const REFUSED: &[(&str, Neutral)] = &[
    ("audio", || Value::Null),
    ("modalities", || json!(["text"])),
    ("function_call", || Value::Null),
    ("functions", || json!([])),
    ("web_search_options", || Value::Null),
    ("reasoning_effort", || Value::Null),
    ("verbosity", || Value::Null),
    ("best_of", || json!(1)),
    ("suffix", || json!("")),
    ("use_beam_search", || json!(false)),
    ("length_penalty", || json!(1)),
    ("early_stopping", || json!(false)),
    ("min_tokens", || json!(0)),
    ("bad_words", || json!([])),
    ("allowed_token_ids", || Value::Null),
    ("prompt_logprobs", || Value::Null),
    ("truncate_prompt_tokens", || Value::Null),
    ("logits_processors", || Value::Null),
    ("prompt_embeds", || Value::Null),
    ("mm_processor_kwargs", || Value::Null),
    ("return_tokens_as_token_ids", || json!(false)),
    ("return_token_ids", || json!(false)),
    ("top_a", || json!(0)),
    ("tfs", || json!(1)),
    ("typical_p", || json!(1)),
    ("mirostat", || json!(0)),
    ("grammar", || Value::Null),
    ("guided_decoding_backend", || Value::Null),
    ("guided_whitespace_pattern", || Value::Null),
];

/// Takes away fields that are null, which means the same as absent, and those that ask for nothing.
///
/// # Errors
/// The first field that is not supported, or not known.
pub(crate) fn check(object: &mut Map<String, Value>, own: &[&str]) -> Result<(), ApiError> {
    object.retain(|_, value| !value.is_null());
    for (name, value) in object.iter() {
        let name = name.as_str();
        if own.contains(&name) || IGNORED.contains(&name) {
            continue;
        }
        match REFUSED.iter().find(|(refused, _)| *refused == name) {
            Some((_, neutral)) if is_same(value, &neutral()) => {}
            Some(_) => return Err(ApiError::unsupported(name, format!("{name} is not supported"))),
            None => return Err(ApiError::unknown(name)),
        }
    }
    Ok(())
}

/// Equal, 1 and 1.0 included.
fn is_same(value: &Value, neutral: &Value) -> bool {
    value == neutral || value.as_f64().is_some_and(|value| Some(value) == neutral.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: Value) -> Option<String> {
        let Value::Object(mut object) = body else { panic!("an object") };
        check(&mut object, COMMON).err().map(|error| error.param().unwrap().to_owned())
    }

    #[test]
    fn what_asks_for_nothing_passes_and_what_is_lost_does_not() {
        assert_eq!(refused(json!({"temperature": 1, "user": "x", "store": true, "top_p": null})), None);
        assert_eq!(refused(json!({"best_of": 1, "modalities": ["text"], "length_penalty": 1.0})), None);
        for (body, field) in [
            (json!({"best_of": 2}), "best_of"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"functions": [{}]}), "functions"),
            (json!({"temprature": 1}), "temprature"),
            (json!({"": 1}), ""),
        ] {
            assert_eq!(refused(body).as_deref(), Some(field));
        }
        assert_eq!(refused(json!({"nonsense": null})), None, "null is absent");
    }
}
