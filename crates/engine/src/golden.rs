//! What transformers itself does with the same chat templates and logits, from `testdata/chat/transformers.json`
//! (`tools/golden/chat.py` makes it).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::filter::Candidates;
use crate::{ChatOptions, ChatTemplate, Error, Message, NamedTemplate, TokenizerConfig, testing};

#[derive(Deserialize)]
struct Golden {
    chats: Vec<Chat>,
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
struct Chat {
    name: String,
    source: Option<String>,
    #[serde(flatten)]
    case: Case,
    /// None where transformers refuses or the template fails.
    text: Option<String>,
}

#[derive(Clone, Deserialize)]
struct Case {
    messages: Vec<Message>,
    tools: Option<Value>,
    documents: Option<Value>,
    variables: BTreeMap<String, Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
}

/// The same of templates that are not in this repository; of them and of the texts only the SHA-256.
#[derive(Deserialize)]
struct Published {
    cases: Vec<Case>,
    templates: Vec<PublishedTemplate>,
}

#[derive(Deserialize)]
struct PublishedTemplate {
    name: String,
    sha256: String,
    texts: Vec<Option<String>>,
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

fn render(name: &str, source: &str, case: Case) -> Result<String, Error> {
    let chat_templates = vec![NamedTemplate { name: "default".to_owned(), template: source.to_owned() }];
    let config = TokenizerConfig { chat_templates, ..testing::config() };
    let options = ChatOptions {
        add_generation_prompt: case.add_generation_prompt,
        continue_final_message: case.continue_final_message,
        tools: case.tools,
        documents: case.documents,
        variables: case.variables,
        template: None,
    };
    ChatTemplate::new(Path::new(name), &config).unwrap().render(&case.messages, &options)
}

#[test]
fn conversations_render_as_in_transformers() {
    let chats = golden().chats;
    assert!(chats.len() > 100);
    for Chat { name, source, case, text } in chats {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chat/templates").join(&name);
        let source = source.unwrap_or_else(|| std::fs::read_to_string(file).unwrap());
        match (render(&name, &source, case), text) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}"),
            (Err(error), Some(_)) => panic!("{name}: {error}"),
            (text, None) => assert!(text.is_err(), "{name}: {text:?}"),
        }
    }
}

/// The templates that DeepSeek has published are no part of this repository. Where they are at hand, as files `*.jinja`
/// with what tokenizer_config.json calls `chat_template`, `DSV3_CHAT_TEMPLATES` names their directory.
#[test]
fn published_templates_render_as_in_transformers() {
    let json = include_str!("../../../testdata/chat/published.json");
    let Published { cases, templates } = serde_json::from_str(json).unwrap();
    let Some(directory) = std::env::var_os("DSV3_CHAT_TEMPLATES") else { return };
    let mut found = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let own = sha256(&source);
        let Some(template) = templates.iter().find(|template| template.sha256 == own) else { continue };
        found += 1;
        for (index, (case, expected)) in cases.iter().zip(&template.texts).enumerate() {
            // Where the template fails in transformers, it may render here.
            let Some(expected) = expected else { continue };
            match render(&template.name, &source, case.clone()) {
                Ok(text) => assert_eq!(&sha256(&text), expected, "{} {index}: {text}", template.name),
                Err(error) => panic!("{} {index}: {error}", template.name),
            }
        }
    }
    assert!(found > 0, "none of the files is a template of published.json");
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
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
