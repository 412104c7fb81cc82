//! The shape of a mesh and the place of a rank in it.

use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroUsize, str::FromStr};

/// A direction of the mesh. Serialised as TT-NN's `cluster_axis`: 0 for rows, 1 for columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Axis {
    /// Along the rows: devices of one column meet.
    Rows,
    /// Along the columns: devices of one row meet (tensor parallelism).
    Columns,
}

impl From<Axis> for u8 {
    fn from(axis: Axis) -> Self {
        match axis {
            Axis::Rows => 0,
            Axis::Columns => 1,
        }
    }
}

impl TryFrom<u8> for Axis {
    type Error = String;

    fn try_from(axis: u8) -> Result<Self, String> {
        match axis {
            0 => Ok(Self::Rows),
            1 => Ok(Self::Columns),
            other => Err(format!("a mesh axis is 0 (rows) or 1 (columns), got {other}")),
        }
    }
}

/// Devices that meet in a collective. Serialised as its axis, or `"all"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "GroupText", try_from = "GroupText")]
pub enum Group {
    /// The devices along an axis, those whose other coordinate is the caller's.
    Axis(Axis),
    /// All devices.
    All,
}

impl Group {
    /// All groups that a device is in.
    pub const EACH: [Self; 3] = [Self::Axis(Axis::Rows), Self::Axis(Axis::Columns), Self::All];

    /// Its place in [`EACH`](Self::EACH).
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Axis(Axis::Rows) => 0,
            Self::Axis(Axis::Columns) => 1,
            Self::All => 2,
        }
    }
}

impl From<Axis> for Group {
    fn from(axis: Axis) -> Self {
        Self::Axis(axis)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Axis(Axis::Rows) => "rows",
            Self::Axis(Axis::Columns) => "columns",
            Self::All => "all devices",
        })
    }
}

/// A group as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum GroupText {
    Axis(u64),
    Name(String),
}

impl From<Group> for GroupText {
    fn from(group: Group) -> Self {
        match group {
            Group::Axis(axis) => Self::Axis(u8::from(axis).into()),
            Group::All => Self::Name("all".to_owned()),
        }
    }
}

impl TryFrom<GroupText> for Group {
    type Error = String;

    fn try_from(text: GroupText) -> Result<Self, String> {
        let refused =
            |got: String| Err(format!("devices meet over 0 (rows), 1 (columns) or \"all\", got {got}"));
        match text {
            GroupText::Axis(0) => Ok(Self::Axis(Axis::Rows)),
            GroupText::Axis(1) => Ok(Self::Axis(Axis::Columns)),
            GroupText::Axis(other) => refused(other.to_string()),
            GroupText::Name(name) if name == "all" => Ok(Self::All),
            GroupText::Name(name) => refused(format!("{name:?}")),
        }
    }
}

/// The number of a device, in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(pub usize);

/// `rows x columns` devices. Written and parsed as `RxC`, as in `4x8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MeshShape {
    rows: NonZeroUsize,
    columns: NonZeroUsize,
}

impl MeshShape {
    /// One device.
    pub const SINGLE: Self = Self { rows: NonZeroUsize::MIN, columns: NonZeroUsize::MIN };

    /// A mesh of `rows x columns` devices.
    pub fn new(rows: NonZeroUsize, columns: NonZeroUsize) -> Self {
        Self { rows, columns }
    }

    /// How many devices stand along an axis.
    pub fn size(self, axis: Axis) -> usize {
        match axis {
            Axis::Rows => self.rows.get(),
            Axis::Columns => self.columns.get(),
        }
    }

    /// How many devices there are.
    pub fn devices(self) -> usize {
        self.rows.get() * self.columns.get()
    }

    /// How many devices of a group meet.
    pub fn members(self, group: Group) -> usize {
        match group {
            Group::Axis(axis) => self.size(axis),
            Group::All => self.devices(),
        }
    }

    /// The ranks that `rank` meets in a group, in order, itself among them.
    pub fn ranks(self, group: Group, rank: Rank) -> Vec<Rank> {
        let (row, column) = (self.coordinate(rank, Axis::Rows), self.coordinate(rank, Axis::Columns));
        let columns = self.columns.get();
        match group {
            Group::Axis(Axis::Rows) => (0..self.rows.get()).map(|row| Rank(row * columns + column)).collect(),
            Group::Axis(Axis::Columns) => (0..columns).map(|column| Rank(row * columns + column)).collect(),
            Group::All => (0..self.devices()).map(Rank).collect(),
        }
    }

    /// The place of a rank along an axis.
    pub fn coordinate(self, rank: Rank, axis: Axis) -> usize {
        match axis {
            Axis::Rows => rank.0 / self.columns,
            Axis::Columns => rank.0 % self.columns,
        }
    }
}

impl fmt::Display for MeshShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.rows, self.columns)
    }
}

/// A mesh shape that is not two positive numbers joined by `x`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mesh is written RxC with two numbers from 1 to 1024, as in 4x8; got {0:?}")]
pub struct ParseMeshShapeError(String);

impl FromStr for MeshShape {
    type Err = ParseMeshShapeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let side = |text: &str| text.parse().ok().filter(|side: &NonZeroUsize| side.get() <= 1024);
        text.split_once('x')
            .and_then(|(rows, columns)| Some(Self::new(side(rows)?, side(columns)?)))
            .ok_or_else(|| ParseMeshShapeError(text.to_owned()))
    }
}

impl From<MeshShape> for String {
    fn from(shape: MeshShape) -> Self {
        shape.to_string()
    }
}

impl TryFrom<String> for MeshShape {
    type Error = ParseMeshShapeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_numbered_row_by_row() {
        let shape: MeshShape = "2x3".parse().unwrap();
        let places: Vec<_> = (0..shape.devices())
            .map(|rank| [Axis::Rows, Axis::Columns].map(|axis| shape.coordinate(Rank(rank), axis)))
            .collect();
        assert_eq!(places, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]);
    }

    #[test]
    fn groups_hold_the_rank_and_who_shares_its_other_coordinate() {
        let shape: MeshShape = "2x3".parse().unwrap();
        let ranks = Group::EACH
            .map(|group| shape.ranks(group, Rank(4)).iter().map(|rank| rank.0).collect::<Vec<_>>());
        assert_eq!(ranks, [vec![1, 4], vec![3, 4, 5], vec![0, 1, 2, 3, 4, 5]]);
        assert_eq!(Group::EACH.map(|group| shape.members(group)), [2, 3, 6]);
    }

    #[test]
    fn what_is_not_a_mesh_is_refused_by_name() {
        for text in ["", "x", "0x1", "1x0", "4", "4x", "-1x2", "1x2x3", "1025x1", "99999999999999999999x1"] {
            let error = text.parse::<MeshShape>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("got {text:?}")), "{error}");
        }
    }

    #[test]
    fn a_shape_survives_its_text() {
        for text in ["1x1", "4x8", "16x8"] {
            assert_eq!(text.parse::<MeshShape>().unwrap().to_string(), text);
        }
    }
}
