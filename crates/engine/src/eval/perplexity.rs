//! Perplexity: the exponential of the mean surprise at a text's tokens.

use dsv3_runtime::TokenId;
use serde::Serialize;

use super::{Distribution, Feed, Mean, Windows};
use crate::{Error, LanguageModel};

/// What the windows of a text came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerplexityReport {
    /// The exponential of the mean surprise.
    pub perplexity: f64,
    /// Its standard error: that of the mean surprise, times the perplexity.
    pub standard_error: f64,
    /// The mean surprise, in nats a token.
    pub nats_per_token: f64,
    /// Tokens that counted.
    pub tokens: usize,
}

impl PerplexityReport {
    /// Of surprises in nats.
    pub fn new(surprise: &Mean) -> Self {
        let perplexity = surprise.mean().exp();
        Self {
            perplexity,
            standard_error: perplexity * surprise.standard_error(),
            nats_per_token: surprise.mean(),
            tokens: surprise.count(),
        }
    }
}

/// Runs the windows of a text. After each, `on_window` gets the number of windows done and what they came to so far.
///
/// # Errors
/// If the model cannot run the windows, fails, or gives logits that are no numbers.
pub fn perplexity<M: LanguageModel>(
    feed: &mut Feed<'_, M>,
    text: &[TokenId],
    windows: &Windows,
    mut on_window: impl FnMut(usize, &PerplexityReport),
) -> Result<PerplexityReport, Error> {
    let mut surprise = Mean::default();
    for index in 0..windows.count() {
        let window = windows.window(text, index);
        feed.prefill(&window.tokens, window.scored.clone(), |row, logits| {
            surprise.add(-Distribution::new(logits)?.log_prob(window.tokens[row + 1]));
            Ok(())
        })?;
        on_window(index + 1, &PerplexityReport::new(&surprise));
    }
    Ok(PerplexityReport::new(&surprise))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ModelLimits,
        testing::{FakeModel, VOCAB_SIZE},
    };

    const LIMITS: ModelLimits =
        ModelLimits { vocab_size: VOCAB_SIZE, max_context: 8, page_size: 4, page_count: 2, rows: 1 };

    #[test]
    fn a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() {
        let mut model = FakeModel::new(LIMITS, |_: &[TokenId]| vec![-3.0; VOCAB_SIZE]);
        let text: Vec<TokenId> = (30..50).map(TokenId).collect();
        let windows = Windows::halves(text.len(), 8, None).unwrap();
        let mut progress = Vec::new();
        let report =
            perplexity(&mut Feed::new(&mut model, 5), &text, &windows, |done, _| progress.push(done))
                .unwrap();
        // The sum of 280 equal weights and its logarithm are exact to a few roundings.
        let relative = (report.perplexity / VOCAB_SIZE as f64 - 1.0).abs();
        assert!(relative < VOCAB_SIZE as f64 * f64::EPSILON, "{report:?}");
        assert!(report.standard_error < 1e-12, "all tokens are equally surprising");
        assert_eq!((report.tokens, progress), (6, vec![1, 2]));
    }

    #[test]
    fn only_the_scored_tokens_count_by_hand() {
        // Certain of the next number but after 25: there it holds two equally likely.
        let mut model = FakeModel::new(LIMITS, |tokens: &[TokenId]| {
            let last = tokens[tokens.len() - 1].0 as usize;
            let mut logits = vec![-1e9; VOCAB_SIZE];
            logits[last + 1] = 0.0;
            if last == 25 {
                logits[0] = 0.0;
            }
            logits
        });
        let text: Vec<TokenId> = (20..28).map(TokenId).collect();
        let windows = Windows::halves(8, 8, None).unwrap();
        let report = perplexity(&mut Feed::new(&mut model, 8), &text, &windows, |_, _| {}).unwrap();
        // Rows 4, 5, 6 guess 25, 26, 27: surprises 0, ln 2, 0. Variance ln²2 * 2 / 9, over 3 - 1.
        assert!((report.nats_per_token - 2_f64.ln() / 3.0).abs() < 1e-15);
        let expected = report.perplexity * 2_f64.ln() / 3.0;
        assert!((report.standard_error - expected).abs() < 1e-14, "{report:?}");
    }
}
