//! POST /v1/tokenize and /v1/detokenize, and the same under vLLM's paths.

use std::sync::Arc;

use axum::{Json, extract::State};
use dsv3_engine::{Bos, ChatOptions};
use dsv3_runtime::TokenId;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    ApiError,
    app::{App, Served},
    body::{self, JsonBody},
    error::ErrorResponse,
    prepare,
    reply::token_text,
    request::{
        names,
        tokenize::{DETOKENIZE_NAMES, DetokenizeRequest, TOKENIZE_NAMES, TokenizeRequest},
    },
};

/// The tokens of a text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tokens {
    /// How many there are.
    count: usize,
    /// How many there may be.
    max_model_len: usize,
    /// Their ids.
    tokens: Vec<u32>,
    /// Their texts, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

/// The text of tokens.
#[derive(Serialize, ToSchema)]
pub(crate) struct Text {
    /// The text.
    prompt: String,
}

/// The tokens of a text or a conversation
#[utoipa::path(post, path = "/v1/tokenize", tag = "tokens", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = Tokens),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(bytes): JsonBody,
) -> Result<Json<Tokens>, ApiError> {
    app.work(move |_, served| tokens(served, &bytes)).await.map(Json)
}

/// The text of tokens
#[utoipa::path(post, path = "/v1/detokenize", tag = "tokens", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = Text),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(bytes): JsonBody,
) -> Result<Json<Text>, ApiError> {
    app.work(move |_, served| text(served, &bytes)).await.map(Json)
}

/// The same as /v1/tokenize, where vLLM has it
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = Tokens),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn vllm_tokenize(app: State<Arc<App>>, body: JsonBody) -> Result<Json<Tokens>, ApiError> {
    tokenize(app, body).await
}

/// The same as /v1/detokenize, where vLLM has it
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = Text),
    (status = "default", description = "An error", body = ErrorResponse),
))]
pub(crate) async fn vllm_detokenize(app: State<Arc<App>>, body: JsonBody) -> Result<Json<Text>, ApiError> {
    detokenize(app, body).await
}

fn tokens(served: &Served, bytes: &[u8]) -> Result<Tokens, ApiError> {
    let mut object = body::object(bytes)?;
    names::check(&mut object, TOKENIZE_NAMES)?;
    let request: TokenizeRequest = body::fields(&Value::Object(object))?;
    served.check_name(request.model.as_deref())?;
    let tokenizer = served.engine.tokenizer();
    let tokens = match (&request.prompt, &request.messages) {
        (Some(text), None) => {
            let bos = if request.add_special_tokens.unwrap_or(true) { Bos::Add } else { Bos::AsWritten };
            tokenizer
                .encode(text, bos)
                .map_err(|error| ApiError::from(error).renamed("messages", "prompt"))?
        }
        (None, Some(messages)) => {
            let goes_on = request.continue_final_message.unwrap_or(false);
            let options = ChatOptions {
                add_generation_prompt: request.add_generation_prompt.unwrap_or(!goes_on),
                continue_final_message: goes_on,
                tools: request.tools.clone(),
                variables: prepare::variables(request.chat_template_kwargs.as_ref()),
                ..ChatOptions::default()
            };
            served.render(messages, &options)?.1
        }
        _ => return Err(ApiError::field("prompt", "expected one of prompt and messages")),
    };
    let strings = || tokens.iter().map(|&token| token_text(tokenizer, token)).collect();
    Ok(Tokens {
        count: tokens.len(),
        max_model_len: served.engine.limits().context(),
        token_strs: request.return_token_strs.unwrap_or(false).then(strings),
        tokens: tokens.iter().map(|token| token.0).collect(),
    })
}

fn text(served: &Served, bytes: &[u8]) -> Result<Text, ApiError> {
    let mut object = body::object(bytes)?;
    names::check(&mut object, DETOKENIZE_NAMES)?;
    let request: DetokenizeRequest = body::fields(&Value::Object(object))?;
    served.check_name(request.model.as_deref())?;
    let vocab_size = served.engine.limits().vocab_size;
    if let Some(position) = request.tokens.iter().position(|&id| id as usize >= vocab_size) {
        let id = request.tokens[position];
        let field = format!("tokens[{position}]");
        let message = format!("{field} is {id}, but the vocabulary has {vocab_size} ids");
        return Err(ApiError::field(field, message));
    }
    let tokens: Vec<TokenId> = request.tokens.into_iter().map(TokenId).collect();
    Ok(Text { prompt: served.engine.tokenizer().decode(&tokens, false) })
}
