//! Logs: a line for each request, to stderr. What is asked and answered is not logged unless that is asked for.

use std::{io, sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use dsv3_engine::random_seed;
use tracing::Instrument;
use tracing_subscriber::EnvFilter;

use crate::{LogFormat, app::App};

/// By which a client can name a request to who reads the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Begins to log; `RUST_LOG` says what, as ever. Where somebody logs already, they go on.
pub(crate) fn start(format: LogFormat) {
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = || tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter());
    // An error means that there is a logger already.
    let _ = match format {
        LogFormat::Off => Ok(()),
        LogFormat::Text => {
            let has_colors = io::IsTerminal::is_terminal(&io::stderr());
            builder().with_ansi(has_colors).with_target(false).try_init()
        }
        LogFormat::Json => builder().json().flatten_event(true).with_current_span(true).try_init(),
    };
}

/// Names each request, counts it, and logs it when its response begins.
pub(crate) async fn requests(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = format!("{:016x}", random_seed());
    let method = request.method().clone();
    // Paths that are none of the server's are not told apart.
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id);
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    app.metrics.responded(&path, status);
    let ms = start.elapsed().as_millis() as u64;
    span.in_scope(|| tracing::info!(%method, path, status, ms, "responded"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

impl App {
    /// Logs what was asked, where that is wanted.
    pub(crate) fn log_body(&self, bytes: &[u8]) {
        if self.config.log_prompts {
            tracing::info!(body = %String::from_utf8_lossy(bytes), "asked");
        }
    }
}
