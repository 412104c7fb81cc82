//! The operator configs of a run: made for the model (stage 2), or read from files that `dsv3 config` wrote.

use crate::{args::OperatorConfigArgs, model::OpenModel};
use anyhow::{Result, bail};
use dsv3_deepseek::{HfConfig, Model, ModelConfig};
use dsv3_engine::read_json;
use dsv3_mesh::MeshShape;
use dsv3_runtime::Module;
use serde_json::Value;
use std::path::Path;

/// The one field that a file may set otherwise: how work is divided, which changes no result.
const TUNABLE: &str = "rows_per_task";

/// The operator configs of both modes, for one device.
pub(crate) struct OperatorConfigs {
    /// Of prefill.
    pub(crate) prefill: ModelConfig,
    /// Of decode.
    pub(crate) decode: ModelConfig,
}

impl OperatorConfigs {
    /// Those of a model.
    ///
    /// # Errors
    /// A model that cannot run on one device.
    pub(crate) fn generate(hf: &HfConfig) -> Result<Self> {
        Ok(Self {
            prefill: Model::prefill_model_config(hf, MeshShape::SINGLE)?,
            decode: Model::decode_model_config(hf, MeshShape::SINGLE)?,
        })
    }

    /// Those of a model, each from its file where there is one.
    ///
    /// # Errors
    /// A file that cannot be read, or holds the config of another model; the message names file and field.
    pub(crate) fn open(model: &OpenModel, args: &OperatorConfigArgs) -> Result<Self> {
        // `dsv3 config` reads config.json alone and does not know that the checkpoint has no MTP layer.
        let mut hf = model.hf.clone();
        if model.lacks_mtp {
            hf.mtp_layers = 1;
        }
        let Self { mut prefill, mut decode } = Self::generate(&hf)?;
        for (file, config) in [(&args.prefill_config, &mut prefill), (&args.decode_config, &mut decode)] {
            if let Some(path) = file {
                *config = read(path, config)?;
            }
            if model.lacks_mtp {
                config.mtp = None;
            }
        }
        Ok(Self { prefill, decode })
    }
}

/// A config from a file, which must be the expected one but for what may be tuned.
fn read(path: &Path, expected: &ModelConfig) -> Result<ModelConfig> {
    let config: ModelConfig = read_json(path)?;
    let (expected, got) = (serde_json::to_value(expected)?, serde_json::to_value(&config)?);
    if let Some(Difference { field, expected, got }) = first_difference(&expected, &got, String::new()) {
        bail!("{}: {field}: expected {expected}, as this model has it, got {got}", path.display());
    }
    Ok(config)
}

/// Where two trees differ, and what stands there.
#[derive(Debug, PartialEq)]
struct Difference {
    field: String,
    expected: String,
    got: String,
}

/// The first difference, in the expected tree's order, that is not in a field that may be tuned.
fn first_difference(expected: &Value, got: &Value, field: String) -> Option<Difference> {
    let inner = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    if let (Value::Object(expected), Value::Object(got)) = (expected, got) {
        let missing = expected.iter().find_map(|(name, value)| match got.get(name) {
            Some(_) if name == TUNABLE => None,
            Some(other) => first_difference(value, other, inner(name)),
            None => Some(difference(inner(name), Some(value), None)),
        });
        let unexpected = || got.iter().find(|(name, _)| !expected.contains_key(*name));
        return missing
            .or_else(|| unexpected().map(|(name, value)| difference(inner(name), None, Some(value))));
    }
    (expected != got).then(|| difference(field, Some(expected), Some(got)))
}

fn difference(field: String, expected: Option<&Value>, got: Option<&Value>) -> Difference {
    let describe = |value: Option<&Value>| match value {
        None => "nothing".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(value) => value.to_string(),
    };
    Difference { field, expected: describe(expected), got: describe(got) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        let expected = json!({ "a": { "heads": 2, "rows_per_task": 4 }, "b": { "c": [1, 2] } });
        let differs = |got: Value| {
            first_difference(&expected, &got, String::new())
                .map(|difference| (difference.field, difference.expected, difference.got))
        };
        let named = |field: &str, expected: &str, got: &str| {
            Some((field.to_owned(), expected.to_owned(), got.to_owned()))
        };
        assert_eq!(differs(expected.clone()), None);
        assert_eq!(differs(json!({ "a": { "heads": 2, "rows_per_task": 9 }, "b": { "c": [1, 2] } })), None);
        assert_eq!(
            differs(json!({ "a": { "heads": 3, "rows_per_task": 9 }, "b": {} })),
            named("a.heads", "2", "3")
        );
        assert_eq!(
            differs(json!({ "a": { "heads": 2, "rows_per_task": 4 }, "b": { "c": [1] } })),
            named("b.c", "[1,2]", "[1]")
        );
        assert_eq!(
            differs(json!({ "a": { "heads": 2, "rows_per_task": 4 } })),
            named("b", "an object", "nothing")
        );
        assert_eq!(
            differs(json!({ "a": { "heads": 2, "rows_per_task": 4 }, "b": { "c": [1, 2] }, "mtp": 1 })),
            named("mtp", "nothing", "1")
        );
    }
}
