//! What one client may take, and clients that go away or do not read.

use super::*;
use crate::{Limits, app::COMPILERS};

fn slow() -> Model {
    Model::Slow(Duration::from_millis(2))
}

fn endless(more: &Value) -> Value {
    let mut body = json!({"prompt": "the", "max_tokens": 1500});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn who_goes_away_is_forgotten() {
    let server = Fixture::new(slow());
    // Before the answer, and within a stream.
    let waiting =
        tokio::spawn(server.router.clone().oneshot(post(COMPLETIONS, endless(&json!({})).to_string())));
    server.until(|counts| counts.decoding == 1).await;
    waiting.abort();
    server.until(|counts| counts.cancelled == 1 && counts.pages.held == 0).await;
    let response =
        server.send(post(COMPLETIONS, endless(&json!({"stream": true, "n": 3})).to_string())).await;
    server.until(|counts| counts.decoding == 3).await;
    drop(response);
    server.until(|counts| counts.cancelled == 2 && counts.pages.held == 0).await;
    assert_eq!(server.app.metrics.open_streams(), 0);
    assert_eq!(server.counts().finished, 0);
}

#[tokio::test]
async fn who_does_not_read_is_cut_off() {
    let limits = Limits { write_time: Duration::from_millis(100), ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = Fixture::with(slow(), config, EngineConfig::default());
    let response = server.send(post(COMPLETIONS, endless(&json!({"stream": true})).to_string())).await;
    server.until(|counts| counts.cancelled == 1 && counts.pages.held == 0).await;
    let text = text(response).await;
    assert!(text.starts_with("data: {") && !text.contains("[DONE]"), "what was sent is there, and no end");
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_again() {
    let engine = EngineConfig { queue: 1, sequences: 1, ..EngineConfig::default() };
    let server = Fixture::with(slow(), ServerConfig::default(), engine);
    let ask = || server.send(post(COMPLETIONS, endless(&json!({"stream": true})).to_string()));
    let first = ask().await;
    server.until(|counts| counts.decoding == 1).await;
    let second = ask().await;
    let third = ask().await;
    assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::OK));
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    let after: u64 = third.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after));
    drop((first, second));
    server.until(|counts| counts.cancelled == 2).await;
}

#[tokio::test]
async fn an_answer_may_take_so_long_and_no_longer() {
    let limits = Limits { request_time: Some(Duration::from_millis(50)), ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = Fixture::with(slow(), config, EngineConfig::default());
    let response = server.send(post(COMPLETIONS, endless(&json!({})).to_string())).await;
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(response.headers()["x-should-retry"], "false");
    let response = server.send(post(COMPLETIONS, endless(&json!({"stream": true})).to_string())).await;
    let text = text(response).await;
    assert!(text.contains("\"code\":\"time_limit\"") && !text.contains("[DONE]"), "{text}");
    server.until(|counts| counts.cancelled == 2 && counts.pages.held == 0).await;
}

#[tokio::test]
async fn a_prompt_and_a_body_may_be_so_long_and_no_longer() {
    let limits = Limits { prompt: 8, body: 200, read_time: Duration::from_millis(50), ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = Fixture::with(Model::Hashes, config, EngineConfig::default());
    server.ok(COMPLETIONS, &json!({"prompt": "the the", "max_tokens": 1})).await;
    let (status, answer) = server.post(COMPLETIONS, &json!({"prompt": "x".repeat(20)})).await;
    assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("prompt")));
    let (status, _) = server.post(COMPLETIONS, &json!({"prompt": "x".repeat(300)})).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let never =
        Body::from_stream(futures_util::stream::pending::<Result<String, std::convert::Infallible>>());
    assert_eq!(server.send(post(COMPLETIONS, never)).await.status(), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn an_engine_that_ends_says_so() {
    let server = Fixture::new(Model::Hashes);
    let Fixture { router, engine, .. } = server;
    engine.shutdown(true);
    for request in
        [Request::get("/health").body(Body::empty()).unwrap(), post(CHAT, chat(&json!({})).to_string())]
    {
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn a_form_is_compiled_for_who_has_a_place_and_holds_up_nobody_without() {
    let engine = EngineConfig { queue: 2, ..EngineConfig::default() };
    let server = Fixture::with(Model::Hashes, ServerConfig::default(), engine);
    let form = |regex: &str| json!({"prompt": "the", "max_tokens": 3, "guided_regex": regex}).to_string();
    let plain = json!({"prompt": "the", "max_tokens": 1});
    // What compiles now takes its time.
    let busy = server.app.compilers.acquire_many(COMPILERS as u32).await.unwrap();
    let ask = || tokio::spawn(server.router.clone().oneshot(post(COMPLETIONS, form("[0-9]{2}"))));
    let first = ask();
    server.until(|counts| counts.waiting == 1).await;
    server.ok(COMPLETIONS, &plain).await;
    let second = ask();
    server.until(|counts| counts.waiting == 2).await;
    let refused = server.send(post(COMPLETIONS, form("("))).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "it is not looked at");
    drop(busy);
    for waiting in [first, second] {
        assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    let refused = server.send(post(COMPLETIONS, form("("))).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}
