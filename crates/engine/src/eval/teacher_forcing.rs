//! Accuracy under teacher forcing: at every step the model is given the reference's token, whatever it chose itself, so
//! that one other choice does not make all that follows differ.
//!
//! The measure is that of the original's demo (tt-metal, `models/demos/deepseek_v3/demo/token_accuracy.py`), and so are
//! the file's fields.

use std::path::Path;

use dsv3_runtime::TokenId;
use serde::{Deserialize, Serialize};

use super::{Feed, top_tokens};
use crate::{Error, LanguageModel, ModelLimits, files};

/// How many of the reference's likeliest tokens a choice is looked up in.
const TOP: usize = 5;
/// The original's name of this layout.
const FORMAT: &str = "multi_prompt_v1";

/// A file of prompts, what a reference made of them, and which tokens it found likeliest on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    format_version: String,
    entries: Vec<Entry>,
}

/// One prompt of a reference. Other fields of a file are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The prompt, `[prompt]`.
    pub prompt_tokens: Vec<TokenId>,
    /// What the reference generated, `[generated]`.
    pub generated_tokens: Vec<TokenId>,
    /// The reference's likeliest tokens for each generated one, likeliest first, `[generated, 5]`. The original's files
    /// have rows for the prompt's tokens in front, which are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top5_tokens: Option<Vec<Vec<TokenId>>>,
}

/// How often a model chose the reference's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Accuracy {
    /// Tokens that the reference generated.
    pub tokens: usize,
    /// At how many of them the model found the reference's token likeliest.
    pub top1: usize,
    /// At how many of them the model's likeliest token was one of the reference's five; if the reference has them.
    pub top5: Option<usize>,
    /// The first generated token that the model would have chosen otherwise.
    pub first_difference: Option<usize>,
}

/// Runs a model along references.
pub struct TeacherForcing<'a, M> {
    feed: Feed<'a, M>,
}

impl Reference {
    /// One of these entries.
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { format_version: FORMAT.to_owned(), entries }
    }

    /// Reads a JSON file.
    ///
    /// # Errors
    /// A file that cannot be read, has another layout, or has an entry whose lists do not fit together; the error
    /// names the field.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut reference: Self = files::read_json(path)?;
        let field = |field: String, message: String| Error::Field { path: path.to_owned(), field, message };
        if reference.format_version != FORMAT {
            let message = format!("expected {FORMAT:?}, got {:?}", reference.format_version);
            return Err(field("format_version".to_owned(), message));
        }
        if reference.entries.is_empty() {
            return Err(field("entries".to_owned(), "expected one entry at least, got none".to_owned()));
        }
        for (index, entry) in reference.entries.iter_mut().enumerate() {
            entry.check().map_err(|(name, message)| field(format!("entries[{index}].{name}"), message))?;
        }
        Ok(reference)
    }

    /// The prompts, in order; one at least if the reference was read.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Entry {
    /// Checks that the lists fit together, and drops the prompt's rows of the likeliest tokens.
    fn check(&mut self) -> Result<(), (&'static str, String)> {
        let (prompt, generated) = (self.prompt_tokens.len(), self.generated_tokens.len());
        for (name, length) in [("prompt_tokens", prompt), ("generated_tokens", generated)] {
            if length == 0 {
                return Err((name, "expected one token at least, got none".to_owned()));
            }
        }
        if let Some(rows) = &mut self.top5_tokens {
            if rows.len() == prompt + generated {
                rows.drain(..prompt);
            }
            if rows.len() != generated {
                let message = format!("expected {generated} rows, one a generated token, got {}", rows.len());
                return Err(("top5_tokens", message));
            }
            if let Some(at) = rows.iter().position(|row| row.len() != TOP) {
                let message = format!("expected rows of {TOP} tokens, got {} in row {at}", rows[at].len());
                return Err(("top5_tokens", message));
            }
        }
        Ok(())
    }

    /// Positions that a run of this entry takes: the last generated token is not run.
    pub fn positions(&self) -> usize {
        self.prompt_tokens.len() + self.generated_tokens.len() - 1
    }

    /// Whether a model can run the entry.
    ///
    /// # Errors
    /// As [`ModelLimits::check_prompt`].
    pub fn check_limits(&self, limits: &ModelLimits) -> Result<(), Error> {
        let (last, run) = self.generated_tokens.split_last().expect("an entry has generated tokens");
        limits.check_prompt(&[&self.prompt_tokens[..], run].concat())?;
        limits.check_prompt(&[*last])
    }
}

impl Accuracy {
    fn count(&mut self, chosen: TokenId, expected: TokenId, top5: Option<&[TokenId]>) {
        if chosen == expected {
            self.top1 += 1;
        } else {
            self.first_difference.get_or_insert(self.tokens);
        }
        self.top5 = match (top5, self.top5, self.tokens) {
            (Some(row), Some(count), _) => Some(count + usize::from(row.contains(&chosen))),
            (Some(row), None, 0) => Some(usize::from(row.contains(&chosen))),
            _ => None,
        };
        self.tokens += 1;
    }

    /// All together: top-5 only if each has it, and no place of a first difference.
    pub fn sum(accuracies: &[Self]) -> Self {
        let total = |count: fn(&Self) -> usize| accuracies.iter().map(count).sum();
        let top5 = accuracies.iter().map(|accuracy| accuracy.top5).sum();
        let (tokens, top1) = (total(|accuracy| accuracy.tokens), total(|accuracy| accuracy.top1));
        Self { tokens, top1, top5, first_difference: None }
    }

    /// The share of the tokens at which the model chose the reference's.
    pub fn top1_share(&self) -> f64 {
        self.top1 as f64 / self.tokens as f64
    }

    /// The share of the tokens at which the model chose one of the reference's five.
    pub fn top5_share(&self) -> Option<f64> {
        self.top5.map(|top5| top5 as f64 / self.tokens as f64)
    }
}

impl<'a, M: LanguageModel> TeacherForcing<'a, M> {
    /// Along a feed.
    pub fn new(feed: Feed<'a, M>) -> Self {
        Self { feed }
    }

    /// How often the model chooses an entry's tokens: the prompt by prefill, then token by token.
    ///
    /// # Errors
    /// If the model cannot run the entry, fails, or gives logits from which no token can be chosen.
    pub fn accuracy(&mut self, entry: &Entry) -> Result<Accuracy, Error> {
        entry.check_limits(self.feed.limits())?;
        let mut accuracy = Accuracy::default();
        let mut choice = self.first(&entry.prompt_tokens)?;
        for (index, &expected) in entry.generated_tokens.iter().enumerate() {
            let top5 = entry.top5_tokens.as_ref().map(|rows| &rows[index][..]);
            accuracy.count(choice[0], expected, top5);
            if index + 1 < entry.generated_tokens.len() {
                choice = top(&self.feed.decode(expected)?)?;
            }
        }
        Ok(accuracy)
    }

    /// Makes a reference of the model's own greedy continuation: up to `count` tokens, to one of `eos` at most, which
    /// is kept.
    ///
    /// # Errors
    /// If the model cannot run the prompt or the context ends, the model fails, or gives logits from which no token
    /// can be chosen.
    ///
    /// # Panics
    /// If `count` is 0, or the vocabulary has less than 5 tokens.
    pub fn generate(&mut self, prompt: &[TokenId], count: usize, eos: &[TokenId]) -> Result<Entry, Error> {
        assert!(count > 0, "a reference has one generated token at least");
        let (mut generated, mut rows) = (Vec::new(), Vec::new());
        let mut choice = self.first(prompt)?;
        loop {
            assert_eq!(choice.len(), TOP, "the vocabulary has {TOP} tokens");
            let token = choice[0];
            generated.push(token);
            rows.push(choice);
            if generated.len() == count || eos.contains(&token) {
                let prompt_tokens = prompt.to_vec();
                return Ok(Entry { prompt_tokens, generated_tokens: generated, top5_tokens: Some(rows) });
            }
            choice = top(&self.feed.decode(token)?)?;
        }
    }

    /// The likeliest tokens after a prompt.
    fn first(&mut self, prompt: &[TokenId]) -> Result<Vec<TokenId>, Error> {
        let mut choice = Vec::new();
        let last = prompt.len().saturating_sub(1);
        self.feed.prefill(prompt, last..prompt.len(), |_, logits| {
            choice = top(logits)?;
            Ok(())
        })?;
        Ok(choice)
    }
}

/// The five likeliest tokens.
fn top(logits: &[f32]) -> Result<Vec<TokenId>, Error> {
    super::Distribution::new(logits)?;
    Ok(top_tokens(logits, TOP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{EOS, FakeModel, VOCAB_SIZE};

    const LIMITS: ModelLimits =
        ModelLimits { vocab_size: VOCAB_SIZE, max_context: 16, page_size: 4, page_count: 4, rows: 1 };

    /// Counts on: after n comes n + 1, then n + 2 and so on are the next likely; after 40 the text ends.
    fn counting(tokens: &[TokenId]) -> Vec<f32> {
        let last = tokens[tokens.len() - 1].0 as usize;
        let mut logits = vec![0.0; VOCAB_SIZE];
        if last == 40 {
            logits[EOS.0 as usize] = 20.0;
        }
        for next in 1..6 {
            logits[last + next] = 10.0 - next as f32;
        }
        logits
    }

    fn ids<const N: usize>(ids: [u32; N]) -> Vec<TokenId> {
        ids.map(TokenId).to_vec()
    }

    #[test]
    fn its_own_continuation_is_all_right() {
        let mut model = FakeModel::new(LIMITS, counting);
        let mut forcing = TeacherForcing::new(Feed::new(&mut model, 2));
        let entry = forcing.generate(&ids([9, 36, 37]), 10, &[EOS]).unwrap();
        assert_eq!(entry.generated_tokens, ids([38, 39, 40, 1]), "the end is kept");
        assert_eq!(entry.top5_tokens.as_ref().unwrap()[0], ids([38, 39, 40, 41, 42]));
        let accuracy = forcing.accuracy(&entry).unwrap();
        assert_eq!(accuracy, Accuracy { tokens: 4, top1: 4, top5: Some(4), first_difference: None });
        assert_eq!(forcing.generate(&ids([9]), 2, &[EOS]).unwrap().generated_tokens, ids([10, 11]));
        assert_eq!(model.decodes, 3 + 3 + 1, "the last token is not run");
    }

    #[test]
    fn the_model_is_given_the_references_tokens() {
        let mut model = FakeModel::new(LIMITS, counting);
        let mut forcing = TeacherForcing::new(Feed::new(&mut model, 8));
        // The model says 21, 31, 32, 53: right, wrong, right, wrong; of the wrong ones 31 is one of five.
        let row = |first: u32| (first..first + 5).map(TokenId).collect::<Vec<_>>();
        let entry = Entry {
            prompt_tokens: ids([20]),
            generated_tokens: ids([30, 31, 52, 53]),
            top5_tokens: Some(vec![row(30), row(31), row(29), row(53)]),
        };
        let accuracy = forcing.accuracy(&entry).unwrap();
        assert_eq!(accuracy, Accuracy { tokens: 4, top1: 2, top5: Some(3), first_difference: Some(0) });
        assert_eq!((accuracy.top1_share(), accuracy.top5_share()), (0.5, Some(0.75)));
        let without = Entry { top5_tokens: None, ..entry };
        let without = forcing.accuracy(&without).unwrap();
        assert_eq!((without.top1, without.top5), (2, None));
        let both = Accuracy::sum(&[accuracy, without]);
        assert_eq!(both, Accuracy { tokens: 8, top1: 4, top5: None, first_difference: None });
        assert_eq!(Accuracy::sum(&[accuracy, accuracy]).top5, Some(6));
    }

    fn read(json: &serde_json::Value) -> Result<Reference, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reference.json");
        std::fs::write(&path, json.to_string()).unwrap();
        Reference::read(&path)
    }

    #[test]
    fn the_originals_layout_is_read() {
        let rows: Vec<[u32; 5]> = (0..4).map(|row| [row, 7, 7, 7, 7]).collect();
        let entry = serde_json::json!({
            "prompt_tokens": [1, 2], "generated_tokens": [3, 4], "top5_tokens": rows,
            "tf_prompt_len": 2, "prompt": "x", "decoded_generated_text": "y",
        });
        let json = serde_json::json!({ "format_version": "multi_prompt_v1", "entries": [entry] });
        let reference = read(&json).unwrap();
        let top5 = reference.entries()[0].top5_tokens.as_ref().unwrap();
        assert_eq!((top5.len(), top5[0][0]), (2, TokenId(2)), "the prompt's rows are dropped");
        assert_eq!(reference.entries()[0].positions(), 3);
        let again = Reference::new(reference.entries().to_vec());
        assert_eq!(read(&serde_json::to_value(&again).unwrap()).unwrap(), reference);
    }

    #[test]
    fn files_that_do_not_fit_together_are_refused_by_field() {
        let whole = |entry: serde_json::Value| serde_json::json!({ "format_version": "multi_prompt_v1", "entries": [entry] });
        let entry = |prompt: &[u32], generated: &[u32], top5: &[&[u32]]| {
            whole(serde_json::json!({
                "prompt_tokens": prompt, "generated_tokens": generated, "top5_tokens": top5,
            }))
        };
        for (json, part) in [
            (serde_json::json!({ "format_version": "v9", "entries": [] }), "format_version: expected"),
            (
                serde_json::json!({ "format_version": "multi_prompt_v1", "entries": [] }),
                "entries: expected one",
            ),
            (entry(&[], &[1], &[&[1, 2, 3, 4, 5]]), "entries[0].prompt_tokens: expected one"),
            (entry(&[1], &[], &[]), "entries[0].generated_tokens: expected one"),
            (entry(&[1], &[1, 2], &[&[1, 2, 3, 4, 5]]), "entries[0].top5_tokens: expected 2 rows"),
            (entry(&[1], &[1], &[&[1, 2, 3]]), "rows of 5 tokens, got 3 in row 0"),
            (whole(serde_json::json!({ "prompt_tokens": [-1] })), "entries[0].prompt_tokens[0]"),
        ] {
            let error = read(&json).unwrap_err().to_string();
            assert!(error.contains(part), "expected {part:?} in {error:?}");
        }
    }

    #[test]
    fn an_entry_beyond_the_model_is_refused_before_it_runs() {
        let mut model = FakeModel::new(LIMITS, counting);
        let mut forcing = TeacherForcing::new(Feed::new(&mut model, 8));
        let entry = |generated: Vec<TokenId>| Entry {
            prompt_tokens: ids([20]),
            generated_tokens: generated,
            top5_tokens: None,
        };
        let error = forcing.accuracy(&entry(vec![TokenId(9); 17])).unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { prompt: 17, context: 16 }), "{error}");
        for generated in [ids([280, 9]), ids([9, 280])] {
            let error = forcing.accuracy(&entry(generated)).unwrap_err();
            assert!(matches!(error, Error::TokenOutOfVocabulary { .. }), "{error}");
        }
        assert!(model.prefills.is_empty());
    }
}
