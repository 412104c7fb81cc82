//! What is answered: whole and streamed, with everything that may come with it.

use super::*;

#[tokio::test]
async fn a_conversation_is_answered_whole_and_streamed() {
    let server = Fixture::new(Model::Says("the answer: é 😀"));
    let whole = server.ok(CHAT, &chat(&json!({"model": "alias"}))).await;
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("the answer: é 😀"), &json!("stop"))
    );
    assert_eq!(choice["logprobs"], Value::Null);
    let (prompt, completion) = (&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]);
    let total = prompt.as_u64().unwrap() + completion.as_u64().unwrap();
    assert_eq!(whole["usage"]["total_tokens"], total);

    let chunks = server.stream(CHAT, &chat(&json!({"stream_options": {"include_usage": true}}))).await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), completion));
    let content: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(content, "the answer: é 😀");
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == last["id"]));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    let chunks = server.stream(CHAT, &chat(&json!({}))).await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "nobody asked for usage");
    let each = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let chunks = server.stream(CHAT, &chat(&each)).await;
    assert!(chunks.iter().all(|chunk| &chunk["usage"]["prompt_tokens"] == prompt), "{chunks:?}");
}

#[tokio::test]
async fn thoughts_stand_beside_the_content() {
    let server = Fixture::new(Model::Says("hm.</think>So."));
    let body = chat(&json!({"chat_template_kwargs": {"thinking": true}}));
    let whole = server.ok(CHAT, &body).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("hm."), &json!("So.")));
    let chunks = server.stream(CHAT, &body).await;
    let all = |field: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!((all("reasoning_content"), all("content")), ("hm.".to_owned(), "So.".to_owned()));
}

const TWO_CALLS: &str = "Look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>\
    <｜tool▁call▁begin｜>put<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

fn tools() -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    json!([tool("get"), tool("put")])
}

#[tokio::test]
async fn calls_of_tools_are_told_from_text() {
    let server = Fixture::new(Model::Says(TWO_CALLS));
    let whole = server.ok(CHAT, &chat(&json!({"tools": tools()}))).await;
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Look."))
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls[0]["function"], json!({"name": "get", "arguments": "{\"a\": 1}"}));
    assert_eq!(calls[1]["function"], json!({"name": "put", "arguments": "{}"}));
    assert!(calls[0]["id"] != calls[1]["id"] && calls[0]["type"] == "function");

    let chunks = server.stream(CHAT, &chat(&json!({"tools": tools()}))).await;
    let deltas: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"].get("tool_calls")).collect();
    let arguments = |index: u64| -> String {
        let calls = deltas.iter().flat_map(|calls| calls.as_array().unwrap());
        let own = calls.filter(|call| call["index"] == index);
        own.map(|call| call["function"]["arguments"].as_str().unwrap()).collect()
    };
    assert_eq!((arguments(0), arguments(1)), ("{\"a\": 1}".to_owned(), "{}".to_owned()));
    assert_eq!(deltas.iter().filter(|calls| calls[0].get("id").is_some()).count(), 2);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    let one = server.ok(CHAT, &chat(&json!({"tools": tools(), "parallel_tool_calls": false}))).await;
    let calls = one["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["function"]["arguments"], "{\"a\": 1}");
    for no_tools in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
        let text = server.ok(CHAT, &chat(&no_tools)).await;
        assert_eq!(text["choices"][0]["message"]["content"], TWO_CALLS, "without tools it is text");
        assert_eq!(text["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn tokens_come_with_their_log_probabilities() {
    let server = Fixture::new(Model::Says("he é"));
    let body = chat(&json!({"logprobs": true, "top_logprobs": 2}));
    let whole = server.ok(CHAT, &body).await;
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(whole["usage"]["completion_tokens"], content.len());
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap().clone())
        .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "he é");
    assert_eq!(
        (&content[0]["token"], content[0]["top_logprobs"].as_array().unwrap().len()),
        (&json!("he"), 2)
    );
    let chunks = server.stream(CHAT, &body).await;
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(streamed, content);
}

#[tokio::test]
async fn a_text_is_continued_with_all_that_may_come_with_it() {
    let server = Fixture::new(Model::Hashes);
    let body = json!({"prompt": "the he", "max_tokens": 5, "logprobs": 3, "echo": true, "seed": 1});
    let whole = server.ok(COMPLETIONS, &body).await;
    let choice = &whole["choices"][0];
    assert!(choice["text"].as_str().unwrap().starts_with("the he"), "{choice}");
    let logprobs = &choice["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    let prompt = whole["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(tokens.len(), prompt + 5);
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    assert!(logprobs["top_logprobs"][prompt].as_object().unwrap().len() >= 3);
    assert_eq!(choice["finish_reason"], "length");

    let chunks = server.stream(COMPLETIONS, &body).await;
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, choice["text"]);
    let offsets: Vec<Value> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array().unwrap().clone())
        .collect();
    assert_eq!(&Value::from(offsets), &logprobs["text_offset"]);

    let only = json!({"prompt": "the he", "max_tokens": 0, "echo": true});
    assert_eq!(server.ok(COMPLETIONS, &only).await["choices"][0]["text"], "the he");
    let counted = json!({"prompt": "the he", "max_tokens": 0, "echo": true, "logprobs": 0});
    let counted = server.ok(COMPLETIONS, &counted).await;
    assert_eq!(counted["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), prompt);
}

#[tokio::test]
async fn several_prompts_and_answers_are_numbered() {
    let server = Fixture::new(Model::Hashes);
    let body = json!({"prompt": ["the", "he"], "n": 2, "max_tokens": 4, "temperature": 1, "seed": 7});
    let whole = server.ok(COMPLETIONS, &body).await;
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(
        choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(server.ok(COMPLETIONS, &body).await["choices"], whole["choices"], "the seed repeats it");
    let alone = json!({"prompt": "he", "max_tokens": 4, "temperature": 1, "seed": 7});
    assert_eq!(server.ok(COMPLETIONS, &alone).await["choices"][0]["text"], choices[2]["text"]);
    let ids = server.ok("/v1/tokenize", &json!({"prompt": "he"})).await["tokens"].clone();
    let by_ids = json!({"prompt": ids, "max_tokens": 4, "temperature": 1, "seed": 7});
    assert_eq!(server.ok(COMPLETIONS, &by_ids).await["choices"][0]["text"], choices[2]["text"]);
}

#[tokio::test]
async fn a_prefix_is_found_again_and_a_salt_hides_it() {
    let server = Fixture::new(Model::Hashes);
    let body = |salt: &str| json!({"prompt": "the he ".repeat(30), "max_tokens": 2, "cache_salt": salt});
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let first = server.ok(COMPLETIONS, &body("")).await;
    let second = server.ok(COMPLETIONS, &body("")).await;
    assert!(cached(&first) == 0 && cached(&second) > 0);
    assert_eq!(first["choices"], second["choices"]);
    assert_eq!(cached(&server.ok(COMPLETIONS, &body("other")).await), 0);
}

#[tokio::test]
async fn tokens_and_texts_are_turned_into_each_other() {
    let server = Fixture::new(Model::Hashes);
    for prefix in ["/v1", ""] {
        let asked = json!({"prompt": "the é", "return_token_strs": true});
        let tokens = server.ok(&format!("{prefix}/tokenize"), &asked).await;
        assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
        assert_eq!(tokens["tokens"][0], 0, "the BOS");
        let text = server.ok(&format!("{prefix}/detokenize"), &json!({"tokens": tokens["tokens"]})).await;
        assert_eq!(text["prompt"], "<｜begin▁of▁sentence｜>the é");
    }
    let chat = server.ok("/v1/tokenize", &chat(&json!({}))).await;
    let text = server.ok("/v1/detokenize", &json!({"tokens": chat["tokens"]})).await;
    assert_eq!(text["prompt"], "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜></think>");
}

#[tokio::test]
async fn models_health_and_metrics_are_told() {
    let server = Fixture::new(Model::Hashes);
    server.ok(COMPLETIONS, &json!({"prompt": "the", "max_tokens": 3})).await;
    server.until(|counts| counts.finished == 1).await;
    let (_, models) = server.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("fake"), &json!("alias")));
    assert_eq!(server.get("/v1/models/alias").await.0, StatusCode::OK);
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
    let (status, metrics) = server.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        "dsv3_generated_tokens_total 3",
        "dsv3_requests_finished_total 1",
        "dsv3_cache_pages_held 0",
        "dsv3_time_to_first_token_seconds_count 1",
        "dsv3_time_to_first_token_seconds_bucket{le=\"+Inf\"} 1",
        "dsv3_time_between_tokens_seconds_count 2",
        "dsv3_http_requests_total{path=\"/v1/completions\",status=\"200\"} 1",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }
    let (_, document) = server.get("/openapi.json").await;
    let document: Value = serde_json::from_str(&document).unwrap();
    for path in [CHAT, COMPLETIONS, "/v1/models", "/v1/tokenize", "/health", "/metrics"] {
        assert!(document["paths"].get(path).is_some(), "{path}");
    }
}
