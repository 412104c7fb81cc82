//! What is refused, and how.

use super::*;

/// Status, field and code of a refusal.
async fn refused(server: &Fixture, path: &str, body: &Value) -> (u16, Option<String>, Option<String>) {
    let (status, answer) = server.post(path, body).await;
    let error = &answer["error"];
    assert!(!status.is_success(), "{body}: {answer}");
    assert!(error["message"].is_string() && error["type"].is_string(), "{answer}");
    let field = |name: &str| error[name].as_str().map(str::to_owned);
    (status.as_u16(), field("param"), field("code"))
}

#[tokio::test]
async fn fields_that_cannot_be_served_are_named() {
    let server = Fixture::new(Model::Hashes);
    for (more, field) in [
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
        (json!({"logit_bias": {"3": 101}}), "logit_bias"),
        (json!({"logit_bias": {"3000": 1}}), "logit_bias"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop_token_ids": [280]}), "stop_token_ids"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "user"}, {"content": "x"}]}), "messages[1].role"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content"),
        (json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "messages[0].tool_calls[0]"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [{"type": "code", "function": {"name": "x"}}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "x"}}}), "tool_choice"),
        (json!({"chat_template_kwargs": {"thinkin": true}}), "chat_template_kwargs.thinkin"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"guided_grammar": "nonsense"}), "guided_grammar"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
        (json!({"functions": [{"name": "x"}]}), "functions"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"temprature": 1}), "temprature"),
    ] {
        let (status, param, _) = refused(&server, CHAT, &chat(&more)).await;
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{more}");
    }
    for (body, field) in [
        (json!({}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [281]}), "prompt"),
        (json!({"prompt": "x", "n": 128, "logprobs": 21}), "logprobs"),
        (json!({"prompt": vec!["x"; 65], "n": 2}), "prompt"),
        (json!({"prompt": "x ".repeat(3000)}), "prompt"),
        (json!({"prompt": "x", "suffix": "y"}), "suffix"),
        (json!({"prompt": "x", "messages": []}), "messages"),
    ] {
        let (status, param, _) = refused(&server, COMPLETIONS, &body).await;
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{body}");
    }
    let unknown = refused(&server, "/v1/detokenize", &json!({"tokens": [1, 280]})).await;
    assert_eq!((unknown.0, unknown.1.as_deref()), (400, Some("tokens[1]")));
    assert_eq!(refused(&server, "/v1/tokenize", &json!({})).await.1.as_deref(), Some("prompt"));
}

#[tokio::test]
async fn errors_have_one_shape_whatever_they_are() {
    let server = Fixture::new(Model::Hashes);
    let other = refused(&server, CHAT, &chat(&json!({"model": "gpt"}))).await;
    assert_eq!(other, (404, Some("model".to_owned()), Some("model_not_found".to_owned())));
    let json = |request: Request<Body>| async {
        let response = server.send(request).await;
        let status = response.status().as_u16();
        let body: Value = serde_json::from_str(&text(response).await).unwrap();
        assert!(body["error"]["message"].is_string(), "{body}");
        status
    };
    for body in ["{", "[]", "5", "", "\u{1f600}", &"[".repeat(100_000)] {
        assert_eq!(json(post(CHAT, body.to_owned())).await, 400);
    }
    assert_eq!(json(post(CHAT, vec![b'"', 0xff])).await, 400);
    assert_eq!(json(Request::post(CHAT).body("{}".into()).unwrap()).await, 415);
    assert_eq!(json(Request::get(CHAT).body(Body::empty()).unwrap()).await, 405);
    assert_eq!(json(Request::delete("/v1/models").body(Body::empty()).unwrap()).await, 405);
    assert_eq!(json(Request::get("/v2").body(Body::empty()).unwrap()).await, 404);
    assert_eq!(json(Request::get("/v1/models/gpt").body(Body::empty()).unwrap()).await, 404);
    assert_eq!(json(Request::get("/v1/models/%ff").body(Body::empty()).unwrap()).await, 404);
    assert_eq!(json(post(CHAT, " ".repeat((4 << 20) + 1))).await, 413);
}

#[tokio::test]
async fn without_a_key_there_is_health_and_nothing_else() {
    let config = ServerConfig { api_keys: vec!["secret".to_owned()], ..ServerConfig::default() };
    let server = Fixture::with(Model::Hashes, config, EngineConfig::default());
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
    for path in ["/v1/models", "/metrics", "/openapi.json"] {
        assert_eq!(server.get(path).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(server.post(CHAT, &chat(&json!({}))).await.0, StatusCode::UNAUTHORIZED);
    let request = Request::get("/v1/models").header(header::AUTHORIZATION, "Bearer secret");
    assert_eq!(server.send(request.body(Body::empty()).unwrap()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn pages_of_other_origins_may_ask_where_that_is_said() {
    let ask = |server: &Fixture| {
        let request = Request::get("/health").header(header::ORIGIN, "https://example.org");
        let router = server.router.clone();
        async move {
            let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            response.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN).cloned()
        }
    };
    assert_eq!(ask(&Fixture::new(Model::Hashes)).await, None);
    for (origin, allowed) in [("https://example.org", true), ("*", true), ("https://example.com", false)] {
        let config = ServerConfig { cors_origins: vec![origin.to_owned()], ..ServerConfig::default() };
        let server = Fixture::with(Model::Hashes, config, EngineConfig::default());
        assert_eq!(ask(&server).await.is_some(), allowed, "{origin}");
    }
}

#[tokio::test]
async fn while_the_model_is_loaded_all_say_so() {
    let app = Arc::new(App::new(ServerConfig::default(), Ipv4Addr::LOCALHOST.into()));
    let router = routes::router(&app);
    for request in
        [Request::get("/health").body(Body::empty()).unwrap(), post(CHAT, chat(&json!({})).to_string())]
    {
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }
}

#[test]
fn the_lists_of_fields_are_those_of_the_document() {
    use crate::request::{chat, completion, names};
    let server = routes::document();
    let schemas = &serde_json::to_value(server).unwrap()["components"]["schemas"];
    let fields = |schema: &str| -> Vec<String> {
        let properties = schemas[schema]["properties"].as_object();
        properties.unwrap_or_else(|| panic!("{schema}: {schemas}")).keys().cloned().collect()
    };
    for (schema, known) in
        [("Common", names::COMMON), ("ChatFields", chat::NAMES), ("CompletionFields", completion::NAMES)]
    {
        let mut own = fields(schema);
        let mut known: Vec<String> = known.iter().map(|&name| name.to_owned()).collect();
        own.sort_unstable();
        known.sort_unstable();
        assert_eq!(own, known, "{schema}");
    }
}

#[tokio::test]
async fn who_asks_by_another_sites_name_is_refused_everywhere() {
    let server = Fixture::new(Model::Hashes);
    let asks = |path: &str, host: &str, origin: Option<&str>| {
        let mut request = post(path, chat(&json!({"max_tokens": 1})).to_string());
        request.headers_mut().insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            request.headers_mut().insert(header::ORIGIN, origin.parse().unwrap());
        }
        server.send(request)
    };
    for path in [CHAT, "/", "/health", "/nowhere"] {
        let response = asks(path, "evil.example:8080", None).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
        let answer: Value = serde_json::from_str(&text(response).await).unwrap();
        let error = &answer["error"];
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("host_not_allowed"), &json!("invalid_request_error"))
        );
        assert!(error["message"].as_str().unwrap().contains("--allowed-host evil.example"), "{answer}");
    }
    let other = asks(CHAT, "localhost:8080", Some("http://evil.example")).await;
    assert_eq!(other.status(), StatusCode::FORBIDDEN);
    assert!(text(other).await.contains("origin_not_allowed"));
    assert_eq!(asks(CHAT, "localhost:8080", Some("http://localhost:8080")).await.status(), StatusCode::OK);
}
