//! `dsv3 convert --target galaxy`: what is typed.

use super::layout::ranges;
use clap::{Args, ValueEnum};
use dsv3_galaxy::{block_float::Rounding, plan::request::Fabric};
use std::{collections::BTreeSet, ops::RangeInclusive, path::PathBuf, str::FromStr};

/// What weights are prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetArg {
    /// This program
    Cpu,
    /// TT-NN on a Tenstorrent Galaxy: files for upstream's demo
    Galaxy,
}

/// Options that only `--target galaxy` has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Galaxy (--target galaxy)")]
pub(crate) struct GalaxyArgs {
    /// Directory of the weight cache, which upstream's demo is given with --use-weight-cache
    ///
    /// The files go to N_layers/mesh_RxC in it. What is whole stays if the conversion is interrupted, and the same
    /// command goes on with the rest.
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Convert these layers only, as in 0-2,5 [default: all]
    ///
    /// The embedding goes with layer 0, the last norm and the head with the last layer; the MTP layer is the one after it.
    /// config.json is written once all layers are there.
    #[arg(long, value_name = "LIST")]
    pub(crate) layers: Option<Layers>,
    /// Make a cache of a model with the first N layers, as upstream's --override-num-layers: 61 layers do not fit a single
    /// Galaxy; upstream's demo runs 5 there
    #[arg(long, value_name = "N")]
    pub(crate) num_layers: Option<usize>,
    /// How the chips of a row and of a column will be connected: line or ring [default: line]
    ///
    /// On 16x8 with rings the experts are also written in the packing of the fused operators that decode takes there; else
    /// the files are the same.
    #[arg(long, value_name = "line|ring")]
    pub(crate) fabric: Option<Fabric>,
    /// Also convert the layer for multi-token prediction, into N_layers_mtp
    #[arg(long)]
    pub(crate) mtp: bool,
    /// How values become block floats [default: host]
    #[arg(long, value_enum)]
    pub(crate) rounding: Option<RoundingArg>,
    /// Write nothing: list the files with their sizes, the memory that they take on a device, and the time
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl GalaxyArgs {
    /// The first of these options that was given.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.output.is_some(), "--output"),
            (self.layers.is_some(), "--layers"),
            (self.num_layers.is_some(), "--num-layers"),
            (self.fabric.is_some(), "--fabric"),
            (self.mtp, "--mtp"),
            (self.rounding.is_some(), "--rounding"),
            (self.dry_run, "--dry-run"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }
}

/// How values become block floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoundingArg {
    /// To nearest, ties to even, as TT-NN on the host: the most exact, and checked bit for bit
    Host,
    /// As upstream reports it of the chip, which cuts bfloat4_b off: not checked on a chip
    Device,
}

impl From<RoundingArg> for Rounding {
    fn from(arg: RoundingArg) -> Self {
        match arg {
            RoundingArg::Host => Self::Host,
            RoundingArg::Device => Self::Device,
        }
    }
}

/// Some layers, as they are typed: `0-2,5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layers(Vec<RangeInclusive<usize>>);

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ranges(text).map(Self).ok_or_else(|| "expected layers and ranges of them, as in 0-2,5".to_owned())
    }
}

impl Layers {
    /// The layers that they are. Where one is beyond the last, which is for others to refuse, it stands for all.
    pub(crate) fn up_to(&self, last: usize) -> BTreeSet<usize> {
        match self.0.iter().find(|range| *range.end() > last) {
            Some(range) => BTreeSet::from([*range.end()]),
            None => self.0.iter().cloned().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        let of = |text: &str, last| text.parse::<Layers>().unwrap().up_to(last);
        assert_eq!(of("0-2,5", 60), BTreeSet::from([0, 1, 2, 5]));
        assert_eq!(of("0-18446744073709551615", 60), BTreeSet::from([usize::MAX]));
        assert!("3-1".parse::<Layers>().is_err());
    }
}
