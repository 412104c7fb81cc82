//! How answers are chosen, as `/params` shows and changes it.

use super::settings;
use crate::args::{SamplingArgs, TemplateKwargs};
use anyhow::{Context, Result, bail};
use dsv3_engine::{ChatTemplate, GenerationConfig, Penalties, SamplingParams, random_seed};
use serde_json::Value;
use std::{collections::BTreeSet, fmt, str::FromStr};

/// How answers are chosen. The values have been checked.
#[derive(Clone, Debug)]
pub(super) struct Params {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    repetition_penalty: f32,
    /// Of the first answer; each further one takes the next.
    seed: u64,
    max_new_tokens: Option<usize>,
    variables: TemplateKwargs,
    /// The names of the variables that the template reads.
    known: BTreeSet<String>,
}

impl Params {
    /// The options, or what the checkpoint says.
    ///
    /// # Errors
    /// Values out of their range; a variable that the template does not read.
    pub(super) fn new(
        args: &SamplingArgs,
        defaults: &GenerationConfig,
        variables: TemplateKwargs,
        template: &ChatTemplate,
    ) -> Result<Self> {
        let sampling = settings::sampling(args, defaults)?;
        let params = Self {
            temperature: sampling.temperature(),
            top_p: args.top_p.unwrap_or(defaults.top_p),
            top_k: args.top_k.unwrap_or(defaults.top_k),
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty,
            seed: args.seed.unwrap_or_else(random_seed),
            max_new_tokens: args.max_new_tokens,
            variables,
            known: template.variables().clone(),
        };
        for name in params.variables.keys() {
            params.check_variable(name)?;
        }
        Ok(params)
    }

    /// For the answer that comes after `answers` others.
    ///
    /// # Errors
    /// Values out of their range, which [`set`](Self::set) does not leave.
    pub(super) fn sampling(&self, answers: u64) -> Result<SamplingParams> {
        let penalties = Penalties { repetition: self.repetition_penalty, ..Penalties::NONE };
        let seed = self.seed.wrapping_add(answers);
        let drawn = SamplingParams::new(self.temperature, self.top_k, self.top_p, seed)?
            .with_min_p(self.min_p)?
            .with_penalties(penalties)?;
        // The others are checked all the same, and count once more when the temperature does.
        if self.temperature == 0.0 {
            return Ok(SamplingParams::GREEDY.with_penalties(penalties)?);
        }
        Ok(drawn)
    }

    /// The most tokens of an answer.
    pub(super) fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or(usize::MAX)
    }

    /// The chat template's variables.
    pub(super) fn variables(&self) -> &TemplateKwargs {
        &self.variables
    }

    /// In a few words, with what it takes to repeat the run.
    pub(super) fn summary(&self) -> String {
        let Self { temperature, top_p, top_k, min_p, repetition_penalty, seed, .. } = self;
        let mut summary = if *temperature == 0.0 {
            "greedy".to_owned()
        } else {
            let top_k = if *top_k > 0 { format!(", top-k {top_k}") } else { String::new() };
            let min_p = if *min_p > 0.0 { format!(", min-p {min_p}") } else { String::new() };
            format!("temperature {temperature}, top-p {top_p}{top_k}{min_p}, seed {seed}")
        };
        if *repetition_penalty != 1.0 {
            summary += &format!(", repetition penalty {repetition_penalty}");
        }
        summary
    }

    /// Changes one. For a variable of the template, the value is JSON or a text.
    ///
    /// # Errors
    /// A name that is none, or a value out of its range; nothing changes then.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let mut new = self.clone();
        match name {
            "temperature" => new.temperature = number(name, value)?,
            "top_p" => new.top_p = number(name, value)?,
            "top_k" => new.top_k = number(name, value)?,
            "min_p" => new.min_p = number(name, value)?,
            "repetition_penalty" => new.repetition_penalty = number(name, value)?,
            "seed" => new.seed = number(name, value)?,
            "max_new_tokens" if value == "none" => new.max_new_tokens = None,
            "max_new_tokens" => new.max_new_tokens = Some(number(name, value)?),
            _ => {
                self.check_variable(name)?;
                let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
                new.variables.insert(name.to_owned(), value);
            }
        }
        new.sampling(0)?;
        *self = new;
        Ok(())
    }

    fn check_variable(&self, name: &str) -> Result<()> {
        if !self.known.contains(name) {
            bail!("{name} is neither a parameter nor a variable of the chat template");
        }
        Ok(())
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    value.parse().with_context(|| format!("{name} cannot be {value:?}"))
}

/// One a line.
impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let greedy = if self.temperature == 0.0 { " (greedy)" } else { "" };
        writeln!(f, "temperature {}{greedy}", self.temperature)?;
        writeln!(f, "top_p {}\ntop_k {}\nmin_p {}", self.top_p, self.top_k, self.min_p)?;
        writeln!(f, "repetition_penalty {}\nseed {}", self.repetition_penalty, self.seed)?;
        match self.max_new_tokens {
            Some(limit) => write!(f, "max_new_tokens {limit}")?,
            None => write!(f, "max_new_tokens none")?,
        }
        self.variables.iter().try_for_each(|(name, value)| write!(f, "\n{name} {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> Params {
        Params {
            temperature: 0.6,
            top_p: 0.95,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 7,
            max_new_tokens: None,
            variables: TemplateKwargs::new(),
            known: BTreeSet::from(["thinking".to_owned()]),
        }
    }

    #[test]
    fn what_is_set_is_shown() {
        let mut params = params();
        for (name, value) in [
            ("temperature", "1.5"),
            ("top_k", "3"),
            ("min_p", "0.1"),
            ("repetition_penalty", "1.2"),
            ("max_new_tokens", "9"),
            ("thinking", "true"),
        ] {
            params.set(name, value).unwrap();
        }
        assert_eq!(
            params.to_string(),
            "temperature 1.5\ntop_p 0.95\ntop_k 3\nmin_p 0.1\nrepetition_penalty 1.2\nseed 7\nmax_new_tokens 9\nthinking true"
        );
        assert_eq!(
            params.summary(),
            "temperature 1.5, top-p 0.95, top-k 3, min-p 0.1, seed 7, repetition penalty 1.2"
        );
        let sampling = params.sampling(0).unwrap();
        assert_eq!((sampling.min_p(), sampling.penalties().repetition), (0.1, 1.2));
        assert_eq!(params.variables()["thinking"], Value::Bool(true));
        params.set("thinking", "hard").unwrap();
        assert_eq!(params.variables()["thinking"], Value::from("hard"));
        params.set("max_new_tokens", "none").unwrap();
        assert_eq!(params.max_new_tokens(), usize::MAX);
        params.set("temperature", "0").unwrap();
        let greedy = params.sampling(0).unwrap();
        assert!(greedy.is_greedy() && greedy.penalties().repetition == 1.2);
        assert_eq!(params.summary(), "greedy, repetition penalty 1.2");
    }

    #[test]
    fn what_cannot_be_changes_nothing() {
        let mut params = params();
        for (name, value) in [
            ("temperature", "-1"),
            ("top_p", "2"),
            ("min_p", "2"),
            ("repetition_penalty", "0"),
            ("top_k", "x"),
            ("temprature", "1"),
        ] {
            let error = params.set(name, value).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert_eq!(params.summary(), "temperature 0.6, top-p 0.95, seed 7");
    }

    #[test]
    fn each_answer_has_a_seed_of_its_own() {
        assert_eq!([0, 1].map(|answers| params().sampling(answers).unwrap().seed()), [7, 8]);
    }
}
