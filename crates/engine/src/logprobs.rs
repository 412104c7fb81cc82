//! The log probabilities of a token and of the likeliest ones, by the model itself: before masks, biases, penalties,
//! temperature and filters, as in vLLM.

use std::cmp::Ordering;

use dsv3_runtime::TokenId;
use serde::Serialize;

use crate::sampler::highest;
use crate::{Error, check_range};

/// The most alternatives that can be asked for, as in the OpenAI interface.
pub const MOST_TOP_LOGPROBS: usize = 20;

/// What stands for the logarithm of a probability of 0, and the least there is, as in the OpenAI interface: JSON has no
/// -inf.
const LEAST: f32 = -9999.0;

/// Natural logarithms of probabilities at one position, none below -9999.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprobs {
    /// The token's.
    pub logprob: f32,
    /// The likeliest tokens', as many as were asked for, likeliest first; of equals, the lower id. The token itself is
    /// among them only where it is one of the likeliest.
    pub top: Vec<(TokenId, f32)>,
}

impl TokenLogprobs {
    /// Of a token and the `count` likeliest ones, from one row of logits `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Logit`] for a NaN or +inf, [`Error::NoToken`] if all are -inf.
    ///
    /// # Panics
    /// If the token has no logit.
    pub fn of(logits: &[f32], token: TokenId, count: usize) -> Result<Self, Error> {
        let max = logits[highest(logits)?];
        let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
        let logprob = |logit: f32| ((f64::from(logit - max) - sum.ln()) as f32).max(LEAST);
        Ok(Self {
            logprob: logprob(logits[token.0 as usize]),
            top: likeliest(logits, count).into_iter().map(|(token, logit)| (token, logprob(logit))).collect(),
        })
    }
}

/// Whether as many alternatives can be asked for.
///
/// # Errors
/// [`Error::Parameter`] for more than [`MOST_TOP_LOGPROBS`].
pub(crate) fn check_count(parameter: &'static str, count: Option<usize>) -> Result<(), Error> {
    let count = count.unwrap_or(0);
    check_range(parameter, count, count <= MOST_TOP_LOGPROBS, "at most 20")
}

/// The `count` highest logits, highest first.
fn likeliest(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in (0..).zip(logits) {
        if top.len() == count && top.last().is_none_or(|&(_, lowest)| logit <= lowest) {
            continue;
        }
        let place = top.partition_point(|&(_, higher)| logit.total_cmp(&higher) != Ordering::Greater);
        top.insert(place, (TokenId(id), logit));
        top.truncate(count);
    }
    top
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_logprob_is_the_models_own() {
        let probabilities = [0.1_f32, 0.6, 0.3];
        let logits = probabilities.map(|probability| probability.ln() + 5.0);
        let logprobs = TokenLogprobs::of(&logits, TokenId(2), 2).unwrap();
        // ln and +5 round once each at magnitude < 8, the differences and the sum's logarithm below that.
        let near = |got: f32, expected: f32| (got - expected.ln()).abs() <= 4.0 * 8.0 * f32::EPSILON;
        assert!(near(logprobs.logprob, 0.3), "{logprobs:?}");
        assert_eq!(logprobs.top.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [1, 2]);
        assert!(near(logprobs.top[0].1, 0.6) && logprobs.top[1].1 == logprobs.logprob, "{logprobs:?}");
        assert!(TokenLogprobs::of(&logits, TokenId(0), 0).unwrap().top.is_empty());
    }

    #[test]
    fn more_alternatives_than_the_interface_has_are_refused() {
        let error = check_count("top_logprobs", Some(21)).unwrap_err().to_string();
        assert_eq!(error, "top_logprobs is 21, but must be at most 20");
        check_count("top_logprobs", None).unwrap();
    }

    #[test]
    fn what_has_no_probability_is_an_error_and_what_has_none_left_is_the_least() {
        let logprobs = TokenLogprobs::of(&[f32::NEG_INFINITY, 0.0, -2e4], TokenId(0), 3).unwrap();
        let top = vec![(TokenId(1), 0.0), (TokenId(2), -9999.0), (TokenId(0), -9999.0)];
        assert_eq!(logprobs, TokenLogprobs { logprob: -9999.0, top });
        for value in [f32::NAN, f32::INFINITY] {
            let error = TokenLogprobs::of(&[0.0, value], TokenId(0), 0).unwrap_err();
            assert!(matches!(error, Error::Logit { token: TokenId(1), .. }), "{error}");
        }
        let error = TokenLogprobs::of(&[f32::NEG_INFINITY; 2], TokenId(0), 0).unwrap_err();
        assert!(matches!(error, Error::NoToken), "{error}");
    }

    proptest! {
        #[test]
        fn the_likeliest_are_those_of_a_full_sort(
            halves in prop::collection::vec(-20..20_i32, 1..60),
            count in 0..20_usize,
        ) {
            let logits: Vec<f32> = halves.iter().map(|&half| half as f32 / 2.0).collect();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            order.truncate(count);
            let ids: Vec<usize> = likeliest(&logits, count).iter().map(|(token, _)| token.0 as usize).collect();
            prop_assert_eq!(ids, order);
        }
    }
}
