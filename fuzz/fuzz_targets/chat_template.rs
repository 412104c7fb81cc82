//! Renders any conversation through any template: parts of the input, divided by zero bytes, are the template and then
//! messages as `role:content`. Nothing may panic, hang, or take memory without end.
//!
//! ```sh
//! mkdir -p fuzz/corpus/chat_template
//! cargo +nightly fuzz run chat_template fuzz/corpus/chat_template fuzz/seeds/chat_template -- -timeout=10
//! ```
#![no_main]

use dsv3_engine::{
    ChatFormat, ChatOptions, ChatStart, ChatTemplate, Message, NamedTemplate, TokenizerConfig,
};
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use std::path::Path;

fuzz_target!(|text: &str| {
    let mut parts = text.split('\0');
    let template = parts.next().unwrap_or_default().to_owned();
    let messages: Vec<Message> = parts.map(message).collect();
    let config = TokenizerConfig {
        bos_token: Some("<s>".to_owned()),
        chat_templates: vec![NamedTemplate { name: "default".to_owned(), template }],
        ..TokenizerConfig::default()
    };
    let Ok(template) = ChatTemplate::new(Path::new("chat_template.jinja"), &config) else { return };
    assert_eq!(template.format(), ChatFormat::detect(&config.chat_templates[0].template));
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let proceed =
        ChatOptions { add_generation_prompt: false, continue_final_message: true, ..ChatOptions::default() };
    for options in [ChatOptions { tools: Some(tools), ..ChatOptions::default() }, proceed] {
        if let Ok(text) = template.render(&messages, &options) {
            let _ = ChatStart::after(&text);
        }
    }
});

/// A message, with a call where the content ends with an exclamation mark.
fn message(text: &str) -> Message {
    let (role, content) = text.split_once(':').unwrap_or(("user", text));
    let mut message = Message::new(role, content);
    if content.ends_with('!') {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": content}});
        message.extra.insert("tool_calls".to_owned(), json!([call]));
        message.content = None;
    }
    message
}
