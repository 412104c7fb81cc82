//! Conversations through templates of the four forms that DeepSeek has shipped.

use super::*;
use crate::testing::{BOS, config, tokenizer};
use crate::{Bos, Tokenizer};

const V3: &str = include_str!("templates/v3.jinja");
const R1: &str = include_str!("templates/r1.jinja");
const R1_0528: &str = include_str!("templates/r1_0528.jinja");
const V31: &str = include_str!("templates/v31.jinja");

fn template(source: &str) -> ChatTemplate {
    let chat_templates = vec![NamedTemplate { name: "default".to_owned(), template: source.to_owned() }];
    ChatTemplate::new(Path::new("tokenizer_config.json"), &TokenizerConfig { chat_templates, ..config() })
        .unwrap()
}

fn messages(json: Value) -> Vec<Message> {
    serde_json::from_value(json).unwrap()
}

/// Renders and writes the special tokens shorter, so that the tests can be read.
fn render(source: &str, conversation: Value, options: &ChatOptions) -> Result<String, Error> {
    let mut text = template(source).render(&messages(conversation), options)?;
    for (name, short) in [
        ("begin▁of▁sentence", "bos"),
        ("end▁of▁sentence", "eos"),
        ("User", "user"),
        ("Assistant", "asst"),
        ("tool▁calls▁begin", "calls"),
        ("tool▁calls▁end", "/calls"),
        ("tool▁call▁begin", "call"),
        ("tool▁call▁end", "/call"),
        ("tool▁outputs▁begin", "outs"),
        ("tool▁outputs▁end", "/outs"),
        ("tool▁output▁begin", "out"),
        ("tool▁output▁end", "/out"),
        ("tool▁sep", "sep"),
    ] {
        text = text.replace(&format!("<｜{name}｜>"), &format!("[{short}]"));
    }
    Ok(text)
}

fn answer(source: &str, conversation: Value) -> String {
    render(source, conversation, &ChatOptions::default()).unwrap()
}

fn tool_conversation() -> Value {
    let call = |name: &str, arguments: &str| json!({"id": name, "type": "function", "function": {"name": name, "arguments": arguments}});
    json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null,
         "tool_calls": [call("weather", "{\"city\": \"Ulm\"}"), call("time", "{}")]},
        {"role": "tool", "tool_call_id": "weather", "content": "sun"},
        {"role": "tool", "tool_call_id": "time", "content": "noon"},
    ])
}

#[test]
fn v3_is_bos_system_and_turns() {
    let conversation = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "1 < 2 & 'x'?\n"},
    ]);
    assert_eq!(
        answer(V3, conversation.clone()),
        "[bos]Be brief.[user]Hi[asst]Hello[eos][user]1 < 2 & 'x'?\n[asst]"
    );
    let options = ChatOptions { add_generation_prompt: false, ..ChatOptions::default() };
    assert!(render(V3, conversation, &options).unwrap().ends_with("'x'?\n"));
}

#[test]
fn v3_prints_calls_and_outputs_and_answers_after_them() {
    let calls = "[bos][user]Weather?[asst][calls][call]function[sep]weather\n```json\n{\"city\": \"Ulm\"}\n```[/call]\n\
                 [call]function[sep]time\n```json\n{}\n```[/call][/calls][eos]";
    let outputs = "[outs][out]sun[/out]\n[out]noon[/out][/outs]";
    assert_eq!(
        answer(V3, tool_conversation()),
        format!("{calls}{outputs}"),
        "no Assistant tag after outputs"
    );

    let mut conversation = tool_conversation();
    let turns = conversation.as_array_mut().unwrap();
    turns.push(json!({"role": "assistant", "content": "Sun at noon."}));
    turns.push(json!({"role": "user", "content": "Thanks"}));
    assert_eq!(
        answer(V3, conversation),
        format!("{calls}{outputs}Sun at noon.[eos][user]Thanks[asst]"),
        "the answer follows the outputs"
    );
}

#[test]
fn calls_beside_an_empty_content_are_not_lost() {
    let expected = answer(V3, tool_conversation());
    for content in [json!(""), json!([]), json!([{"type": "text", "text": ""}])] {
        let mut conversation = tool_conversation();
        conversation[1]["content"] = content;
        assert_eq!(answer(V3, conversation), expected);
    }
    let mut conversation = tool_conversation();
    conversation[1].as_object_mut().unwrap().remove("content");
    assert_eq!(answer(V3, conversation), expected);
}

#[test]
fn calls_that_are_none_at_all_are_taken_away() {
    for calls in [json!(null), json!([])] {
        let conversation = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello", "tool_calls": calls},
            {"role": "user", "content": "Bye"},
        ]);
        assert_eq!(answer(V31, conversation), "[bos][user]Hi[asst]</think>Hello[eos][user]Bye[asst]</think>");
    }
}

#[test]
fn r1_forgets_old_reasoning_and_begins_a_new_one() {
    let conversation = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nno</think> maybe </think>\n\nb"},
        {"role": "user", "content": "c"},
    ]);
    assert_eq!(answer(R1, conversation), "[bos][user]a[asst]\n\nb[eos][user]c[asst]<think>\n");
}

#[test]
fn r1_0528_tags_the_assistant_with_the_users_turn() {
    let conversation = json!([
        {"role": "system", "content": "One."},
        {"role": "system", "content": "Two."},
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": "<think>x</think>\n\nb"},
        {"role": "user", "content": "c"},
    ]);
    assert_eq!(answer(R1_0528, conversation), "[bos]One.\n\nTwo.[user]a[asst]b[eos][user]c[asst]");
}

#[test]
fn v31_thinks_when_it_is_told_to() {
    let conversation = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>b</think>c"},
        {"role": "user", "content": "d"},
    ]);
    let history = "[bos]S[user]a[asst]</think>b</think>c[eos][user]d[asst]";
    assert_eq!(answer(V31, conversation.clone()), format!("{history}</think>"));
    for (thinking, tag) in [(true, "<think>"), (false, "</think>")] {
        let variables = BTreeMap::from([("thinking".to_owned(), Value::Bool(thinking))]);
        let options = ChatOptions { variables, ..ChatOptions::default() };
        assert_eq!(render(V31, conversation.clone(), &options).unwrap(), format!("{history}{tag}"));
    }
}

#[test]
fn v31_prints_tools_and_calls_without_a_fence() {
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string", "minLength": 1}}, "required": ["city"]}}}]);
    let options = ChatOptions { tools: Some(tools), ..ChatOptions::default() };
    let schema = r#"{"type": "object", "properties": {"city": {"type": "string", "minLength": 1}}, "required": ["city"]}"#;
    assert_eq!(
        render(V31, tool_conversation(), &options).unwrap(),
        format!(
            "[bos]\n\n### weather\n{schema}[user]Weather?[asst]</think>[calls][call]weather[sep]{{\"city\": \"Ulm\"}}[/call]\
             [call]time[sep]{{}}[/call][/calls][eos][out]sun[/out][out]noon[/out]"
        )
    );
}

#[test]
fn a_templated_prompt_has_one_bos() {
    let text = template(R1).render(&[Message::new("user", "hi")], &ChatOptions::default()).unwrap();
    let count = |tokens: Vec<dsv3_runtime::TokenId>| tokens.into_iter().filter(|&token| token == BOS).count();
    let tokenizer: &Tokenizer = tokenizer();
    assert_eq!(count(tokenizer.encode(&text, Bos::AsWritten).unwrap()), 1);
    assert_eq!(
        count(tokenizer.encode(&text, Bos::Add).unwrap()),
        1,
        "even where the caller asks for the wrong one"
    );
}

#[test]
fn parts_of_text_are_joined_and_others_refused() {
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    assert_eq!(answer(V3, parts), "[bos][user]a\nb[asst]");
    let image = json!([
        {"role": "user", "content": "x"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
    ]);
    let error = render(V3, image, &ChatOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "messages[1]: a content part of type \"image_url\" is not supported, only \"text\" is"
    );
}

#[test]
fn a_developer_is_a_system_where_the_template_knows_no_better() {
    let conversation = json!([{"role": "developer", "content": "D"}, {"role": "user", "content": "a"}]);
    assert_eq!(answer(V3, conversation.clone()), "[bos]D[user]a[asst]");
    let source =
        "{% for m in messages %}{{ 'D' if m.role == 'developer' else m.role }}:{{ m.content }};{% endfor %}";
    assert_eq!(answer(source, conversation), "D:D;user:a;");
}

#[test]
fn a_role_that_would_be_passed_over_is_an_error() {
    let conversation = json!([{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}]);
    let error = render(V3, conversation.clone(), &ChatOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::UnknownRole { index: 1, role } if role == "critic"), "{error}");
    let error = render(R1_0528, conversation.clone(), &ChatOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::TemplateRaised(message) if message == "Unknown role: critic"), "{error}");
    let chatml = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    assert_eq!(answer(chatml, conversation), "<user>a<critic>b");
    let roles = |count: usize| (0..count).map(|n| json!({"role": format!("r{n}"), "content": "a"})).collect();
    assert!(render(chatml, Value::Array(roles(8)), &ChatOptions::default()).is_ok());
    let error = render(chatml, Value::Array(roles(1000)), &ChatOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::UnknownRole { index: 8, .. }), "{error}");
}

#[test]
fn a_template_that_fails_says_where() {
    let error = render(
        "{{ messages[0].content + 1 }}",
        json!([{"role": "user", "content": "a"}]),
        &ChatOptions::default(),
    )
    .unwrap_err();
    assert!(matches!(&error, Error::Template { template, .. } if template == "default"), "{error}");
    let chat_templates =
        vec![NamedTemplate { name: "default".to_owned(), template: "a\n{% if %}".to_owned() }];
    let config = TokenizerConfig { chat_templates, ..config() };
    let error = ChatTemplate::new(Path::new("t.json"), &config).unwrap_err().to_string();
    assert!(
        error.starts_with("t.json: chat template \"default\": syntax error") && error.contains(":2)"),
        "{error}"
    );
}

#[test]
fn blocks_are_trimmed_as_in_transformers() {
    let source =
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\nend\n";
    assert_eq!(answer(source, json!([{"role": "user", "content": "a"}])), "a\nend");
    let loops =
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}";
    let two = json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
    assert_eq!(answer(loops, two), "a");
    assert_eq!(answer("{{ true }} {{ none }} {{ documents }}", json!([])), "True None None");
}

#[test]
fn the_template_file_comes_before_the_config_and_tools_have_their_own() {
    let directory = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::from_dir(directory.path()).unwrap().is_none());
    let config = json!({"bos_token": "<s>", "chat_template": [
        {"name": "default", "template": "default {{ bos_token }}"}, {"name": "tool_use", "template": "tools {{ tools|length }}"}]});
    std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let text = |options: &ChatOptions| {
        ChatTemplate::from_dir(directory.path()).unwrap().unwrap().render(&[], options).unwrap()
    };
    assert_eq!(text(&ChatOptions::default()), "default <s>");
    let options = ChatOptions { tools: Some(json!([{}])), ..ChatOptions::default() };
    assert_eq!(text(&options), "tools 1");
    std::fs::write(directory.path().join("chat_template.jinja"), "file {{ bos_token }}").unwrap();
    assert_eq!(text(&options), "file <s>");
}

#[test]
fn templates_without_a_default_are_refused() {
    let chat_templates = vec![NamedTemplate { name: "rag".to_owned(), template: String::new() }];
    let config = TokenizerConfig { chat_templates, ..config() };
    let error = ChatTemplate::new(Path::new("t.json"), &config).unwrap_err();
    assert_eq!(error.to_string(), "t.json: chat_template: expected one called \"default\"");
}

#[test]
fn a_message_keeps_its_other_fields() {
    let json = json!({"role": "tool", "content": "x", "tool_call_id": "7", "name": "f"});
    let message: Message = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(message.extra["tool_call_id"], "7");
    assert_eq!(serde_json::to_value(&message).unwrap(), json);
}

#[test]
fn several_templates_go_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    std::fs::create_dir(directory.path().join("additional_chat_templates")).unwrap();
    write("chat_template.jinja", "default");
    write("additional_chat_templates/rag.jinja", "rag {{ documents[0].text }}");
    write("additional_chat_templates/notes.txt", "{% if");
    let template = ChatTemplate::from_dir(directory.path()).unwrap().unwrap();
    let of = |name: &str| {
        let documents = Some(json!([{"text": "x"}]));
        let options = ChatOptions { template: Some(name.to_owned()), documents, ..ChatOptions::default() };
        template.render(&[], &options)
    };
    assert_eq!((of("default").unwrap(), of("rag").unwrap()), ("default".to_owned(), "rag x".to_owned()));
    let error = of("tool_use").unwrap_err().to_string();
    assert_eq!(
        error,
        "template is \"tool_use\", but must be the name of one of the checkpoint's chat templates"
    );
}

#[test]
fn a_program_in_a_templates_place_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("encoding")).unwrap();
    std::fs::write(directory.path().join("encoding/encoding_dsv32.py"), "").unwrap();
    let error = ChatTemplate::from_dir(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("encoding_dsv32.py: chat template: ") && error.contains("DeepSeek-V3.2"),
        "{error}"
    );
    std::fs::write(directory.path().join("chat_template.jinja"), "x").unwrap();
    assert!(ChatTemplate::from_dir(directory.path()).unwrap().is_some());
}

#[test]
fn the_last_message_is_continued() {
    let conversation = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]);
    let proceed =
        ChatOptions { add_generation_prompt: false, continue_final_message: true, ..ChatOptions::default() };
    assert_eq!(render(V3, conversation.clone(), &proceed).unwrap(), "[bos][user]a[asst]b ");
    let trimming = "{% for m in messages %}<{{ m.content.strip() }}>{% endfor %}";
    assert_eq!(render(trimming, conversation.clone(), &proceed).unwrap(), "<a><b");
    let both = ChatOptions { add_generation_prompt: true, ..proceed.clone() };
    let error = render(V3, conversation, &both).unwrap_err();
    assert!(matches!(error, Error::Parameter { parameter: "continue_final_message", .. }), "{error}");
    for (source, conversation, message) in [
        (V3, json!([]), "there is none"),
        (V3, json!([{"role": "assistant", "content": null}]), "it has no content"),
        ("{{ messages }}", json!([{"role": "user", "content": "a"}]), "the template reads no content"),
        (
            "{# content #}",
            json!([{"role": "user", "content": "a"}]),
            "the template does not print it as it is",
        ),
    ] {
        let error = render(source, conversation, &proceed).unwrap_err();
        assert_eq!(error.to_string(), format!("the last message cannot be continued: {message}"));
    }
}

#[test]
fn a_template_that_does_not_end_is_an_error() {
    for source in [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set n = namespace(x='x') %}{% for a in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
    ] {
        let error = render(source, json!([]), &ChatOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{error}");
    }
}

/// A template that searches every content finds none of calls, and is given an empty one.
#[test]
fn calls_without_content_render_where_every_content_is_searched() {
    let source =
        "{% for m in messages %}{{ 'closed' if '</think>' in m.content else m.content + '.' }}{% endfor %}";
    assert_eq!(answer(source, tool_conversation()), "Weather?..sun.noon.");
}

#[test]
fn thoughts_go_by_several_names() {
    let source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}";
    for name in ["reasoning_content", "reasoning", "thinking"] {
        assert_eq!(answer(source, json!([{"role": "assistant", "content": "", name: "hm"}])), "hm hm");
    }
    assert_eq!(answer(source, json!([{"role": "assistant", "content": "", "reasoning": null}])), " ");
}

#[test]
fn a_template_names_its_own_variables() {
    let of = |source: &str| template(source).variables().iter().cloned().collect::<Vec<_>>();
    assert_eq!(of(V31), ["thinking"]);
    assert!(of(V3).is_empty() && of(R1_0528).is_empty());
    assert_eq!(
        of("{{ bos_token }}{{ raise_exception(x) }}{% for m in messages %}{{ m[y] }}{% endfor %}"),
        ["x", "y"]
    );
}
