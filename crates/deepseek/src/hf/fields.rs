//! Typed access to the fields of a JSON object, with errors that name file and field.

use super::ConfigError;
use serde_json::{Map, Value};
use std::{
    ops::{Bound, RangeBounds, RangeInclusive},
    path::Path,
};

/// A JSON object of a file, and where in the file it stands.
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Dotted names of the objects around this one, each with its dot: empty at the top.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object at the top of a file.
    pub(super) fn top(path: &'a Path, value: &'a Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(object) => Ok(Self { path, prefix: String::new(), object }),
            other => Err(ConfigError::Syntax {
                path: path.to_owned(),
                message: format!("expected a JSON object, got {}", shown(Some(other))),
            }),
        }
    }

    /// A nested object; `None` where it is absent, null or empty, which transformers treats alike.
    pub(super) fn object(&self, field: &str) -> Result<Option<Self>, ConfigError> {
        match self.given(field) {
            None => Ok(None),
            Some(Value::Object(object)) if object.is_empty() => Ok(None),
            Some(Value::Object(object)) => {
                Ok(Some(Self { path: self.path, prefix: format!("{}{field}.", self.prefix), object }))
            }
            Some(_) => Err(self.error(field, "an object or null")),
        }
    }

    /// The value of a field that is there and not null.
    pub(super) fn given(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, be it as null.
    pub(super) fn contains(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// An integer in a range.
    pub(super) fn int(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        self.given(field)
            .and_then(Value::as_u64)
            .and_then(|value| usize::try_from(value).ok())
            .filter(|value| range.contains(value))
            .ok_or_else(|| self.error(field, format!("an integer from {} to {}", range.start(), range.end())))
    }

    /// An integer in a range, or `default` where the field is absent or null.
    pub(super) fn int_or(
        &self,
        field: &str,
        range: RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize, ConfigError> {
        if self.given(field).is_none() { Ok(default) } else { self.int(field, range) }
    }

    /// A number, integer or not, in a range.
    pub(super) fn number(&self, field: &str, range: impl RangeBounds<f64>) -> Result<f64, ConfigError> {
        self.given(field)
            .and_then(Value::as_f64)
            .filter(|value| value.is_finite() && range.contains(value))
            .ok_or_else(|| self.error(field, format!("a number {}", interval(&range))))
    }

    /// A number in a range, or `default` where the field is absent or null.
    pub(super) fn number_or(
        &self,
        field: &str,
        range: impl RangeBounds<f64>,
        default: f64,
    ) -> Result<f64, ConfigError> {
        if self.given(field).is_none() { Ok(default) } else { self.number(field, range) }
    }

    /// True or false, or `default` where the field is absent.
    pub(super) fn flag_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.object.get(field) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.error(field, "true or false")),
        }
    }

    /// Refuses any value of a field but one. Absent and null are that value.
    pub(super) fn only(&self, field: &str, value: &Value) -> Result<(), ConfigError> {
        match self.given(field) {
            Some(other) if other != value => Err(self.error(field, value.to_string())),
            _ => Ok(()),
        }
    }

    /// The error of a field: what was expected, and what stands there.
    pub(super) fn error(&self, field: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Field {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.prefix),
            expected: expected.into(),
            got: shown(self.object.get(field)),
        }
    }
}

/// A value as it stands in the file, on one line, shortened.
fn shown(value: Option<&Value>) -> String {
    const LONGEST: usize = 60;
    let Some(value) = value else { return "nothing".to_owned() };
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A range in words.
fn interval(range: &impl RangeBounds<f64>) -> String {
    let start = match range.start_bound() {
        Bound::Included(start) => format!("from {start}"),
        Bound::Excluded(start) => format!("above {start}"),
        Bound::Unbounded => String::new(),
    };
    let end = match range.end_bound() {
        Bound::Included(end) => format!(" to {end}"),
        Bound::Excluded(end) => format!(" below {end}"),
        Bound::Unbounded => String::new(),
    };
    start + &end
}
