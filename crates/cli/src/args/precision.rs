//! In what precision a run computes and caches.

use clap::{Args, ValueEnum};
use dsv3_runtime::{
    Mode, Order,
    ops::{Arithmetic, CacheFormat},
};

/// What may be rounded for speed, by all commands that run a model.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Precision")]
pub(crate) struct PrecisionArgs {
    /// How the cache of keys and values is stored [default: bf16 to generate and to bench, f32 elsewhere]
    ///
    /// bf16 takes half of the memory of f32 and changes the logits by 2e-3 to 9e-3 of their size (measured on small
    /// models); q8 takes a third, and changes them more. Rotated keys are never stored in less than bf16.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) kv_cache: Option<CacheArg>,
    /// How activations are multiplied with weights [default: integer to generate and to bench, float elsewhere]
    #[arg(long, value_enum)]
    pub(crate) arithmetic: Option<ArithmeticArg>,
    /// Compute each token in the same bits whatever runs beside it, and however its prompt is cut into chunks [default: true to
    /// serve, false elsewhere]
    ///
    /// Costs some speed where few tokens of a prompt, or many sequences, run at once.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    pub(crate) repeatable: Option<bool>,
}

impl PrecisionArgs {
    /// What is not given is exact: every rounding is the weights' own.
    pub(crate) fn or_exact(self) -> Precision {
        self.or(CacheFormat::F32, Arithmetic::Float)
    }

    /// What is not given is fast.
    pub(crate) fn or_fast(self) -> Precision {
        self.or(CacheFormat::Bf16, Arithmetic::Integer)
    }

    /// What is not given is repeatable.
    pub(crate) fn or_repeatable(self) -> Self {
        Self { repeatable: self.repeatable.or(Some(true)), ..self }
    }

    /// The order of a mode's products, where it was asked for.
    pub(crate) fn order_in(self, mode: Mode) -> Option<Order> {
        self.repeatable.map(|repeatable| order(repeatable, mode))
    }

    fn or(self, cache: CacheFormat, arithmetic: Arithmetic) -> Precision {
        Precision {
            cache: self.kv_cache.map_or(cache, Into::into),
            arithmetic: self.arithmetic.map_or(arithmetic, Into::into),
            repeatable: self.repeatable.unwrap_or(false),
        }
    }
}

/// In what a run computes and caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Precision {
    /// The cache.
    pub(crate) cache: CacheFormat,
    /// The matrix products.
    pub(crate) arithmetic: Arithmetic,
    /// Whether their order is fixed.
    pub(crate) repeatable: bool,
}

impl Precision {
    /// The matrix products of a mode.
    pub(crate) fn in_mode(self, mode: Mode) -> Arithmetic {
        self.arithmetic.in_order(order(self.repeatable, mode))
    }
}

/// The order of a mode's products.
fn order(repeatable: bool, mode: Mode) -> Order {
    match (repeatable, mode) {
        (false, _) => Order::Fastest,
        (true, Mode::Prefill) => Order::Many,
        (true, Mode::Decode) => Order::Few,
    }
}

/// How the cache is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    /// As it was computed
    F32,
    /// Rounded to bf16
    Bf16,
    /// Latents in signed bytes, 32 with one scale; rotated keys in bf16
    Q8,
}

impl From<CacheArg> for CacheFormat {
    fn from(arg: CacheArg) -> Self {
        match arg {
            CacheArg::F32 => Self::F32,
            CacheArg::Bf16 => Self::Bf16,
            CacheArg::Q8 => Self::Q8,
        }
    }
}

/// The ways to multiply activations with weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArithmeticArg {
    /// In f32, exactly as the weights are
    Float,
    /// In integers where the weights' format has a faster product of them: q4_K always, q8_0 and FP8
    /// in prompts and where several sequences run together
    Integer,
}

impl From<ArithmeticArg> for Arithmetic {
    fn from(arithmetic: ArithmeticArg) -> Self {
        match arithmetic {
            ArithmeticArg::Float => Self::Float,
            ArithmeticArg::Integer => Self::Integer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// A command with nothing but these options and words.
    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        precision: PrecisionArgs,
        words: Vec<String>,
    }

    #[test]
    fn a_server_is_repeatable_unless_told_otherwise() {
        let repeatable = |args: &[&str]| {
            let Command { precision, words } = Command::parse_from([&["dsv3"], args].concat());
            assert!(words.is_empty(), "{args:?}");
            [precision, precision.or_repeatable()].map(|precision| {
                let decode = precision.or_fast().in_mode(Mode::Decode);
                let order = precision.order_in(Mode::Decode);
                assert_eq!(decode.order(), order.unwrap_or(Order::Fastest), "{args:?}");
                decode == Arithmetic::IntegerFew
            })
        };
        assert_eq!(repeatable(&[]), [false, true]);
        assert_eq!(repeatable(&["--repeatable"]), [true; 2]);
        assert_eq!(repeatable(&["--repeatable=true"]), [true; 2]);
        assert_eq!(repeatable(&["--repeatable=false"]), [false; 2]);
        assert!(Command::try_parse_from(["dsv3", "--repeatable=maybe"]).is_err());
        // A prompt may stand behind it.
        let Command { precision, words } = Command::parse_from(["dsv3", "--repeatable", "hello"]);
        assert_eq!((precision.repeatable, words), (Some(true), vec!["hello".to_owned()]));
    }
}
