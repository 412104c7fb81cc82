//! Tools, and whether the model has to call one.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::ApiError;

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct Tool {
    /// `function`: no other is supported.
    #[serde(rename = "type")]
    kind: String,
    /// The function.
    function: Function,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// What it does.
    #[allow(dead_code, reason = "the chat template reads the tool as it came")]
    description: Option<String>,
    /// The JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

/// Whether the model has to call a function: `none`, `auto`, `required`, or the name of one.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\", or an object that names a function"
)]
pub(crate) enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(ToolMode),
    /// One function.
    Named {
        /// `function`.
        #[serde(rename = "type")]
        kind: ToolKind,
        /// Which one.
        function: FunctionName,
    },
}

/// Whether the model has to call a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolMode {
    /// It calls none.
    None,
    /// As it likes.
    Auto,
    /// One at least.
    Required,
}

/// The kind of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToolKind {
    /// A function.
    Function,
}

/// A function's name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct FunctionName {
    /// The name.
    name: String,
}

/// The functions that the model has to choose from; none where it need not call any.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToolPlan {
    /// Whether the answer is searched for calls, and the template told of the tools.
    pub(crate) is_on: bool,
    /// One of which must be called.
    pub(crate) forced: Vec<Function>,
    /// Whether there is to be one call only.
    pub(crate) single: bool,
}

impl Function {
    /// The schema of its arguments.
    pub(crate) fn schema(&self) -> Value {
        self.parameters.clone().unwrap_or_else(|| json!({"type": "object"}))
    }
}

/// What `tools`, `tool_choice` and `parallel_tool_calls` come to.
///
/// # Errors
/// Tools that are none; a choice that cannot be made of them.
pub(crate) fn plan(
    tools: &[Tool],
    choice: Option<&ToolChoice>,
    parallel: Option<bool>,
) -> Result<ToolPlan, ApiError> {
    for (index, tool) in tools.iter().enumerate() {
        let field = format!("tools[{index}]");
        if tool.kind != "function" {
            let message = format!("{field}.type is {:?}, and only \"function\" is supported", tool.kind);
            return Err(ApiError::unsupported(format!("{field}.type"), message));
        }
        let name = &tool.function.name;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || name.len() > 128 || !name.bytes().all(is_plain) {
            let message =
                format!("{field}.function.name must be of letters, digits, `_`, `-` and `.`, 128 at most");
            return Err(ApiError::field(format!("{field}.function.name"), message));
        }
        if tool.function.parameters.as_ref().is_some_and(|schema| !schema.is_object()) {
            let field = format!("{field}.function.parameters");
            return Err(ApiError::field(&field, format!("{field} must be a JSON schema")));
        }
    }
    let mode = match choice {
        None | Some(ToolChoice::Mode(ToolMode::Auto)) => ToolMode::Auto,
        Some(ToolChoice::Mode(mode)) => *mode,
        Some(ToolChoice::Named { .. }) => ToolMode::Required,
    };
    if tools.is_empty() && mode == ToolMode::Required {
        return Err(ApiError::field("tool_choice", "tool_choice asks for a call, but there are no tools"));
    }
    let functions = tools.iter().map(|tool| tool.function.clone());
    let forced: Vec<Function> = match choice {
        Some(ToolChoice::Named { kind: ToolKind::Function, function: FunctionName { name } }) => {
            let named: Vec<_> = functions.filter(|function| function.name == *name).collect();
            if named.is_empty() {
                let message = format!("tool_choice names {name:?}, which is none of the tools");
                return Err(ApiError::field("tool_choice", message));
            }
            named
        }
        Some(ToolChoice::Mode(ToolMode::Required)) => functions.collect(),
        _ => Vec::new(),
    };
    let is_named = matches!(choice, Some(ToolChoice::Named { .. }));
    Ok(ToolPlan {
        is_on: !tools.is_empty() && mode != ToolMode::None,
        forced,
        single: is_named || parallel == Some(false),
    })
}
