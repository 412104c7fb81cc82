//! Which storage formats are asked for, by what a matrix is for.

use dsv3_kernels::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a weight matrix is for, in the words of the model's author: `experts`, `attention`. Formats are asked for by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct WeightKind(pub &'static str);

/// The formats that stage 1 is asked for. Kinds that are not named stay in the format of the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Formats {
    /// What the user calls them, short: a part of the cache's directory name. Empty where nothing is asked for.
    pub name: String,
    /// The format of each kind that is named. FP8 is never made, only kept where the checkpoint has it.
    pub kinds: BTreeMap<String, Format>,
}

impl Formats {
    /// The format that is asked for a weight of this kind; none where it is to stay as it is. Weights without a kind
    /// always are.
    pub fn of(&self, kind: Option<WeightKind>) -> Option<Format> {
        self.kinds.get(kind?.0).copied()
    }

    /// The format that a weight of this kind gets, which would stay in `stays`: what is asked for, where the `cols`
    /// columns that a device holds of its rows are whole blocks of it; else q8_0 for q4_K, else what it has.
    pub fn choose(&self, kind: Option<WeightKind>, stays: Format, cols: usize) -> Format {
        let fits = |format: Format| cols.is_multiple_of(format.block_cols());
        match self.of(kind) {
            None | Some(Format::Fp8) => stays,
            Some(Format::Q4K) if !fits(Format::Q4K) && fits(Format::Q8_0) => Format::Q8_0,
            Some(format) if fits(format) => format,
            Some(_) => stays,
        }
    }
}
