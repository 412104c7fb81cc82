//! What transformers itself does with the same chat templates and logits, from `testdata/chat/transformers.json`
//! (`tools/golden/chat.py` makes it).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::filter::Candidates;
use crate::{ChatOptions, ChatTemplate, Message, NamedTemplate, TokenizerConfig, testing};

#[derive(Deserialize)]
struct Golden {
    chats: Vec<Chat>,
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
struct Chat {
    name: String,
    source: Option<String>,
    messages: Vec<Message>,
    tools: Option<Value>,
    variables: BTreeMap<String, Value>,
    add_generation_prompt: bool,
    text: String,
}

#[derive(Deserialize)]
struct Filter {
    logits: Vec<f32>,
    temperature: f32,
    top_k: usize,
    top_p: f64,
    kept: Vec<u32>,
    probabilities: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../testdata/chat/transformers.json")).unwrap()
}

#[test]
fn conversations_render_as_in_transformers() {
    let chats = golden().chats;
    assert!(chats.len() > 30);
    for chat in chats {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chat/templates").join(&chat.name);
        let template = chat.source.unwrap_or_else(|| std::fs::read_to_string(file).unwrap());
        let chat_templates = vec![NamedTemplate { name: "default".to_owned(), template }];
        let config = TokenizerConfig { chat_templates, ..testing::config() };
        let options = ChatOptions {
            add_generation_prompt: chat.add_generation_prompt,
            tools: chat.tools,
            variables: chat.variables,
        };
        let template = ChatTemplate::new(Path::new(&chat.name), &config).unwrap();
        match template.render(&chat.messages, &options) {
            Ok(text) => assert_eq!(text, chat.text, "{}", chat.name),
            Err(error) => panic!("{}: {error}", chat.name),
        }
    }
}

#[test]
fn logits_are_filtered_as_in_transformers() {
    let filters = golden().filters;
    assert!(filters.len() > 30);
    for filter in filters {
        let max = filter.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut candidates = Candidates::default();
        candidates.fill(&filter.logits, filter.top_k);
        candidates.weigh(max, filter.temperature);
        if filter.top_p < 1.0 {
            candidates.keep_top_p(filter.top_p);
        }
        let probabilities = candidates.probabilities(filter.logits.len());
        for (token, &probability) in (0_u32..).zip(&probabilities) {
            let expected = filter.kept.iter().position(|&kept| kept == token);
            let expected = expected.map_or(0.0, |index| filter.probabilities[index]);
            // The exponent is at most 40 / 0.3 and is rounded to f32 once by the division, its exponential once more;
            // the mass that divides has the same relative error. Weights below the smallest normal f32 lose theirs.
            let relative = 2.0 * (40.0 / 0.3 + 2.0) * f64::from(f32::EPSILON);
            assert!(
                (probability - expected).abs() <= relative * expected + f64::from(f32::MIN_POSITIVE),
                "token {token}: {probability}, transformers {expected} (temperature {}, top-k {}, top-p {})",
                filter.temperature,
                filter.top_k,
                filter.top_p
            );
        }
    }
}
