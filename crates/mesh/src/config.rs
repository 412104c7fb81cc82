//! Configs of collectives, which a file on disk can hold.

use crate::{Group, Payload};
use serde::{Deserialize, Serialize};

/// The dimension of a matrix that devices share. Serialised as its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Dim {
    /// Rows. Devices may have different numbers of them.
    Tokens,
    /// Columns. All devices have as many.
    #[default]
    Features,
}

impl From<Dim> for u8 {
    fn from(dim: Dim) -> Self {
        match dim {
            Dim::Tokens => 0,
            Dim::Features => 1,
        }
    }
}

impl TryFrom<u8> for Dim {
    type Error = String;

    fn try_from(dim: u8) -> Result<Self, String> {
        match dim {
            0 => Ok(Self::Tokens),
            1 => Ok(Self::Features),
            other => Err(format!("a dimension is 0 (tokens) or 1 (features), got {other}")),
        }
    }
}

/// The way that the parts of an all_gather go. Both bring the same parts, and each device sends as many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// Each device sends its part to each other one, all in one step: for a switch, and for one host.
    #[default]
    Direct,
    /// Each device passes to the next one what came from the one before: `devices - 1` steps, but nobody sends to more
    /// than one. For hosts that are cabled to their neighbours only.
    Ring,
}

/// Config of [`Mesh::all_gather`](crate::Mesh::all_gather): bring the parts of all devices together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllGatherConfig {
    /// The devices that meet.
    pub cluster_axis: Group,
    /// The dimension along which their parts are put together.
    #[serde(default)]
    pub dim: Dim,
    /// The way that the parts go.
    #[serde(default)]
    pub topology: Topology,
    /// The form in which values move.
    #[serde(default)]
    pub payload: Payload,
}

impl AllGatherConfig {
    /// Of columns, exact.
    pub fn features(devices: impl Into<Group>) -> Self {
        let cluster_axis = devices.into();
        Self { cluster_axis, dim: Dim::Features, topology: Topology::Direct, payload: Payload::F32 }
    }

    /// Of rows, exact.
    pub fn tokens(devices: impl Into<Group>) -> Self {
        Self { dim: Dim::Tokens, ..Self::features(devices) }
    }
}

/// Config of [`Mesh::reduce_scatter`](crate::Mesh::reduce_scatter): add over all devices, keep one's own part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReduceScatterConfig {
    /// The devices that meet.
    pub cluster_axis: Group,
    /// The dimension that is cut into parts.
    #[serde(default)]
    pub dim: Dim,
    /// The form in which values move.
    #[serde(default)]
    pub payload: Payload,
}

impl ReduceScatterConfig {
    /// Into columns, exact.
    pub fn features(devices: impl Into<Group>) -> Self {
        Self { cluster_axis: devices.into(), dim: Dim::Features, payload: Payload::F32 }
    }

    /// Into rows, exact.
    pub fn tokens(devices: impl Into<Group>) -> Self {
        Self { dim: Dim::Tokens, ..Self::features(devices) }
    }
}

/// Config of [`Mesh::all_reduce`](crate::Mesh::all_reduce): add over all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduceConfig {
    /// The devices that meet.
    pub cluster_axis: Group,
    /// The form in which values move.
    #[serde(default)]
    pub payload: Payload,
}

impl AllReduceConfig {
    /// Exact.
    pub fn new(devices: impl Into<Group>) -> Self {
        Self { cluster_axis: devices.into(), payload: Payload::F32 }
    }
}

/// Config of [`Mesh::all_to_all`](crate::Mesh::all_to_all): rows for each device from each device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllToAllConfig {
    /// The devices that meet.
    pub cluster_axis: Group,
    /// The form in which values move.
    #[serde(default)]
    pub payload: Payload,
}

impl AllToAllConfig {
    /// Exact.
    pub fn new(devices: impl Into<Group>) -> Self {
        Self { cluster_axis: devices.into(), payload: Payload::F32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Axis;
    use serde_json::{from_str, to_string};

    #[test]
    fn configs_are_short_to_write_and_complete_when_read() {
        let config: AllGatherConfig = from_str(r#"{"cluster_axis":1}"#).unwrap();
        assert_eq!(config, AllGatherConfig::features(Axis::Columns));
        let text = r#"{"cluster_axis":1,"dim":1,"topology":"direct","payload":"f32"}"#;
        assert_eq!(to_string(&config).unwrap(), text);
        let text = r#"{"cluster_axis":"all","dim":0,"payload":"bf8"}"#;
        let config: ReduceScatterConfig = from_str(text).unwrap();
        let expected =
            ReduceScatterConfig { payload: Payload::Bf8, ..ReduceScatterConfig::tokens(Group::All) };
        assert_eq!((config, to_string(&config).unwrap().as_str()), (expected, text));
    }

    #[test]
    fn what_no_config_holds_is_refused_by_name() {
        let refused = |text: &str| from_str::<AllGatherConfig>(text).unwrap_err().to_string();
        for (text, expected) in [
            (r#"{"cluster_axis":2}"#, "0 (rows), 1 (columns) or \"all\", got 2"),
            (r#"{"cluster_axis":"rows"}"#, "0 (rows), 1 (columns) or \"all\", got \"rows\""),
            (r#"{"cluster_axis":1,"dim":2}"#, "0 (tokens) or 1 (features), got 2"),
            (r#"{"cluster_axis":1,"payload":"f16"}"#, "unknown variant `f16`"),
            (r#"{"cluster_axis":1,"links":2}"#, "unknown field `links`"),
            (r#"{"dim":1}"#, "missing field `cluster_axis`"),
        ] {
            let message = refused(text);
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
