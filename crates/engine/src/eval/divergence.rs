//! How far a model's distributions are from a base's: Kullback-Leibler divergence, and what it does to the choice of
//! tokens.

use dsv3_runtime::TokenId;
use serde::Serialize;

use super::{BaseRow, Distribution, Mean, PerplexityReport, distribution, percentile};

/// One position compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The divergence of the model from the base, in nats: the sum of `p ln(p / q)`, p the base's probability and q
    /// the model's, over the tokens above the base's floor.
    pub divergence: f64,
    /// The model's surprise at the text's next token, in nats.
    pub surprise: f64,
    /// The base's.
    pub base_surprise: f64,
    /// The probability of the text's next token by the model, less that by the base.
    pub probability_change: f64,
    /// Whether both find the same token likeliest.
    pub same_top: bool,
    /// The variance of the divergence that the base's rounding makes.
    pub noise: f64,
}

impl Comparison {
    /// Compares at one position.
    ///
    /// # Panics
    /// If the vocabularies differ, or `next` is in neither.
    pub fn new(base: &BaseRow<'_>, model: &Distribution<'_>, next: TokenId) -> Self {
        assert_eq!(base.log_probs.len(), model.vocab_size(), "one vocabulary");
        let (mut divergence, mut squares) = (0.0, 0.0);
        for (&log_p, log_q) in base.log_probs.iter().zip(model.log_probs()) {
            if log_p > base.floor {
                let p = log_p.exp();
                divergence += p * (log_p - log_q);
                squares += p * p;
            }
        }
        let base_surprise = -base.log_probs[next.0 as usize];
        let surprise = -model.log_prob(next);
        let base_top = distribution::highest(base.log_probs.iter().copied());
        Self {
            divergence,
            surprise,
            base_surprise,
            probability_change: (-surprise).exp() - (-base_surprise).exp(),
            same_top: distribution::token_id(base_top) == model.top(),
            // A log-probability that is rounded to a step is off by a uniform error, of variance step² / 12, and the
            // sum has p times it.
            noise: squares * base.step * base.step / 12.0,
        }
    }
}

/// What the positions of a text come to.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    divergences: Vec<f64>,
    divergence: Mean,
    change: Mean,
    square_change: Mean,
    max_change: f64,
    surprise: Mean,
    base_surprise: Mean,
    same_top: usize,
    noise: f64,
}

/// How far a model is from a base. Divergences are in nats, probabilities and shares from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DivergenceReport {
    /// Positions that were compared.
    pub tokens: usize,
    /// The mean Kullback-Leibler divergence from the base.
    pub mean: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Half of the positions have at most this divergence.
    pub median: f64,
    /// 99 of 100 positions have at most this divergence.
    pub percentile_99: f64,
    /// The largest of all positions.
    pub max: f64,
    /// The share of the positions at which both find the same token likeliest.
    pub top1_agreement: f64,
    /// The mean change of the probability of the text's next token, without its sign.
    pub mean_probability_change: f64,
    /// The root of the mean square of that change, llama-perplexity's "RMS Δp".
    pub rms_probability_change: f64,
    /// The largest of all positions.
    pub max_probability_change: f64,
    /// The standard deviation of the mean that comes of nothing but the base's rounding: of a model that equals the
    /// base, `mean` is about this far from 0, on either side. 0 for a base of floats.
    pub quantisation_noise: f64,
    /// The model's perplexity of the same tokens.
    pub model: PerplexityReport,
    /// The base's.
    pub base: PerplexityReport,
}

impl Divergence {
    /// Adds a position.
    pub fn add(&mut self, comparison: &Comparison) {
        let change = comparison.probability_change.abs();
        self.divergences.push(comparison.divergence);
        self.divergence.add(comparison.divergence);
        self.change.add(change);
        self.square_change.add(change * change);
        self.max_change = self.max_change.max(change);
        self.surprise.add(comparison.surprise);
        self.base_surprise.add(comparison.base_surprise);
        self.same_top += usize::from(comparison.same_top);
        self.noise += comparison.noise;
    }

    /// The mean so far.
    pub fn mean(&self) -> f64 {
        self.divergence.mean()
    }

    /// What the positions so far come to.
    ///
    /// # Panics
    /// If there are none.
    pub fn report(&self) -> DivergenceReport {
        let mut sorted = self.divergences.clone();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len() as f64;
        DivergenceReport {
            tokens: sorted.len(),
            mean: self.divergence.mean(),
            standard_error: self.divergence.standard_error(),
            median: percentile(&sorted, 0.5),
            percentile_99: percentile(&sorted, 0.99),
            max: sorted[sorted.len() - 1],
            top1_agreement: self.same_top as f64 / count,
            mean_probability_change: self.change.mean(),
            rms_probability_change: self.square_change.mean().sqrt(),
            max_probability_change: self.max_change,
            quantisation_noise: self.noise.sqrt() / count,
            model: PerplexityReport::new(&self.surprise),
            base: PerplexityReport::new(&self.base_surprise),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The log-probabilities of weights, exactly.
    fn exact(weights: &[f64]) -> Vec<f64> {
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| (weight / sum).ln()).collect()
    }

    fn row(log_probs: &[f64]) -> BaseRow<'_> {
        BaseRow { log_probs, floor: f64::NEG_INFINITY, step: 0.0 }
    }

    #[test]
    fn a_comparison_by_hand() {
        // Base 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4: 1/2 ln 2 - 1/4 ln 2.
        let base = exact(&[2.0, 1.0, 1.0]);
        let logits = [0.0, std::f32::consts::LN_2, 0.0];
        let model = Distribution::new(&logits).unwrap();
        let comparison = Comparison::new(&row(&base), &model, TokenId(1));
        let rounding = f64::from(f32::EPSILON); // of ln 2 to f32
        let close = |got: f64, expected: f64| assert!((got - expected).abs() < rounding, "{got} {expected}");
        close(comparison.divergence, 0.25 * 2_f64.ln());
        close(comparison.surprise, 2_f64.ln());
        close(comparison.base_surprise, 4_f64.ln());
        close(comparison.probability_change, 0.25);
        assert!(!comparison.same_top && comparison.noise == 0.0);
        // With a floor between, only the first counts: 1/2 ln 2. Its noise is step² / 12 / 4.
        let coarse = BaseRow { log_probs: &base, floor: -1.0, step: 0.01 };
        let comparison = Comparison::new(&coarse, &model, TokenId(1));
        close(comparison.divergence, 0.5 * 2_f64.ln());
        close(comparison.noise, 0.25 * 1e-4 / 12.0);
    }

    #[test]
    fn a_report_by_hand() {
        let comparison = |divergence: f64, change: f64, same_top: bool| Comparison {
            divergence,
            surprise: 1.0,
            base_surprise: 2.0,
            probability_change: change,
            same_top,
            noise: 0.04,
        };
        let mut all = Divergence::default();
        for (divergence, change, same_top) in
            [(0.1, -0.3, true), (0.4, 0.1, false), (0.2, 0.0, true), (0.3, 0.2, true)]
        {
            all.add(&comparison(divergence, change, same_top));
        }
        let report = all.report();
        let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-15, "{got} {expected}");
        close(report.mean, 0.25);
        close(report.median, 0.25);
        close(report.percentile_99, 0.03 * 0.3 + 0.97 * 0.4);
        close(report.standard_error, (0.0125_f64 / 3.0).sqrt());
        close(report.mean_probability_change, 0.15);
        close(report.rms_probability_change, 0.035_f64.sqrt());
        close(report.quantisation_noise, 0.1);
        assert_eq!((report.max, report.max_probability_change, report.top1_agreement), (0.4, 0.3, 0.75));
        close(report.model.perplexity, 1_f64.exp());
        close(report.base.perplexity, 2_f64.exp());
        assert_eq!(report.tokens, 4);
    }

    proptest! {
        #[test]
        fn divergence_is_never_negative(
            pairs in prop::collection::vec((-20.0..20.0_f32, -20.0..20.0_f32), 1..200),
        ) {
            let (base, logits): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let base: Vec<f64> = Distribution::new(&base).unwrap().log_probs().collect();
            let model = Distribution::new(&logits).unwrap();
            let comparison = Comparison::new(&row(&base), &model, TokenId(0));
            // Each of the two logarithms, at most 40 + ln 200, is rounded twice; weighted by probabilities.
            prop_assert!(comparison.divergence >= -4.0 * 46.0 * f64::EPSILON, "{}", comparison.divergence);
        }

        #[test]
        fn divergence_from_itself_is_nothing(logits in prop::collection::vec(-20.0..20.0_f32, 1..200)) {
            let model = Distribution::new(&logits).unwrap();
            let base: Vec<f64> = model.log_probs().collect();
            let comparison = Comparison::new(&row(&base), &model, TokenId(0));
            prop_assert_eq!((comparison.divergence, comparison.probability_change), (0.0, 0.0));
            prop_assert!(comparison.same_top);
        }
    }
}
