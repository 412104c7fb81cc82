//! GET /health and /metrics.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{ApiError, app::App, error::ErrorResponse};

/// That the server takes requests.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`.
    status: &'static str,
    /// The model's name.
    model: String,
}

/// Whether the server takes requests
///
/// 503 while the model is loaded, when the server shuts down, and after the model has failed. It needs no key.
#[utoipa::path(get, path = "/health", tag = "server", security(()), responses(
    (status = 200, description = "It does", body = Health),
    (status = 503, description = "It does not", body = ErrorResponse),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    let served = app.ready()?;
    Ok(Json(Health { status: "ok", model: served.name().to_owned() }))
}

/// What the server counts, for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, description = "OpenMetrics' text", body = String, content_type = "application/openmetrics-text"),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = app.metrics.text().map_err(|error| ApiError::server(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, TYPE)], text).into_response())
}
