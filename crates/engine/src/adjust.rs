//! What changes logits before a token is chosen: biases that the request gives, and penalties on tokens that are there
//! already.
//!
//! They apply in vLLM's order: biases, repetition penalty, frequency penalty, presence penalty. As there and in
//! transformers, the repetition penalty looks at prompt and answer, the other two at the answer alone.

use std::collections::{BTreeMap, BTreeSet};

use dsv3_runtime::TokenId;
use serde::Serialize;

use crate::{Error, check_range};

/// How much less likely a token becomes that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Penalties {
    /// Taken off the logit of each token that was generated.
    pub presence: f32,
    /// Taken off the logit of a token for each time that it was generated.
    pub frequency: f32,
    /// Divides the positive and multiplies the negative logits of tokens of the prompt and of generated ones.
    pub repetition: f32,
}

impl Penalties {
    /// None.
    pub const NONE: Self = Self { presence: 0.0, frequency: 0.0, repetition: 1.0 };

    /// Whether they are in their ranges.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a presence or frequency penalty outside of [-2, 2], as in the OpenAI interface, and a
    /// repetition penalty outside of [0.01, 100], far beyond what is of use and without logits that overflow.
    pub fn check(&self) -> Result<(), Error> {
        let &Self { presence, frequency, repetition } = self;
        let by_two = |value: f32| (-2.0..=2.0).contains(&value);
        check_range("presence_penalty", presence, by_two(presence), "at least -2 and at most 2")?;
        check_range("frequency_penalty", frequency, by_two(frequency), "at least -2 and at most 2")?;
        let is_factor = (0.01..=100.0).contains(&repetition);
        check_range("repetition_penalty", repetition, is_factor, "at least 0.01 and at most 100")
    }
}

/// Whether biases are in their range and of the vocabulary.
///
/// # Errors
/// [`Error::Parameter`] for a bias outside of [-100, 100], as in the OpenAI interface, or of an id that is none.
pub(crate) fn check_bias(bias: &[(TokenId, f32)], vocab_size: usize) -> Result<(), Error> {
    for &(token, bias) in bias {
        check_range("logit_bias", bias, (-100.0..=100.0).contains(&bias), "at least -100 and at most 100")?;
        if token.0 as usize >= vocab_size {
            let (value, expected) = (token.0.to_string(), "an id of the model's vocabulary");
            return Err(Error::Parameter { parameter: "logit_bias", value, expected });
        }
    }
    Ok(())
}

/// What changes the logits of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Adjustments {
    bias: Vec<(TokenId, f32)>,
    penalties: Penalties,
    prompt: BTreeSet<TokenId>,
    generated: BTreeMap<TokenId, u32>,
}

impl Adjustments {
    pub(crate) fn new(bias: Vec<(TokenId, f32)>, penalties: Penalties, prompt: &[TokenId]) -> Self {
        let looks_at_prompt = penalties.repetition != 1.0;
        let prompt = if looks_at_prompt { prompt.iter().copied().collect() } else { BTreeSet::new() };
        Self { bias, penalties, prompt, generated: BTreeMap::new() }
    }

    /// Whether all logits stay as they are.
    pub(crate) fn are_none(&self) -> bool {
        self.bias.is_empty() && self.penalties == Penalties::NONE
    }

    /// Counts a generated token.
    pub(crate) fn push(&mut self, token: TokenId) {
        if self.penalties != Penalties::NONE {
            *self.generated.entry(token).or_default() += 1;
        }
    }

    /// Changes `logits` `[vocab]`.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        let Penalties { presence, frequency, repetition } = self.penalties;
        for &(token, bias) in &self.bias {
            logits[token.0 as usize] += bias;
        }
        if repetition != 1.0 {
            let only_in_prompt = self.prompt.iter().filter(|token| !self.generated.contains_key(token));
            for token in self.generated.keys().chain(only_in_prompt) {
                let logit = &mut logits[token.0 as usize];
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
        }
        for (token, &count) in &self.generated {
            let logit = &mut logits[token.0 as usize];
            *logit -= frequency * count as f32;
            *logit -= presence;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn penalties_outside_of_their_range_are_refused_by_name() {
        let refused = |penalties: Penalties| match penalties.check().unwrap_err() {
            Error::Parameter { parameter, .. } => parameter,
            other => panic!("{other}"),
        };
        assert_eq!(refused(Penalties { presence: 2.1, ..Penalties::NONE }), "presence_penalty");
        assert_eq!(refused(Penalties { frequency: f32::NAN, ..Penalties::NONE }), "frequency_penalty");
        for repetition in [0.0, -1.0, 0.009, 100.1, f32::INFINITY, f32::NAN] {
            assert_eq!(refused(Penalties { repetition, ..Penalties::NONE }), "repetition_penalty");
        }
        Penalties { presence: -2.0, frequency: 2.0, repetition: 1.3 }.check().unwrap();
        let refused = |bias: &[(TokenId, f32)]| check_bias(bias, 10).unwrap_err().to_string();
        assert_eq!(
            refused(&[(TokenId(3), 101.0)]),
            "logit_bias is 101, but must be at least -100 and at most 100"
        );
        assert_eq!(
            refused(&[(TokenId(10), 1.0)]),
            "logit_bias is 10, but must be an id of the model's vocabulary"
        );
    }

    /// The definition, token by token.
    fn plain(
        logits: &[f32],
        bias: &[(TokenId, f32)],
        penalties: Penalties,
        prompt: &[TokenId],
        generated: &[TokenId],
    ) -> Vec<f32> {
        let adjust = |(id, &logit): (u32, &f32)| {
            let token = TokenId(id);
            let mut logit = logit;
            for (_, bias) in bias.iter().filter(|(other, _)| *other == token) {
                logit += bias;
            }
            let count = generated.iter().filter(|&&other| other == token).count();
            if penalties.repetition != 1.0 && (count > 0 || prompt.contains(&token)) {
                logit = if logit > 0.0 { logit / penalties.repetition } else { logit * penalties.repetition };
            }
            if count > 0 {
                logit -= penalties.frequency * count as f32;
                logit -= penalties.presence;
            }
            logit
        };
        (0..).zip(logits).map(adjust).collect()
    }

    proptest! {
        #[test]
        fn logits_change_as_the_definition_says(
            logits in prop::collection::vec(-20.0..20.0_f32, 30),
            bias in prop::collection::vec((0..30_u32, -100.0..100.0_f32), 0..4),
            (presence, frequency, repetition) in (-2.0..2.0_f32, -2.0..2.0_f32, 0.5..2.0_f32),
            prompt in prop::collection::vec(0..30_u32, 0..10),
            generated in prop::collection::vec(0..30_u32, 0..20),
        ) {
            let ids = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
            let bias: Vec<_> = bias.iter().map(|&(id, bias)| (TokenId(id), bias)).collect();
            let penalties = Penalties { presence, frequency, repetition };
            let mut adjustments = Adjustments::new(bias.clone(), penalties, &ids(&prompt));
            ids(&generated).into_iter().for_each(|token| adjustments.push(token));
            let mut adjusted = logits.clone();
            adjustments.apply(&mut adjusted);
            prop_assert_eq!(adjusted, plain(&logits, &bias, penalties, &ids(&prompt), &ids(&generated)));
        }
    }
}
