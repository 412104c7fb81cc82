//! GET /v1/models.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    ApiError,
    app::{App, Served},
    error::ErrorResponse,
};

/// The models of the server.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`.
    object: &'static str,
    data: Vec<ModelCard>,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelCard {
    /// Its name.
    id: String,
    /// `model`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    /// `dsv3`.
    owned_by: &'static str,
    /// Tokens that a prompt and its answer may have together.
    max_model_len: usize,
}

fn card(served: &Served, name: &str) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: served.since,
        owned_by: "dsv3",
        max_model_len: served.engine.limits().context(),
    }
}

/// The models
#[utoipa::path(get, path = "/v1/models", tag = "models", responses(
    (status = 200, description = "The models", body = ModelList),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let served = app.served()?;
    let data = served.info.names.iter().map(|name| card(served, name)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// One model
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models", params(
    ("id" = String, Path, description = "The model's name"),
), responses(
    (status = 200, description = "The model", body = ModelCard),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let served = app.served()?;
    let Ok(Path(id)) = id else { return Err(ApiError::no_model("", served.name())) };
    served.check_name(Some(&id))?;
    Ok(Json(card(served, &id)))
}
