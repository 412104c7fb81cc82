//! One row of logits as a probability distribution.

use dsv3_runtime::TokenId;

use crate::Error;

/// A row of logits and the logarithm of the sum of their exponentials.
#[derive(Clone, Copy, Debug)]
pub struct Distribution<'a> {
    logits: &'a [f32],
    log_sum: f64,
}

impl<'a> Distribution<'a> {
    /// Of a row of logits, `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Logit`] for one that is not finite: no figure can be made from it.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn new(logits: &'a [f32]) -> Result<Self, Error> {
        assert!(!logits.is_empty(), "a vocabulary has at least one token");
        if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(Error::Logit { token: token_id(at), value: logits[at] });
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
        Ok(Self { logits, log_sum: f64::from(max) + sum.ln() })
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.logits.len()
    }

    /// The natural logarithm of a token's probability.
    ///
    /// # Panics
    /// If the token has no logit.
    pub fn log_prob(&self, token: TokenId) -> f64 {
        f64::from(self.logits[token.0 as usize]) - self.log_sum
    }

    /// The natural logarithms of all probabilities, in order of the ids.
    pub fn log_probs(&self) -> impl ExactSizeIterator<Item = f64> {
        self.logits.iter().map(|&logit| f64::from(logit) - self.log_sum)
    }

    /// The likeliest token; of equal ones the lowest id.
    pub fn top(&self) -> TokenId {
        token_id(highest(self.logits.iter().copied()))
    }
}

/// The position of the highest value; of equal ones the first, and 0 where there is none.
pub(super) fn highest<T: PartialOrd>(values: impl IntoIterator<Item = T>) -> usize {
    let better = |best: (usize, T), next: (usize, T)| if next.1 > best.1 { next } else { best };
    values.into_iter().enumerate().reduce(better).map_or(0, |(at, _)| at)
}

/// The `count` likeliest tokens, likeliest first; of equal ones the lower id first. Fewer where there are fewer.
pub fn top_tokens(logits: &[f32], count: usize) -> Vec<TokenId> {
    let mut top: Vec<usize> = Vec::with_capacity(count + 1);
    for (id, &logit) in logits.iter().enumerate() {
        let place = top.partition_point(|&other| logits[other] >= logit);
        if place < count {
            top.insert(place, id);
            top.truncate(count);
        }
    }
    top.into_iter().map(token_id).collect()
}

pub(super) fn token_id(index: usize) -> TokenId {
    TokenId(u32::try_from(index).expect("token ids are 32 bits wide"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn probabilities_by_hand() {
        // Weights 1, 2, 1 of 4, far from 0 so that a sum of plain exponentials would overflow.
        let logits = [200.0, 200.0 + std::f32::consts::LN_2, 200.0];
        let distribution = Distribution::new(&logits).unwrap();
        for (log_prob, expected) in distribution.log_probs().zip([0.25_f64, 0.5, 0.25]) {
            // A logit of 200 is rounded to half of 200 f32 epsilons.
            assert!((log_prob - expected.ln()).abs() < 200.0 * f64::from(f32::EPSILON), "{log_prob}");
        }
        assert_eq!(distribution.top(), TokenId(1));
        assert_eq!(distribution.log_prob(TokenId(2)), distribution.log_prob(TokenId(0)));
    }

    #[test]
    fn what_is_no_number_is_named() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Distribution::new(&[0.0, value, value]).unwrap_err();
            assert!(matches!(error, Error::Logit { token: TokenId(1), .. }), "{error}");
        }
    }

    #[test]
    fn of_equal_tokens_the_lower_id_is_first() {
        let logits = [1.0, 3.0, 2.0, 3.0, 1.0];
        assert_eq!(top_tokens(&logits, 4), [1, 3, 2, 0].map(TokenId));
        assert_eq!(top_tokens(&logits, 9).len(), 5);
        assert!(top_tokens(&logits, 0).is_empty());
        assert_eq!(Distribution::new(&logits).unwrap().top(), TokenId(1));
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one(logits in prop::collection::vec(-80.0..80.0_f32, 1..300)) {
            let distribution = Distribution::new(&logits).unwrap();
            let sum: f64 = distribution.log_probs().map(f64::exp).sum();
            // Each logarithm, at most 160 + ln 300, is rounded twice; the sum has one rounding a term.
            let bound = (2.0 * 170.0 + logits.len() as f64) * f64::EPSILON;
            prop_assert!((sum - 1.0).abs() <= bound, "{sum}");
        }

        #[test]
        fn the_top_tokens_are_those_of_a_sort(logits in prop::collection::vec(-4..4_i8, 1..60), count in 0..8_usize) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut ids: Vec<usize> = (0..logits.len()).collect();
            ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            ids.truncate(count);
            let expected: Vec<TokenId> = ids.into_iter().map(token_id).collect();
            prop_assert_eq!(top_tokens(&logits, count), expected);
        }
    }
}
