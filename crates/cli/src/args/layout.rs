//! How a model is laid over devices.

use clap::Args;
use dsv3_mesh::{ExpertSharding, Layout, MeshShape, Rank, launched_processes, numa};
use std::{fmt, num::NonZeroUsize, ops::RangeInclusive, str::FromStr};

/// The devices, and how they share the model.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Mesh")]
pub(crate) struct LayoutArgs {
    /// Rows and columns of devices; `auto` is one device for each NUMA node of this machine, in a row [default: 1x1]
    ///
    /// A device keeps to the cores of its node. In a job of several processes `auto` is one device for each process.
    #[arg(long, value_name = "RxC|auto")]
    pub(crate) mesh: Option<MeshArg>,
    /// How devices share the routed experts: each split over the columns, or each whole on one device
    ///
    /// `tensor` keeps all devices of a row equally busy, also with a single sequence; rows hold copies. `expert` keeps
    /// each expert in one place of the whole mesh, and sends tokens there.
    #[arg(long, value_name = "tensor|expert", default_value_t = ExpertSharding::Tensor)]
    pub(crate) experts: ExpertSharding,
}

impl LayoutArgs {
    /// As the stages take it.
    pub(crate) fn layout(self) -> Layout {
        Layout { mesh: self.mesh(), experts: self.experts }
    }

    /// The devices.
    pub(crate) fn mesh(self) -> MeshShape {
        self.mesh.map_or(MeshShape::SINGLE, MeshArg::shape)
    }
}

/// The devices, as they are typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MeshArg {
    /// As this machine is.
    Auto,
    /// As said.
    Shape(MeshShape),
}

impl MeshArg {
    /// The devices.
    pub(crate) fn shape(self) -> MeshShape {
        match self {
            Self::Shape(shape) => shape,
            Self::Auto => {
                let devices = launched_processes().unwrap_or_else(|| numa::nodes().len());
                MeshShape::new(NonZeroUsize::MIN, NonZeroUsize::new(devices).unwrap_or(NonZeroUsize::MIN))
            }
        }
    }
}

impl FromStr for MeshArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            shape => shape.parse().map(Self::Shape).map_err(|error| error.to_string()),
        }
    }
}

impl fmt::Display for MeshArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Shape(shape) => shape.fmt(f),
        }
    }
}

/// Some of a mesh's ranks, as they are typed: `0,3-5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranks(Vec<RangeInclusive<usize>>);

/// Numbers and ranges of them, with commas between: `0,3-5`.
pub(super) fn ranges(text: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
        (range.start() <= range.end()).then_some(range)
    };
    text.split(',').map(range).collect()
}

impl FromStr for Ranks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ranges(text).map(Self).ok_or_else(|| "expected ranks and ranges of them, as in 0,3-5".to_owned())
    }
}

impl Ranks {
    /// The ranks of a mesh that they are.
    ///
    /// # Errors
    /// One that the mesh does not have, with those that it has.
    pub(crate) fn of(&self, mesh: MeshShape) -> Result<Vec<Rank>, String> {
        let last = mesh.devices() - 1;
        match self.0.iter().find(|range| *range.end() > last) {
            Some(range) => Err(format!("--ranks {}: a mesh of {mesh} has ranks 0 to {last}", range.end())),
            None => Ok(self.0.iter().cloned().flatten().map(Rank).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_numbers_and_ranges() {
        let mesh = "2x4".parse().unwrap();
        let of = |text: &str| text.parse::<Ranks>().unwrap().of(mesh);
        assert_eq!(of("0,3-5"), Ok([0, 3, 4, 5].map(Rank).to_vec()));
        assert_eq!(of(" 7 "), Ok(vec![Rank(7)]));
        assert_eq!(of("1-8"), Err("--ranks 8: a mesh of 2x4 has ranks 0 to 7".to_owned()));
        assert!(of("0-18446744073709551615").is_err());
        for text in ["", "a", "3-1", "1-", "-1", "1,,2"] {
            assert!(text.parse::<Ranks>().is_err(), "{text}");
        }
    }
}
