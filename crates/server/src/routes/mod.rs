//! What there is under which path.

mod chat;
mod completions;
mod experts;
mod health;
mod models;
mod tokenize;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::Request,
    http::{HeaderValue, Method, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use dsv3_engine::{Error, Submission, Tokenizer, Usage, random_seed};
use tokio::time::Instant;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    ApiError,
    answer::Running,
    app::{App, Served, now},
    auth, hosts, log, page,
};

/// What an answer says of itself.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl Head {
    fn new(kind: &str, served: &Served) -> Self {
        Self {
            id: format!("{kind}-{:016x}", random_seed()),
            created: now(),
            model: served.name().to_owned(),
            tokenizer: Arc::clone(served.engine.tokenizer()),
        }
    }
}

/// Of an answer that the engine gave up because it ends.
fn cancelled() -> ApiError {
    ApiError::unavailable("the server is shutting down, and gave up the answer", None)
}

fn log_end(usage: &Usage) {
    tracing::info!(
        prompt_tokens = usage.prompt_tokens,
        cached_tokens = usage.cached_tokens,
        completion_tokens = usage.completion_tokens,
        queued_ms = usage.queued.as_millis() as u64,
        first_token_ms = usage.time_to_first_token.as_millis() as u64,
        "answered"
    );
}

/// The fields of a request that errors name.
#[derive(Clone, Copy)]
struct Fields {
    /// The one that asked for a form.
    form: &'static str,
    /// The one that is the prompt.
    prompt: &'static str,
}

impl Fields {
    fn name(self, error: &Error, served: &Served) -> ApiError {
        let queue = served.engine.snapshot().queue_time;
        let mean = queue.sum() / queue.count().max(1) as f64;
        let error = ApiError::from(error).with_retry_after((mean.ceil() as u64).clamp(1, 60));
        let error = error.renamed("prompt", self.prompt);
        ["json_schema", "regex", "grammar"]
            .into_iter()
            .fold(error, |error, field| error.renamed(field, self.form))
    }
}

impl App {
    /// Asks the engine: takes places in its queue first, and only then compiles the form of the answer, if there is one.
    ///
    /// # Errors
    /// What the engine says.
    async fn submit(
        self: &Arc<Self>,
        submissions: Vec<Submission>,
        fields: Fields,
    ) -> Result<Running, ApiError> {
        let deadline = self.config.limits.request_time.map(|limit| (Instant::now() + limit, limit));
        let served = self.ready()?;
        let has_form = submissions.iter().any(|submission| submission.request.constraint.is_some());
        let places = submissions
            .into_iter()
            .map(|submission| Ok((served.engine.place(&submission)?, submission)))
            .collect::<Result<Vec<_>, Error>>();
        let asked = places.map_err(|error| fields.name(&error, served))?;
        let submit = move |served: &Served| {
            Running::submit(&served.engine, asked, deadline).map_err(|error| fields.name(&error, served))
        };
        if has_form { self.compile(move |_, served| submit(served)).await } else { submit(served) }
    }
}

/// What the document says of the server.
#[derive(OpenApi)]
#[openapi(
    info(title = "dsv3", description = "DeepSeek-V3 inference, as OpenAI's clients expect it."),
    modifiers(&Keys)
)]
struct About;

/// That a key may be needed.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("key", scheme);
        document.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("key", [])]);
    }
}

/// The paths that need a key, those that do not, and what describes them all.
fn described() -> (Router<Arc<App>>, Router<Arc<App>>, Document) {
    let (routes, mut document) = OpenApiRouter::with_openapi(About::openapi())
        .routes(routes!(chat::chat_completions))
        .routes(routes!(completions::completions))
        .routes(routes!(models::list))
        .routes(routes!(models::one))
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        .routes(routes!(tokenize::vllm_tokenize))
        .routes(routes!(tokenize::vllm_detokenize))
        .routes(routes!(health::metrics))
        .split_for_parts();
    let (open, open_document) = OpenApiRouter::new().routes(routes!(health::health)).split_for_parts();
    document.merge(open_document);
    (routes, open, document)
}

/// The document alone.
#[cfg(test)]
pub(crate) fn document() -> Document {
    described().2
}

/// All that the server has.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let (routes, open, document) = described();
    let routes = routes
        .route("/openapi.json", get(openapi))
        // The page's own, and endless: not for who goes through the document.
        .route("/v1/experts", get(experts::experts))
        .layer(Extension(Arc::new(document)))
        .layer(middleware::from_fn_with_state(Arc::clone(app), auth::check));
    let router = routes
        .merge(open)
        .merge(page::router())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(Arc::clone(app))
        .layer(CatchPanicLayer::custom(|_| ApiError::server("the server panicked").into_response()));
    let router = match cors(&app.config.cors_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(middleware::from_fn_with_state(Arc::clone(app), hosts::check))
        .layer(middleware::from_fn_with_state(Arc::clone(app), log::requests))
}

/// The OpenAPI document. It is about itself not.
async fn openapi(Extension(document): Extension<Arc<Document>>) -> Response {
    Json(&*document).into_response()
}

async fn no_route(request: Request) -> ApiError {
    ApiError::no_route(request.uri().path())
}

async fn no_method(request: Request) -> ApiError {
    ApiError::method(request.method().as_str(), request.uri().path())
}

/// Web pages of these origins may ask; of none others.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE]),
    )
}
