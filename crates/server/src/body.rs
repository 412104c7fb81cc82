//! From bytes to the fields of a request, with errors that name the field.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::sync::Arc;
use tokio::time;

use crate::{ApiError, app::App};

/// A request's body as it came: JSON by its header, no larger than allowed, and not slower.
pub(crate) struct JsonBody(pub(crate) Bytes);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let limit = app.config.limits.body;
        if !is_json(request.headers()) {
            return Err(ApiError::not_json());
        }
        let read = read(request.into_body(), limit);
        match time::timeout(app.config.limits.read_time, read).await {
            Ok(bytes) => bytes.map(Self),
            Err(_) => Err(ApiError::slow_body()),
        }
    }
}

async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Err(error) if error.source().is_some_and(<dyn std::error::Error>::is::<LengthLimitError>) => {
            Err(ApiError::too_large(limit))
        }
        Err(error) => Err(ApiError::body(format!("the request's body cannot be read: {error}"))),
    }
}

/// `application/json`, with parameters or without.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = value.and_then(|value| value.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// The fields of a body that is a JSON object.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::body("the request's body must be a JSON object")),
        Err(error) => Err(ApiError::body(format!("the request's body is not JSON: {error}"))),
    }
}

/// Those of the fields that `T` has. Others are not looked at.
pub(crate) fn fields<T: DeserializeOwned>(object: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        match (path.as_str(), missing) {
            (".", Some(name)) => ApiError::field(name, format!("{name} is missing")),
            (".", None) => ApiError::body(message),
            (path, Some(name)) => {
                ApiError::field(format!("{path}.{name}"), format!("{path}.{name} is missing"))
            }
            (path, None) => ApiError::field(path, format!("{path}: {message}")),
        }
    })
}
