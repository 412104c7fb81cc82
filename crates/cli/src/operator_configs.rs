//! The operator configs of a run: made for the model (stage 2), or read from files that `dsv3 config` wrote.

use crate::{
    args::{OperatorConfigArgs, Precision, PrecisionArgs},
    model::OpenModel,
};
use anyhow::{Result, bail};
use dsv3_deepseek::{HfConfig, Model, ModelConfig};
use dsv3_engine::read_json;
use dsv3_mesh::Layout;
use dsv3_runtime::{Mode, Module, ops::Arithmetic};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The field of each matrix product that says in what arithmetic it is done.
const ARITHMETIC: &str = "arithmetic";
/// The fields that a file may set otherwise: how work is divided, which changes no result, the arithmetic, and how
/// devices exchange activations.
const TUNABLE: [&str; 4] = ["rows_per_task", ARITHMETIC, "payload", "topology"];
/// Where nothing may be tuned: which experts a token goes to travels with the token, and must stay exact.
const EXACT: &str = "all_to_all";

/// The operator configs of both modes, the same for every device of a mesh.
#[derive(Clone, Serialize, Deserialize)]
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
    /// A model that does not divide over the mesh.
    pub(crate) fn generate(hf: &HfConfig, layout: Layout) -> Result<Self> {
        Ok(Self {
            prefill: Model::prefill_model_config(hf, layout)?,
            decode: Model::decode_model_config(hf, layout)?,
        })
    }

    /// Stage 2 for a model, with every matrix product in the arithmetic of its mode.
    ///
    /// # Errors
    /// A model that does not divide over the mesh.
    pub(crate) fn with_precision(hf: &HfConfig, layout: Layout, precision: Precision) -> Result<Self> {
        let configs = Self::generate(hf, layout)?;
        Ok(Self {
            prefill: with_arithmetic(&configs.prefill, |_| precision.in_mode(Mode::Prefill))?,
            decode: with_arithmetic(&configs.decode, |_| precision.in_mode(Mode::Decode))?,
        })
    }

    /// Those of a model, each from its file where there is one. The arithmetic is what is asked for; else the file's,
    /// in the order that is asked for, and the fast one where there is no file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds the config of another model; the message names file and field.
    pub(crate) fn open(
        model: &OpenModel,
        layout: Layout,
        args: &OperatorConfigArgs,
        precision: PrecisionArgs,
    ) -> Result<Self> {
        // `dsv3 config` reads config.json alone and does not know that the checkpoint has no MTP layer.
        let mut hf = model.hf.clone();
        if model.lacks_mtp {
            hf.mtp_layers = 1;
        }
        let Self { mut prefill, mut decode } = Self::generate(&hf, layout)?;
        let modes = [
            (&args.prefill_config, &mut prefill, Mode::Prefill),
            (&args.decode_config, &mut decode, Mode::Decode),
        ];
        for (file, config, mode) in modes {
            if let Some(path) = file {
                *config = read(path, config)?;
            }
            if file.is_none() || precision.arithmetic.is_some() {
                *config = with_arithmetic(config, |_| precision.or_fast().in_mode(mode))?;
            } else if let Some(order) = precision.order_in(mode) {
                *config = with_arithmetic(config, |own| own.in_order(order))?;
            }
            if model.lacks_mtp {
                config.mtp = None;
            }
        }
        Ok(Self { prefill, decode })
    }
}

/// `config` with every matrix product in the arithmetic that its own becomes, wherever in the tree it is.
fn with_arithmetic(config: &ModelConfig, of: impl Fn(Arithmetic) -> Arithmetic) -> Result<ModelConfig> {
    let mut tree = serde_json::to_value(config)?;
    change_everywhere(&mut tree, ARITHMETIC, &|own| {
        let changed = of(serde_json::from_value(own.take())?);
        *own = serde_json::to_value(changed)?;
        Ok(())
    })?;
    Ok(serde_json::from_value(tree)?)
}

/// Changes a field in every object that has it.
fn change_everywhere(
    tree: &mut Value,
    field: &str,
    change: &impl Fn(&mut Value) -> Result<()>,
) -> Result<()> {
    match tree {
        Value::Object(fields) => fields.iter_mut().try_for_each(|(name, value)| match name == field {
            true => change(value),
            false => change_everywhere(value, field, change),
        }),
        Value::Array(values) => {
            values.iter_mut().try_for_each(|value| change_everywhere(value, field, change))
        }
        _ => Ok(()),
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
            Some(_) if TUNABLE.contains(&name.as_str()) => None,
            Some(other) if name == EXACT => {
                (value != other).then(|| difference(inner(name), Some(value), Some(other)))
            }
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
    use dsv3_runtime::Order;
    use serde_json::json;

    #[test]
    fn the_arithmetic_is_set_in_every_product_and_nowhere_else() {
        let hf = HfConfig::from_json(Path::new("config.json"), crate::embedded::CONFIG_JSON).unwrap();
        let before = OperatorConfigs::generate(&hf, Layout::SINGLE).unwrap();
        let float = serde_json::to_string(&before.prefill).unwrap();
        let fast = PrecisionArgs::default().or_fast();
        let after = OperatorConfigs::with_precision(&hf, Layout::SINGLE, fast).unwrap();
        let integer = serde_json::to_string(&after.prefill).unwrap();
        assert!(float.contains("\"arithmetic\":\"float\"") && !float.contains("\"integer\""));
        assert_eq!(integer, float.replace("\"float\"", "\"integer\""));
        let back = with_arithmetic(&after.decode, |_| Arithmetic::Float).unwrap();
        assert_eq!(back, before.decode);
        let repeatable = PrecisionArgs::default().or_repeatable().or_exact();
        let OperatorConfigs { prefill, decode } =
            OperatorConfigs::with_precision(&hf, Layout::SINGLE, repeatable).unwrap();
        assert_eq!(serde_json::to_string(&prefill).unwrap(), float.replace("\"float\"", "\"float_many\""));
        assert!(serde_json::to_string(&decode).unwrap().contains("\"float_few\""));
        // What a file has keeps its arithmetic, and takes the order.
        let ordered = with_arithmetic(&before.decode, |own| own.in_order(Order::Few)).unwrap();
        assert_eq!(ordered, decode);
        let unordered = with_arithmetic(&ordered, |own| own.in_order(Order::Fastest)).unwrap();
        assert_eq!(unordered, before.decode);
    }

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
