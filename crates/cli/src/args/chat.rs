//! `dsv3 chat`.

use super::{DeviceArgs, ModelArgs, OperatorConfigArgs, RunningArgs, SamplingArgs};
use clap::Args;
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// `dsv3 chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The system message, which stands before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Go on with a conversation that /save has written, or with any JSON list of messages
    #[arg(long, value_name = "FILE", conflicts_with = "system")]
    pub(crate) load: Option<PathBuf>,
    /// Variables of the chat template, as a JSON object: {"thinking": true}
    #[arg(long, value_name = "JSON", value_parser = template_kwargs, default_value = "{}", hide_default_value = true)]
    pub(crate) template_kwargs: TemplateKwargs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) running: RunningArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) configs: OperatorConfigArgs,
}

/// Variables of a chat template, by name.
pub(crate) type TemplateKwargs = BTreeMap<String, Value>;

fn template_kwargs(text: &str) -> Result<TemplateKwargs, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_an_object() {
        assert_eq!(template_kwargs(r#"{"thinking": true}"#).unwrap()["thinking"], Value::Bool(true));
        assert!(template_kwargs("thinking").is_err() && template_kwargs("[]").is_err());
    }
}
