//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use dsv3_engine::Error;
use serde::Serialize;
use utoipa::ToSchema;

/// Tells OpenAI's clients whether trying again can help.
const SHOULD_RETRY: &str = "x-should-retry";

/// An error as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to try again.
    retry_after: Option<u64>,
    /// Whether trying again is of no use, though the status says so.
    is_final: bool,
}

/// The body of every answer that is an error.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorResponse {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// For people.
    message: String,
    /// The kind of error: `invalid_request_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field at fault.
    param: Option<String>,
    /// For programs.
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, kind, message, param: None, code: None, retry_after: None, is_final: false }
    }

    fn invalid(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// 400 for a field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::invalid(StatusCode::BAD_REQUEST, message);
        error.param = Some(param.into());
        error
    }

    /// 400 for a field that is known and not supported.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, message) }
    }

    /// 400 for a field that nobody knows.
    pub(crate) fn unknown(param: &str) -> Self {
        let message = format!("{param} is no field of this request: is it misspelt?");
        Self { code: Some("unknown_parameter"), ..Self::field(param, message) }
    }

    /// 400 for a body as a whole.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self { code: Some("invalid_json"), ..Self::invalid(StatusCode::BAD_REQUEST, message) }
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request's body is larger than {limit} bytes");
        Self { code: Some("too_large"), ..Self::invalid(StatusCode::PAYLOAD_TOO_LARGE, message) }
    }

    /// 415.
    pub(crate) fn not_json() -> Self {
        let message = "the header Content-Type must be application/json";
        Self::invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// 408 for a body that does not come.
    pub(crate) fn slow_body() -> Self {
        Self::invalid(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time")
    }

    /// 408 for an answer that takes longer than the server allows.
    pub(crate) fn time_limit(seconds: u64) -> Self {
        let message = format!("the answer took longer than the {seconds} s that this server gives a request");
        let code = Some("time_limit");
        Self { code, is_final: true, ..Self::invalid(StatusCode::REQUEST_TIMEOUT, message) }
    }

    /// 401.
    pub(crate) fn unauthorized() -> Self {
        let message =
            "this server needs an API key, as in `Authorization: Bearer KEY`: none was given, or another";
        Self { code: Some("invalid_api_key"), ..Self::invalid(StatusCode::UNAUTHORIZED, message) }
    }

    /// 403 for a name that is not the server's.
    pub(crate) fn unknown_host(host: &str) -> Self {
        let name = crate::hosts::plain(host);
        let message = format!(
            "this server does not answer to {host:?}: start it with --allowed-host {name} if it is to"
        );
        Self { code: Some("host_not_allowed"), ..Self::invalid(StatusCode::FORBIDDEN, message) }
    }

    /// 403 for a page of another site.
    pub(crate) fn unknown_origin(origin: &str) -> Self {
        let message = format!(
            "this server takes nothing from pages of {origin:?}: start it with --cors-origin {origin} if it is to, or \
             with --allowed-host if the server has that name"
        );
        Self { code: Some("origin_not_allowed"), ..Self::invalid(StatusCode::FORBIDDEN, message) }
    }

    /// 404 for a path.
    pub(crate) fn no_route(path: &str) -> Self {
        let message = format!("there is nothing at {path}: GET /openapi.json says what there is");
        Self { code: Some("not_found"), ..Self::invalid(StatusCode::NOT_FOUND, message) }
    }

    /// 405.
    pub(crate) fn method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self { code: Some("method_not_allowed"), ..Self::invalid(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    /// 404 for a model.
    pub(crate) fn no_model(asked: &str, served: &str) -> Self {
        let message = format!("there is no model {asked:?}: this server has {served:?}");
        let (param, code) = (Some("model".to_owned()), Some("model_not_found"));
        Self { param, code, ..Self::invalid(StatusCode::NOT_FOUND, message) }
    }

    /// 503, with when to try again.
    pub(crate) fn unavailable(message: impl Into<String>, retry_after: Option<u64>) -> Self {
        let code = Some("unavailable");
        Self { code, retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message) }
    }

    /// 500.
    pub(crate) fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// For a stream whose client does not read.
    pub(crate) fn slow_reader() -> Self {
        let message = "the answer was not read as fast as it came, and was cut off";
        Self { code: Some("slow_reader"), ..Self::invalid(StatusCode::REQUEST_TIMEOUT, message) }
    }

    /// As another field, if it is about one.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        if self.param.as_deref() == Some(from) {
            self.param = Some(to.to_owned());
        }
        self
    }

    /// With the seconds after which to try again, where it says to try again.
    pub(crate) fn with_retry_after(mut self, seconds: u64) -> Self {
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            self.retry_after = Some(seconds);
        }
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The field at fault.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// For people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// As it is sent.
    pub(crate) fn into_body(self) -> ErrorResponse {
        let Self { message, kind, param, code, .. } = self;
        ErrorResponse { error: ErrorDetail { message, kind, param, code } }
    }
}

/// What the engine refuses is the client's to mend, and what fails is not.
impl From<&Error> for ApiError {
    fn from(error: &Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Parameter { parameter, .. } => Self::field(*parameter, message),
            Error::Constraint { field, .. } => Self::field(*field, message),
            Error::EmptyPrompt | Error::TokenOutOfVocabulary { .. } => Self::field("prompt", message),
            Error::PromptTooLong { .. } => {
                Self { code: Some("context_length_exceeded"), ..Self::field("prompt", message) }
            }
            Error::UnknownRole { index, .. } => Self::field(format!("messages[{index}].role"), message),
            Error::ContentPart { index, .. } => Self::field(format!("messages[{index}].content"), message),
            // A template fails over messages that are not as it expects them.
            Error::TemplateRaised(_) | Error::Template { .. } | Error::Continue(_) | Error::Encode(_) => {
                Self::field("messages", message)
            }
            Error::QueueFull { .. } => Self {
                code: Some("queue_full"),
                retry_after: Some(1),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            },
            Error::ShuttingDown | Error::Failed(_) => Self::unavailable(message, None),
            _ => Self::server(message),
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry_after, is_final) = (self.status, self.retry_after, self.is_final);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(status = status.as_u16(), "{}", self.message);
        }
        let mut response = (status, Json(self.into_body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if is_final {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
