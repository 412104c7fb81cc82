//! A conversation that goes on: the history, rendered again from the parts of the model's answers, begins with the tokens
//! that the cache holds, as far as the template permits.

use std::path::Path;
use std::sync::LazyLock;

use dsv3_runtime::TokenId;
use serde_json::{Value, json};

use super::*;
use crate::{Bos, Tokenizer};

static TINY: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_dir(&tiny(), 1024).unwrap());

fn tiny() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny")
}

fn of_source(source: &str) -> ChatTemplate {
    let chat_templates = vec![NamedTemplate { name: "default".to_owned(), template: source.to_owned() }];
    let config = TokenizerConfig { chat_templates, ..TokenizerConfig::from_dir(&tiny()).unwrap() };
    ChatTemplate::new(Path::new("tokenizer_config.json"), &config).unwrap()
}

fn tokens(text: &str) -> Vec<TokenId> {
    TINY.encode(text, Bos::AsWritten).unwrap()
}

/// Renders a question, has the model answer `raw` in small pieces, and renders the next turn with that answer. Gives the
/// tokens that both have in common, as text, and those that the cache holds.
fn next_turn(template: &ChatTemplate, thinking: bool, raw: &str, next: Value) -> (String, String) {
    let mut messages: Vec<Message> = serde_json::from_value(json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Ulm?"},
    ]))
    .unwrap();
    let variables = BTreeMap::from([("thinking".to_owned(), Value::Bool(thinking))]);
    let options = ChatOptions { variables, ..ChatOptions::default() };
    let prompt = template.render(&messages, &options).unwrap();

    let mut parser = ChatParser::new(template.format(), ChatStart::after(&prompt));
    let mut answer = ChatAnswer::default();
    for character in raw.chars() {
        answer.extend(parser.push(&character.to_string()));
    }
    answer.extend(parser.finish());
    // As a client sends it back: through JSON.
    let message = serde_json::to_value(answer.into_message()).unwrap();
    messages.push(serde_json::from_value(message).unwrap());
    messages.push(serde_json::from_value(next).unwrap());

    let cached: Vec<TokenId> = tokens(&prompt).into_iter().chain(tokens(raw)).collect();
    let second = tokens(&template.render(&messages, &options).unwrap());
    let common = cached.iter().zip(&second).take_while(|(cached, again)| cached == again).count();
    (TINY.decode(&cached[..common], false), TINY.decode(&cached, false))
}

fn user() -> Value {
    json!({"role": "user", "content": "And tomorrow?"})
}

fn result() -> Value {
    json!({"role": "tool", "tool_call_id": "x", "content": "sun"})
}

const V3_CALL: &str = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n\
                       {\"city\":\"Köln\",  \"n\": [1, 2.50]}\n```<｜tool▁call▁end｜>\n\
                       <｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
const V31_CALL: &str = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\":\"Köln\",  \"n\": 2.50}\
                        <｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

#[test]
fn an_answer_without_thoughts_is_found_whole() {
    for source in [include_str!("templates/v3.jinja"), include_str!("templates/v31.jinja")] {
        let (common, cached) = next_turn(&of_source(source), false, "\n\n  Sun.\n é ", user());
        assert_eq!(common, cached);
    }
}

#[test]
fn calls_are_found_whole() {
    let (common, cached) =
        next_turn(&of_source(include_str!("templates/v3.jinja")), false, V3_CALL, result());
    assert_eq!(common, cached);
    let v31 = of_source(include_str!("templates/v31.jinja"));
    for words in ["", "Let me see."] {
        let (common, cached) = next_turn(&v31, false, &format!("{words}{V31_CALL}"), result());
        assert_eq!(common, cached);
    }
}

/// Templates leave thoughts out of the history: what is cached of a turn ends where they begin.
#[test]
fn thoughts_are_where_the_common_part_ends() {
    let raw = "hm\n</think>\n\nSun.";
    let tiny = ChatTemplate::from_dir(&tiny()).unwrap().unwrap();
    for (template, thinking) in [
        (of_source(include_str!("templates/r1.jinja")), true),
        (of_source(include_str!("templates/v31.jinja")), true),
        (tiny, true),
    ] {
        let (common, cached) = next_turn(&template, thinking, raw, user());
        let begin = cached.rfind("<think>").unwrap();
        assert_eq!(common, cached[..begin]);
        assert!(common.ends_with("<｜Assistant｜>"), "{common}");
    }
    let r1_0528 = of_source(include_str!("templates/r1_0528.jinja"));
    let (common, cached) = next_turn(&r1_0528, true, &format!("<think>\n{raw}"), user());
    assert_eq!(common, cached[..cached.rfind("<think>").unwrap()]);
}
