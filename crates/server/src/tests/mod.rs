//! The server over an automaton, without a socket.

mod answers;
mod forms;
mod limits;
mod page;
mod refusals;

use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use dsv3_engine::{
    Bos, ChatTemplate, EngineConfig, EngineThread, Error, GenerationConfig, ModelLimits, NamedTemplate,
    Snapshot, TokenizerConfig,
    testing::{self, EOS, FakeModel, VOCAB_SIZE, hashed, one_hot, tokenizer},
};
use dsv3_runtime::TokenId;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    ServerConfig,
    app::{App, ModelInfo, Served},
    routes,
};

const LIMITS: ModelLimits =
    ModelLimits { vocab_size: VOCAB_SIZE, max_context: 2048, page_size: 16, page_count: 512, rows: 1 };

/// A server, and the engine behind it.
struct Fixture {
    router: Router,
    app: Arc<App>,
    engine: EngineThread,
}

/// What the model does.
enum Model {
    /// Says this after the last `<｜Assistant｜>` and the tag that follows it, and then ends.
    Says(&'static str),
    /// What comes next is a hash of what was.
    Hashes,
    /// The same, so slowly.
    Slow(Duration),
}

/// From all tokens of a sequence to the logits.
type Next = Box<dyn FnMut(&[TokenId]) -> Vec<f32>>;

impl Model {
    fn next(self) -> Next {
        match self {
            Self::Hashes => Box::new(hashed),
            Self::Slow(time) => Box::new(move |tokens| {
                std::thread::sleep(time);
                // Nothing ends it.
                let mut logits = hashed(tokens);
                logits[EOS.0 as usize] = f32::NEG_INFINITY;
                logits
            }),
            Self::Says(text) => {
                let answer = tokenizer().encode(text, Bos::AsWritten).unwrap();
                let mark = tokenizer().token_id("<｜Assistant｜>").unwrap();
                Box::new(move |tokens| {
                    let begin = tokens.iter().rposition(|&token| token == mark).map_or(0, |place| place + 2);
                    one_hot(answer.get(tokens.len() - begin.min(tokens.len())).copied().unwrap_or(EOS))
                })
            }
        }
    }
}

impl Fixture {
    fn new(model: Model) -> Self {
        Self::with(model, ServerConfig::default(), EngineConfig::default())
    }

    fn with(model: Model, config: ServerConfig, engine: EngineConfig) -> Self {
        let open = move || Ok::<_, Error>(FakeModel::new(LIMITS, model.next()));
        let engine = EngineThread::start(Arc::clone(tokenizer()), engine, open).unwrap();
        let app = Arc::new(App::new(config, Ipv4Addr::LOCALHOST.into()));
        assert!(app.model.set(Served::new(engine.handle(), info())).is_ok());
        Self { router: routes::router(&app), app, engine }
    }

    async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let response = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        (response.status(), text(response).await)
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response = self.send(post(path, body.to_string())).await;
        let status = response.status();
        (status, serde_json::from_str(&text(response).await).unwrap())
    }

    /// The answer, which must be one.
    async fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{body}: {answer}");
        answer
    }

    /// The events of a stream, `[DONE]` left out, which must be there.
    async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.send(post(path, body.to_string())).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        let text = text(response).await;
        let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.into_iter().map(event).collect()
    }

    fn counts(&self) -> Snapshot {
        self.engine.handle().snapshot()
    }

    /// Waits until what the engine has counted is so.
    async fn until(&self, condition: impl Fn(&Snapshot) -> bool) {
        for _ in 0..10_000 {
            if condition(&self.counts()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("it does not come: {:?}", self.counts());
    }
}

fn info() -> ModelInfo {
    let template = include_str!("../../../engine/src/chat/templates/v31.jinja").to_owned();
    let chat_templates = vec![NamedTemplate { name: "default".to_owned(), template }];
    let config = TokenizerConfig { chat_templates, ..testing::config() };
    ModelInfo {
        names: vec!["fake".to_owned(), "alias".to_owned()],
        template: Some(ChatTemplate::new(Path::new("chat_template.jinja"), &config).unwrap()),
        defaults: GenerationConfig::default(),
        end_tokens: vec![EOS],
    }
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

async fn text(response: Response) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A conversation of one question, with more fields.
fn chat(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
