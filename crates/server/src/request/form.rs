//! The form of an answer: `response_format`, and vLLM's `structured_outputs` with its older `guided_` fields.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::ApiError;

/// The form that an answer must have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// JSON of a schema.
    Json(Value),
    /// What an expression matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar, in llguidance's Lark.
    Grammar(String),
}

/// OpenAI's form of the answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema {
        /// The schema.
        json_schema: NamedSchema,
    },
}

/// A JSON schema with a name. It is kept to whether `strict` or not.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct NamedSchema {
    /// Its name.
    #[allow(dead_code, reason = "it is the client's")]
    name: Option<String>,
    /// The schema; any JSON without one.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
}

/// vLLM's form of the answer: one of these.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    /// A JSON schema, as an object or as text.
    #[schema(value_type = Option<Object>)]
    pub(crate) json: Option<Value>,
    /// A regular expression (of Rust's `regex`) for the whole answer.
    pub(crate) regex: Option<String>,
    /// The answers that there may be.
    pub(crate) choice: Option<Vec<String>>,
    /// A grammar in llguidance's Lark.
    pub(crate) grammar: Option<String>,
    /// Whether it is any JSON object.
    pub(crate) json_object: Option<bool>,
}

impl ResponseFormat {
    /// None for any text.
    pub(crate) fn form(&self) -> Result<Option<Form>, ApiError> {
        match self {
            Self::Text => Ok(None),
            Self::JsonObject => Ok(Some(Form::Json(json!({"type": "object"})))),
            Self::JsonSchema { json_schema } => {
                let schema = json_schema.schema.clone().unwrap_or(Value::Bool(true));
                schema_of(schema, "response_format.json_schema.schema").map(Some)
            }
        }
    }
}

impl StructuredOutputs {
    /// The one form.
    pub(crate) fn form(&self) -> Result<Form, ApiError> {
        let mut forms = self.forms("structured_outputs.")?;
        match (forms.pop(), forms.pop()) {
            (Some((form, _)), None) => Ok(form),
            _ => {
                let message = "structured_outputs must have one of json, json_object, regex, choice, grammar";
                Err(ApiError::field("structured_outputs", message))
            }
        }
    }

    /// All forms, each with the field's name.
    pub(crate) fn forms(&self, prefix: &str) -> Result<Vec<(Form, &'static str)>, ApiError> {
        let mut forms = Vec::new();
        if let Some(schema) = &self.json {
            forms.push((schema_of(schema.clone(), &format!("{prefix}json"))?, "guided_json"));
        }
        if let Some(regex) = &self.regex {
            forms.push((Form::Regex(regex.clone()), "guided_regex"));
        }
        if let Some(choice) = &self.choice {
            if choice.is_empty() || choice.iter().any(String::is_empty) {
                let message = "choice must be a list of texts that are not empty";
                return Err(ApiError::field(format!("{prefix}choice"), message));
            }
            forms.push((Form::Choice(choice.clone()), "guided_choice"));
        }
        if let Some(grammar) = &self.grammar {
            forms.push((Form::Grammar(grammar.clone()), "guided_grammar"));
        }
        if self.json_object == Some(true) {
            forms.push((Form::Json(json!({"type": "object"})), "structured_outputs"));
        }
        Ok(forms)
    }
}

/// A schema as it is, or as text.
fn schema_of(schema: Value, field: &str) -> Result<Form, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::field(field, format!("{field}: expected JSON: {error}")))?,
        schema => schema,
    };
    match schema {
        Value::Object(_) | Value::Bool(true) => Ok(Form::Json(schema)),
        _ => Err(ApiError::field(field, format!("{field} must be a JSON schema"))),
    }
}
