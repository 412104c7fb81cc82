//! The tokens that may still be chosen: temperature, min-p, top-k and top-p. The first three may stand in any order.
//!
//! A vocabulary has 129 280 ids and is never sorted: top-k selects the k-th logit, top-p sorts block by block of
//! growing size until the blocks hold the mass. What is kept, and its order, follows from the logits alone (ties
//! by id), never from how a selection happens to permute, so that a seed repeats.

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    token: u32,
    /// The logit; then, from [`Candidates::weigh`] on, a probability up to a common factor.
    weight: f32,
}

/// The candidates of one step, with their buffers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidates {
    entries: Vec<Candidate>,
    scratch: Vec<f32>,
}

/// How many candidates the first block of [`Candidates::keep_top_p`] sorts; most nuclei are smaller.
const FIRST_BLOCK: usize = 64;

impl Candidates {
    /// Fills in the candidates: the `top_k` highest logits (0: all), `-inf` left out, in the order of their ids.
    /// Logits that equal the k-th are kept too, as in Hugging Face's `TopKLogitsWarper`.
    pub(crate) fn fill(&mut self, logits: &[f32], top_k: usize) {
        let threshold = if (1..logits.len()).contains(&top_k) {
            self.scratch.clear();
            self.scratch.extend_from_slice(logits);
            let (_, kth, _) = self.scratch.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
            *kth
        } else {
            f32::NEG_INFINITY
        };
        self.entries.clear();
        let kept = (0..).zip(logits).filter(|&(_, &logit)| logit >= threshold && logit > f32::NEG_INFINITY);
        self.entries.extend(kept.map(|(token, &weight)| Candidate { token, weight }));
    }

    /// Turns logits into weights: `exp((logit - max) / temperature)`. The maximum is subtracted first, so the
    /// smallest temperature overflows nothing.
    pub(crate) fn weigh(&mut self, max: f32, temperature: f32) {
        for candidate in &mut self.entries {
            let below = candidate.weight - max;
            // 0 / temperature would be NaN for a temperature that is itself rounded to 0.
            candidate.weight = if below == 0.0 { 1.0 } else { (below / temperature).exp() };
        }
    }

    /// Keeps the candidates of at least `min_p` of the highest logit's probability, whose weight is 1.
    pub(crate) fn keep_min_p(&mut self, min_p: f32) {
        self.entries.retain(|candidate| candidate.weight >= min_p);
    }

    /// Keeps the fewest candidates, highest weight first, that hold at least `top_p` of the mass; at least one.
    pub(crate) fn keep_top_p(&mut self, top_p: f64) {
        let goal = top_p * self.mass();
        // All candidates below this weight together have less than 1 - top_p, and the mass is at least the heaviest
        // one's 1: the goal is reached without them. On a trained model's logits that leaves a few hundred to sort.
        let negligible = (1.0 - top_p) / self.entries.len() as f64;
        self.entries.retain(|candidate| f64::from(candidate.weight) >= negligible);
        let mut mass = 0.0;
        let mut sorted = 0;
        let mut block_len = FIRST_BLOCK;
        while sorted < self.entries.len() {
            let rest = &mut self.entries[sorted..];
            if block_len < rest.len() {
                rest.select_nth_unstable_by(block_len - 1, heavier_first);
            }
            block_len = block_len.min(rest.len());
            let block = &mut rest[..block_len];
            block.sort_unstable_by(heavier_first);
            for (index, candidate) in block.iter().enumerate() {
                mass += f64::from(candidate.weight);
                if mass >= goal {
                    self.entries.truncate(sorted + index + 1);
                    return;
                }
            }
            sorted += block_len;
            block_len *= 4;
        }
    }

    /// The candidate at the fraction `at` (`0 <= at < 1`) of the mass.
    ///
    /// # Panics
    /// If there is no candidate with a weight.
    pub(crate) fn draw(&self, at: f64) -> u32 {
        let target = at * self.mass();
        let mut passed = 0.0;
        let mut last = None;
        for candidate in self.entries.iter().filter(|candidate| candidate.weight > 0.0) {
            passed += f64::from(candidate.weight);
            last = Some(candidate.token);
            if passed > target {
                break;
            }
        }
        last.expect("the highest logit's weight is 1")
    }

    fn mass(&self) -> f64 {
        self.entries.iter().map(|candidate| f64::from(candidate.weight)).sum()
    }

    /// The probability of each token of the vocabulary.
    #[cfg(test)]
    pub(crate) fn probabilities(&self, vocab_size: usize) -> Vec<f64> {
        let mut probabilities = vec![0.0; vocab_size];
        for candidate in &self.entries {
            probabilities[candidate.token as usize] = f64::from(candidate.weight) / self.mass();
        }
        probabilities
    }

    #[cfg(test)]
    fn tokens(&self) -> Vec<u32> {
        self.entries.iter().map(|candidate| candidate.token).collect()
    }
}

fn heavier_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(logits: &[f32], temperature: f32, top_k: usize, top_p: f64) -> Vec<u32> {
        let mut candidates = Candidates::default();
        candidates.fill(logits, top_k);
        candidates.weigh(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max), temperature);
        candidates.keep_top_p(top_p);
        let mut tokens = candidates.tokens();
        tokens.sort_unstable();
        tokens
    }

    /// The definition: a full sort, then a cut at k (and what ties with it), then a cut at the mass.
    fn naive(logits: &[f32], temperature: f32, top_k: usize, top_p: f64) -> Vec<u32> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let kth = if top_k == 0 { f32::NEG_INFINITY } else { logits[order[top_k.min(order.len()) - 1]] };
        order.retain(|&id| logits[id] >= kth && logits[id] > f32::NEG_INFINITY);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |id: usize| f64::from(((logits[id] - max) / temperature).exp());
        // The same order of addition as the filter's, so that the goal is the same number.
        let goal = top_p * (0..logits.len()).filter(|id| order.contains(id)).map(weight).sum::<f64>();
        order.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
        let mut mass = 0.0;
        let mut kept = Vec::new();
        for id in order {
            mass += weight(id);
            kept.push(u32::try_from(id).unwrap());
            if mass >= goal {
                break;
            }
        }
        kept.sort_unstable();
        kept
    }

    #[test]
    fn top_k_keeps_what_ties_with_the_kth() {
        assert_eq!(candidates(&[1.0, 3.0, 2.0, 2.0, 0.0], 1.0, 2, 1.0), [1, 2, 3]);
        assert_eq!(candidates(&[1.0, 3.0], 1.0, 5, 1.0), [0, 1]);
    }

    #[test]
    fn top_p_keeps_the_one_that_crosses() {
        // Probabilities 0.5, 0.25, 0.25: a half is reached by the first alone, 0.6 needs a second.
        let logits = [0.25_f32.ln(), 0.5_f32.ln(), 0.25_f32.ln()];
        assert_eq!(candidates(&logits, 1.0, 0, 0.4), [1]);
        assert_eq!(candidates(&logits, 1.0, 0, 0.6), [0, 1]);
        assert_eq!(candidates(&logits, 1.0, 0, 1e-9), [1], "one is always kept");
    }

    #[test]
    fn the_smallest_temperature_leaves_the_highest_logit() {
        let mut candidates = Candidates::default();
        candidates.fill(&[1e30, -1e30, f32::NEG_INFINITY], 0);
        candidates.weigh(1e30, f32::from_bits(1));
        assert_eq!(candidates.draw(0.999), 0);
    }

    proptest! {
        #[test]
        fn the_kept_set_is_the_definition_s(
            // Quarters, so that ties are common; up to 400 ids, so that several blocks are sorted.
            quarters in prop::collection::vec(-40..40_i32, 1..400),
            temperature in 0.1..3.0_f32,
            top_k in 0..500_usize,
            top_p in 0.01..1.0_f64,
        ) {
            let logits: Vec<f32> = quarters
                .iter()
                .map(|&q| if q == -40 { f32::NEG_INFINITY } else { q as f32 / 4.0 })
                .collect();
            prop_assume!(logits.iter().any(|logit| logit.is_finite()));
            prop_assert_eq!(
                candidates(&logits, temperature, top_k, top_p),
                naive(&logits, temperature, top_k, top_p)
            );
        }

        #[test]
        fn what_is_drawn_was_kept(
            logits in prop::collection::vec(-20.0..20.0_f32, 1..200),
            top_k in 0..50_usize,
            top_p in 0.01..1.0_f64,
            at in 0.0..1.0_f64,
        ) {
            let mut filtered = Candidates::default();
            filtered.fill(&logits, top_k);
            filtered.weigh(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max), 0.7);
            filtered.keep_top_p(top_p);
            prop_assert!(naive(&logits, 0.7, top_k, top_p).contains(&filtered.draw(at)));
        }
    }
}
