//! From one row of logits to a token: greedy, or by temperature, min-p, top-k and top-p with a seed that repeats.
//!
//! What changes the logits before, penalties and biases, is in [`adjust`](crate::adjust).

use std::hash::{BuildHasher, Hasher, RandomState};

use dsv3_runtime::TokenId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use crate::adjust::Penalties;
use crate::filter::Candidates;
use crate::{Error, check_range};

/// How a token is chosen. Valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SamplingParams {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    penalties: Penalties,
    seed: u64,
}

impl SamplingParams {
    /// Always the highest logit.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, penalties: Penalties::NONE, seed: 0 };

    /// `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 keep all tokens. They apply in the order temperature, min-p,
    /// top-k, top-p, as in vLLM.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a temperature that is negative or not finite, and a top-p outside of (0, 1].
    pub fn new(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> Result<Self, Error> {
        let is_temperature = temperature.is_finite() && temperature >= 0.0;
        check_range("temperature", temperature, is_temperature, "finite and not negative")?;
        check_range("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        Ok(Self { temperature, top_k, top_p, seed, ..Self::GREEDY })
    }

    /// Keeps tokens of at least `min_p` of the likeliest one's probability; 0 keeps all.
    ///
    /// # Errors
    /// [`Error::Parameter`] outside of [0, 1].
    pub fn with_min_p(self, min_p: f32) -> Result<Self, Error> {
        check_range("min_p", min_p, (0.0..=1.0).contains(&min_p), "at least 0 and at most 1")?;
        Ok(Self { min_p, ..self })
    }

    /// Makes tokens less likely that are there already.
    ///
    /// # Errors
    /// [`Error::Parameter`] as [`Penalties::check`] says.
    pub fn with_penalties(self, penalties: Penalties) -> Result<Self, Error> {
        penalties.check()?;
        Ok(Self { penalties, ..self })
    }

    /// The divisor of the logits; 0 is greedy.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// How many of the highest logits are kept; 0 is all.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The share of the probability that is kept.
    pub fn top_p(&self) -> f32 {
        self.top_p
    }

    /// The share of the likeliest token's probability that a token must have.
    pub fn min_p(&self) -> f32 {
        self.min_p
    }

    /// What makes tokens less likely that are there already.
    pub fn penalties(&self) -> Penalties {
        self.penalties
    }

    /// What the random numbers follow from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether the highest logit is always taken, so that the seed is of no account.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// A seed for who gave none; print it, so that the run can be repeated.
pub fn random_seed() -> u64 {
    // The standard library's hash keys come from the operating system's entropy.
    RandomState::new().build_hasher().finish()
}

/// Chooses the tokens of one sequence. Its random numbers are its own: what other sequences do changes nothing.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler at the start of its seed's random numbers.
    pub fn new(params: SamplingParams) -> Self {
        Self::of_choice(params, 0)
    }

    /// The sampler of one of several choices of a request: each has a stream of the seed's random numbers to itself, and
    /// the first has that which a single one would have.
    pub fn of_choice(params: SamplingParams, choice: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
        rng.set_stream(choice);
        Self { params, rng, candidates: Candidates::default() }
    }

    /// Chooses a token from one row of logits, `[vocab]`. Greedy ties go to the lowest id.
    ///
    /// # Errors
    /// [`Error::Logit`] for a NaN or +inf, [`Error::NoToken`] if all are -inf.
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId, Error> {
        let best = highest(logits)?;
        let token = if self.params.is_greedy() {
            u32::try_from(best).expect("token ids are 32 bits wide")
        } else {
            let Self { params, rng, candidates } = self;
            candidates.fill(logits, params.top_k);
            candidates.weigh(logits[best], params.temperature);
            if params.min_p > 0.0 {
                candidates.keep_min_p(params.min_p);
            }
            if params.top_p < 1.0 {
                candidates.keep_top_p(f64::from(params.top_p));
            }
            candidates.draw(unit_interval(rng))
        };
        Ok(TokenId(token))
    }
}

/// The index of the highest logit, the lowest one of several.
///
/// # Errors
/// [`Error::Logit`] for a NaN or +inf, [`Error::NoToken`] if all are -inf.
pub(crate) fn highest(logits: &[f32]) -> Result<usize, Error> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (index, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            let token = TokenId(u32::try_from(index).expect("token ids are 32 bits wide"));
            return Err(Error::Logit { token, value: logit });
        }
        if logit > max {
            best = Some(index);
            max = logit;
        }
    }
    best.ok_or(Error::NoToken)
}

/// A number in `[0, 1)` of 53 random bits. Spelled out, so that no library's change of method changes a seed's text.
fn unit_interval(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> SamplingParams {
        SamplingParams::new(temperature, top_k, top_p, seed).unwrap()
    }

    #[test]
    fn parameters_outside_of_their_range_are_refused_by_name() {
        for temperature in [f32::NAN, f32::INFINITY, -0.1] {
            let error = SamplingParams::new(temperature, 0, 1.0, 0).unwrap_err();
            assert!(matches!(error, Error::Parameter { parameter: "temperature", .. }), "{error}");
        }
        for top_p in [f32::NAN, 0.0, -1.0, 1.01] {
            let error = SamplingParams::new(1.0, 0, top_p, 0).unwrap_err();
            assert!(matches!(error, Error::Parameter { parameter: "top_p", .. }), "{error}");
        }
        for min_p in [f32::NAN, -0.1, 1.1] {
            let error = SamplingParams::GREEDY.with_min_p(min_p).unwrap_err();
            assert!(matches!(error, Error::Parameter { parameter: "min_p", .. }), "{error}");
        }
        let error = SamplingParams::new(1.0, 0, 1.5, 0).unwrap_err();
        assert_eq!(error.to_string(), "top_p is 1.5, but must be above 0 and at most 1");
    }

    #[test]
    fn greedy_takes_the_highest_and_of_ties_the_first() {
        let mut sampler = Sampler::new(SamplingParams::GREEDY);
        assert_eq!(sampler.sample(&[0.0, 2.0, 2.0, -1.0]).unwrap(), TokenId(1));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -1e30]).unwrap(), TokenId(1));
    }

    #[test]
    fn logits_without_a_probability_are_errors() {
        for params in [SamplingParams::GREEDY, params(1.0, 2, 0.9, 0)] {
            let mut sampler = Sampler::new(params);
            let error = sampler.sample(&[0.0, f32::NAN]).unwrap_err();
            assert!(matches!(error, Error::Logit { token: TokenId(1), .. }), "{error}");
            assert!(matches!(sampler.sample(&[f32::INFINITY]), Err(Error::Logit { token: TokenId(0), .. })));
            assert!(matches!(sampler.sample(&[f32::NEG_INFINITY; 3]), Err(Error::NoToken)));
            assert!(matches!(sampler.sample(&[]), Err(Error::NoToken)));
        }
    }

    #[test]
    fn choices_of_a_request_have_random_numbers_of_their_own() {
        let logits = [0.0; 1000];
        let tokens = |choice| {
            let mut sampler = Sampler::of_choice(params(1.0, 0, 1.0, 42), choice);
            (0..4).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        let mut single = Sampler::new(params(1.0, 0, 1.0, 42));
        assert!(tokens(0).iter().all(|&token| single.sample(&logits).unwrap() == token));
        assert_ne!(tokens(0), tokens(1));
        assert_eq!(tokens(1), tokens(1));
    }

    /// Fixed for ever: a seed's choices may not change from one release or platform to the next.
    #[test]
    fn a_seed_always_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|id| (id % 7) as f32 * 0.5).collect();
        let mut sampler = Sampler::new(params(1.0, 0, 0.95, 42));
        let tokens: Vec<u32> = (0..12).map(|_| sampler.sample(&logits).unwrap().0).collect();
        assert_eq!(tokens, SEED_42);
        let mut again = Sampler::new(params(1.0, 0, 0.95, 42));
        assert!(tokens.iter().all(|&token| again.sample(&logits).unwrap().0 == token));
        let mut other = Sampler::new(params(1.0, 0, 0.95, 43));
        assert!(!tokens.iter().all(|&token| other.sample(&logits).unwrap().0 == token));
    }

    const SEED_42: [u32; 12] = [4, 16, 5, 40, 34, 20, 41, 39, 32, 27, 19, 31];

    /// The upper bound of a chi-square variable that chance exceeds once in 10^6 (Wilson and Hilferty's cube).
    fn chi_square_bound(degrees: f64) -> f64 {
        let spread = 2.0 / (9.0 * degrees);
        degrees * (1.0 - spread + 4.75 * spread.sqrt()).powi(3)
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let logits: Vec<f32> = (0..40).map(|id: i32| (id * 7 % 13) as f32 * 0.3).collect();
        for (temperature, top_k, top_p) in [(1.0, 0, 1.0), (0.7, 10, 1.0), (1.3, 0, 0.8), (0.8, 20, 0.9)] {
            let mut sampler = Sampler::new(params(temperature, top_k, top_p, 7));
            let mut kept = Candidates::default();
            kept.fill(&logits, top_k);
            kept.weigh(3.6, temperature);
            if top_p < 1.0 {
                kept.keep_top_p(f64::from(top_p));
            }
            let expected = kept.probabilities(logits.len());
            let draws = 200_000;
            let mut counts = vec![0_u32; logits.len()];
            for _ in 0..draws {
                counts[sampler.sample(&logits).unwrap().0 as usize] += 1;
            }
            let mut statistic = 0.0;
            let mut classes = 0.0;
            for (&count, probability) in counts.iter().zip(expected) {
                if probability == 0.0 {
                    assert_eq!(count, 0, "a filtered token was chosen");
                    continue;
                }
                let mean = probability * f64::from(draws);
                statistic += (f64::from(count) - mean).powi(2) / mean;
                classes += 1.0;
            }
            let bound = chi_square_bound(classes - 1.0);
            assert!(statistic < bound, "{temperature} {top_k} {top_p}: {statistic} >= {bound}");
        }
    }

    proptest! {
        #[test]
        fn top_k_of_one_is_greedy_where_there_is_no_tie(
            logits in prop::collection::hash_set(-1000..1000_i32, 1..100),
            seed: u64,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(|logit| logit as f32 / 16.0).collect();
            let greedy = Sampler::new(SamplingParams::GREEDY).sample(&logits).unwrap();
            let sampled = Sampler::new(params(1.0, 1, 1.0, seed)).sample(&logits).unwrap();
            prop_assert_eq!(greedy, sampled);
        }

        #[test]
        fn what_is_chosen_is_the_plain_definition_s(
            quarters in prop::collection::vec(-40..40_i32, 1..60),
            temperature in 0.1..3.0_f32,
            (top_k, top_p, min_p) in (0..70_usize, 0.01..=1.0_f32, 0.0..=1.0_f32),
            seed: u64,
        ) {
            let logits: Vec<f32> = quarters.iter().map(|&q| q as f32 / 4.0).collect();
            let params = params(temperature, top_k, top_p, seed).with_min_p(min_p).unwrap();
            let mut sampler = Sampler::new(params);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for _ in 0..5 {
                let expected = plain(&logits, &params, unit_interval(&mut rng));
                prop_assert_eq!(sampler.sample(&logits).unwrap().0 as usize, expected);
            }
        }
    }

    /// The definition, without a thought for speed: all tokens are sorted.
    fn plain(logits: &[f32], params: &SamplingParams, at: f64) -> usize {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |id: usize| f64::from(((logits[id] - max) / params.temperature()).exp());
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if params.top_k() > 0 && params.top_k() < order.len() {
            let kth = logits[order[params.top_k() - 1]];
            order.retain(|&id| logits[id] >= kth);
        }
        order.retain(|&id| weight(id) >= f64::from(params.min_p()));
        if params.top_p() < 1.0 {
            let in_order_of_ids = (0..logits.len()).filter(|id| order.contains(id));
            let goal = f64::from(params.top_p()) * in_order_of_ids.map(weight).sum::<f64>();
            let mut mass = 0.0;
            let crosses = |&id: &usize| {
                mass += weight(id);
                mass >= goal
            };
            let last = order.iter().position(crosses).expect("all together are the whole mass");
            order.truncate(last + 1);
        } else {
            order.sort_unstable();
        }
        let target = at * order.iter().map(|&id| weight(id)).sum::<f64>();
        let mut passed = 0.0;
        let exceeds = |&&id: &&usize| {
            passed += weight(id);
            passed > target
        };
        *order.iter().find(exceeds).expect("a share below one lies before the end")
    }
}
