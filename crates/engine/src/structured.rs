//! Answers in a given form: JSON, JSON of a schema, a regular expression, a grammar. `llguidance` follows the text and
//! says before each token which ones may come; this file brings it together with our tokenizer and sampler.

use std::sync::Arc;

use dsv3_runtime::TokenId;
use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv},
};
use serde_json::{Map, Value, json};

use crate::{Error, Tokenizer};

/// The form that an answer must have.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes. What of JSON Schema is not supported is refused by name.
    JsonSchema(Value),
    /// A text that a regular expression (of Rust's `regex` crate) matches as a whole.
    Regex(String),
    /// A text of a context-free grammar, in llguidance's dialect of Lark.
    Lark(String),
}

/// Where llguidance reads how a schema's JSON is to be written.
const OPTIONS: &str = "x-guidance";
/// White space between two words of JSON: a line's end and its indentation. A weak model, or one that would rather say
/// something else, goes on with white space to the context's end otherwise.
const SPACE: &str = r"[ \t]{1,64}|\r?\n[ \t]{0,64}";

impl Constraint {
    /// JSON of a schema, as a part of a [`Lark`](Self::Lark) grammar, with as little white space as JSON by itself.
    pub fn json_in_lark(schema: Value) -> String {
        format!("%json {}", with_bounded_space(schema))
    }

    /// What an error calls it.
    fn field(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Lark(_) => "grammar",
        }
    }

    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => {
                TopLevelGrammar::from_json_schema(with_bounded_space(json!({"type": "object"})))
            }
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_bounded_space(schema.clone())),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }
}

/// A schema that says how much white space there may be, unless it does so itself.
fn with_bounded_space(schema: Value) -> Value {
    let mut fields = match schema {
        Value::Object(fields) => fields,
        Value::Bool(true) => Map::new(),
        other => return other,
    };
    fields.entry(OPTIONS).or_insert_with(|| json!({"whitespace_pattern": SPACE}));
    Value::Object(fields)
}

/// Makes [`Guide`]s for one tokenizer.
pub struct Guides {
    factory: ParserFactory,
}

/// Follows one answer, and says which tokens may come.
pub struct Guide {
    matcher: Matcher,
    field: &'static str,
    /// The id that stands for the text's end, beyond those of the tokenizer.
    end: u32,
}

impl Guides {
    /// Puts the tokens of a tokenizer in order, which takes some tens of milliseconds for a large one.
    ///
    /// # Errors
    /// [`Error::Encode`] if llguidance cannot use the tokens.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, Error> {
        let env: TokEnv = Arc::new(Tokens::new(tokenizer));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| Error::Encode(one_line(&error.to_string())))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// A guide at the start of an answer.
    ///
    /// # Errors
    /// [`Error::Constraint`] for a schema, expression or grammar that is none, is not supported, or is too large.
    pub fn guide(&self, constraint: &Constraint) -> Result<Guide, Error> {
        let (field, end) = (constraint.field(), self.factory.tok_env().tok_trie().eos_token());
        let matcher = Matcher::new(self.factory.create_parser(constraint.grammar()));
        match matcher.get_error() {
            Some(message) => Err(Error::Constraint { field, message: one_line(&message) }),
            None => Ok(Guide { matcher, field, end }),
        }
    }
}

impl Guide {
    /// Leaves in `logits` `[vocab]` only the tokens that may come: the others become -inf. Where the text may end, so
    /// may those of `ends` come. Whether any may.
    ///
    /// # Errors
    /// [`Error::Constraint`] if llguidance gives up, as it does where a grammar costs too much.
    pub(crate) fn mask(&mut self, logits: &mut [f32], ends: &[TokenId]) -> Result<bool, Error> {
        if self.matcher.is_stopped() {
            return Ok(false);
        }
        let field = self.field;
        let mask = self.matcher.compute_mask().map_err(|error| failed(field, &error))?;
        let may_end = mask.is_allowed(self.end);
        let end = self.end;
        let mut any = false;
        for (id, logit) in (0..).zip(logits) {
            if id < end && mask.is_allowed(id) || may_end && ends.contains(&TokenId(id)) {
                any = true;
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(any)
    }

    /// Follows a token that was chosen. Whether the text is complete and nothing may follow.
    ///
    /// # Errors
    /// [`Error::Constraint`] as for [`mask`](Self::mask).
    pub(crate) fn push(&mut self, token: TokenId) -> Result<bool, Error> {
        self.matcher.consume_token(token.0).map_err(|error| failed(self.field, &error))?;
        Ok(self.matcher.is_stopped())
    }
}

/// A guide for another choice, at the same place.
impl Clone for Guide {
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), ..*self }
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Guide").field("field", &self.field).finish_non_exhaustive()
    }
}

fn failed(field: &'static str, error: &impl ToString) -> Error {
    Error::Constraint { field, message: one_line(&error.to_string()) }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The tokens as llguidance knows them.
struct Tokens(TokTrie);

impl Tokens {
    fn new(tokenizer: &Tokenizer) -> Self {
        let count = u32::try_from(tokenizer.id_count()).expect("token ids are 32 bits wide");
        let word = |id| match tokenizer.bytes(TokenId(id)) {
            bytes if tokenizer.is_special(TokenId(id)) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
            bytes => bytes.to_vec(),
        };
        // The end is an id of its own, so that which of the model's tokens end a text is for the request to say.
        let end = [&[TokTrie::SPECIAL_TOKEN_MARKER], &b"<end>"[..]].concat();
        let words: Vec<Vec<u8>> = (0..count).map(word).chain([end]).collect();
        Self(TokTrie::from(&TokRxInfo::new(count + 1, count), &words))
    }
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    /// The longest token at each place is not what the model's own tokenizer would choose: where the text is given, its
    /// tokens are still for the model to choose.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bos;
    use crate::testing::{VOCAB_SIZE, tokenizer};

    #[test]
    fn json_has_as_much_white_space_as_indentation_needs_and_no_more() {
        let guides = Guides::new(tokenizer()).unwrap();
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let loose = json!({"type": "object", "x-guidance": {"whitespace_pattern": r"[ ]{0,2}"}});
        let lark = |schema| Constraint::Lark(format!("start: {}", Constraint::json_in_lark(schema)));
        for (constraint, most) in [
            (Constraint::JsonObject, 64),
            (Constraint::JsonSchema(schema.clone()), 64),
            (Constraint::JsonSchema(json!(true)), 64),
            (lark(schema), 64),
            (lark(json!(true)), 64),
            (Constraint::JsonSchema(loose), 2),
        ] {
            let mut guide = guides.guide(&constraint).unwrap();
            let byte = |text: &str| tokenizer().encode(text, Bos::AsWritten).unwrap()[0];
            guide.push(byte("{")).unwrap();
            let space = byte(" ");
            let mut spaces = 0;
            loop {
                let mut logits = vec![0.0; VOCAB_SIZE];
                assert!(guide.mask(&mut logits, &[]).unwrap());
                if logits[space.0 as usize] == f32::NEG_INFINITY || spaces > 100 {
                    break;
                }
                guide.push(space).unwrap();
                spaces += 1;
            }
            assert_eq!(spaces, most, "{constraint:?}");
        }
        assert!(guides.guide(&Constraint::JsonSchema(json!(5))).is_err());
    }

    #[test]
    fn the_tokens_of_a_text_that_is_given_are_the_models_choice() {
        let token = |text: &str| match tokenizer().encode(text, Bos::AsWritten).unwrap()[..] {
            [token] => token,
            ref several => panic!("{text} is {several:?}"),
        };
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["he"],
            "properties": {"he": {"type": "integer"}},
        });
        let mut guide = Guides::new(tokenizer()).unwrap().guide(&Constraint::JsonSchema(schema)).unwrap();
        for text in ["{", "\""] {
            guide.push(token(text)).unwrap();
        }
        let mut logits = vec![0.0; VOCAB_SIZE];
        assert!(guide.mask(&mut logits, &[]).unwrap());
        let allowed: Vec<u32> =
            (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(id, _)| id).collect();
        let mut expected = [token("h").0, token("he").0];
        expected.sort_unstable();
        assert_eq!(allowed, expected);
    }
}
