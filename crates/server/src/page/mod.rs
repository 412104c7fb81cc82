//! What a browser finds at the server's address.

use std::sync::Arc;

use axum::{Router, extract::State, routing::get};

use crate::app::App;

/// Needs no key: it holds nothing that anybody may not know.
pub(crate) fn router() -> Router<Arc<App>> {
    Router::new().route("/", get(root))
}

async fn root(State(app): State<Arc<App>>) -> String {
    let model = app.model.get().map_or("a model that is being loaded", |served| served.name());
    format!("dsv3 serves {model} here, under /v1, to any client of OpenAI's API. /openapi.json says how.\n")
}
