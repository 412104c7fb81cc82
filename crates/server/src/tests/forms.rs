//! Answers in a form: from a model that would say anything.

use super::*;

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() {
    let server = Fixture::new(Model::Hashes);
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 22, 333]}}, "required": ["a"],
        "additionalProperties": false});
    let response_format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for more in [
        json!({"response_format": response_format}),
        json!({"guided_json": schema}),
        json!({"structured_outputs": {"json": schema.to_string()}}),
    ] {
        let answer = server.ok(CHAT, &chat(&more)).await;
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let content: Value = serde_json::from_str(content).unwrap();
        assert!(content["a"].is_u64(), "{content}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    for more in [
        json!({"guided_choice": ["yes", "no"]}),
        json!({"structured_outputs": {"regex": "yes|no"}}),
        json!({"guided_grammar": "start: \"yes\" | \"no\""}),
    ] {
        let answer = server.ok(CHAT, &chat(&more)).await;
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(["yes", "no"].contains(&content), "{more}: {content}");
        let mut body = more.clone();
        body["prompt"] = "the".into();
        let answer = server.ok(COMPLETIONS, &body).await;
        let text = answer["choices"][0]["text"].as_str().unwrap();
        assert!(["yes", "no"].contains(&text), "{more}: {text}");
    }
}

#[tokio::test]
async fn thoughts_have_no_form_and_what_follows_them_has() {
    // The model wants to go on after its thoughts as it likes.
    let server = Fixture::new(Model::Says("a{}b</think>\n\n anything"));
    let thinking = json!({"thinking": true});
    for (more, expected) in [
        (json!({"guided_choice": ["yes", "no"]}), &["yes", "no"][..]),
        (json!({"guided_regex": "a/b|\\/"}), &["a/b", "/"]),
        (json!({"guided_grammar": "start: x\nx: \"{\" \"}\""}), &["{}"]),
        (json!({"guided_json": {"const": 5}}), &["5"]),
    ] {
        let mut more = more;
        more["chat_template_kwargs"] = thinking.clone();
        let answer = server.ok(CHAT, &chat(&more)).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["reasoning_content"], "a{}b", "{answer}");
        let content = message["content"].as_str().unwrap().trim();
        assert!(expected.contains(&content), "{more}: {content}");
    }
}

#[tokio::test]
async fn a_call_that_must_be_is_made() {
    let server = Fixture::new(Model::Hashes);
    let parameters = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
        "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let tools = json!([tool("get"), tool("put")]);
    let named = json!({"type": "function", "function": {"name": "put"}});
    for (choice, names) in [(json!("required"), &["get", "put"][..]), (named, &["put"])] {
        let more = json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false});
        let answer = server.ok(CHAT, &chat(&more)).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(
            (&message["content"], &answer["choices"][0]["finish_reason"]),
            (&Value::Null, &json!("tool_calls"))
        );
        let calls = message["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        assert!(names.contains(&calls[0]["function"]["name"].as_str().unwrap()));
        let arguments: Value =
            serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["a"].is_u64(), "{arguments}");
    }
}
