//! The tokenizer: `tokenizer.json` by the `tokenizers` crate, and the bytes of every token for decoding.
//!
//! Decoding is our own table of bytes: for byte-level BPE (all checkpoints of this architecture that have a
//! `tokenizer.json`) a text is the bytes of its tokens in a row, read as UTF-8. That is what makes streaming exact
//! and of constant cost; the tests hold it against the crate's decoder.

use std::path::Path;

use dsv3_runtime::TokenId;
use serde::Deserialize;
use tokenizers::DecoderWrapper;

use crate::{Detokenizer, Error, TokenizerConfig, files};

/// Whether [`Tokenizer::encode`] puts the begin-of-sequence token in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bos {
    /// For plain text: if the checkpoint's config says so, and the text does not begin with it anyway.
    Add,
    /// For text that is complete as it stands. A chat template writes the BOS itself; a second one in front is the
    /// commonest mistake with these models.
    AsWritten,
}

/// A checkpoint's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    add_bos: bool,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    /// The bytes of all tokens in a row; token `i` is `bytes[ends[i - 1]..ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    special: Vec<bool>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` in a checkpoint's directory.
    ///
    /// # Errors
    /// As [`Tokenizer::parse`], and if a file cannot be read.
    pub fn from_dir(directory: &Path, vocab_size: usize) -> Result<Self, Error> {
        let config = TokenizerConfig::from_dir(directory)?;
        let path = directory.join("tokenizer.json");
        Self::parse(&path, &files::read(&path)?, &config, vocab_size)
    }

    /// Parses a `tokenizer.json`; `path` is for the errors. `vocab_size` is the model's: the number of ids that it
    /// has embeddings for.
    ///
    /// # Errors
    /// If the file is not a tokenizer, is not byte-level, has an id that the model does not know, or lacks the BOS
    /// or EOS that the config names.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        config: &TokenizerConfig,
        vocab_size: usize,
    ) -> Result<Self, Error> {
        let format = |message: String| Error::Format { path: path.to_owned(), message };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| format(error.to_string()))?;
        // Some files carry the limits of their training; a prompt is never cut or padded in silence.
        inner.with_truncation(None).map_err(|error| format(error.to_string()))?;
        inner.with_padding(None);
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(Error::Field {
                path: path.to_owned(),
                field: "decoder.type".to_owned(),
                message: format!("expected \"ByteLevel\", got {}", decoder_type(&inner)),
            });
        }
        let vocabulary = inner.get_vocab(true);
        let highest = vocabulary.iter().max_by_key(|&(_, &id)| id);
        if let Some((token, &id)) = highest.filter(|&(_, &id)| id as usize >= vocab_size) {
            return Err(format(format!(
                "token {token:?} has id {id}, but the model's vocabulary has {vocab_size} ids"
            )));
        }
        check_added_ids(path, bytes, &inner)?;
        let named = |name: &'static str, token: &Option<String>| match token {
            None => Ok(None),
            Some(token) => match inner.token_to_id(token) {
                Some(id) => Ok(Some(TokenId(id))),
                None => Err(format(format!("the config's {name} {token:?} is not in the vocabulary"))),
            },
        };
        let (bos, eos) = (named("bos_token", &config.bos_token)?, named("eos_token", &config.eos_token)?);
        let id_count = highest.map_or(0, |(_, &id)| id as usize + 1);
        let mut tokenizer = Self {
            inner,
            add_bos: config.add_bos_token,
            bos,
            eos,
            bytes: Vec::new(),
            ends: Vec::with_capacity(id_count),
            special: vec![false; id_count],
        };
        tokenizer.fill_tables(id_count);
        Ok(tokenizer)
    }

    fn fill_tables(&mut self, id_count: usize) {
        for id in 0..u32::try_from(id_count).expect("token ids are 32 bits wide") {
            // Ids need not be dense: a hole is a token without text.
            let token = self.inner.id_to_token(id).unwrap_or_default();
            // As in the crate's decoder, a token with one character outside of the byte alphabet is itself text.
            match token.chars().map(byte_of_char).collect::<Option<Vec<u8>>>() {
                Some(bytes) => self.bytes.extend(bytes),
                None => self.bytes.extend(token.as_bytes()),
            }
            self.ends.push(self.bytes.len());
        }
        for (id, token) in self.inner.get_added_tokens_decoder() {
            self.special[id as usize] = token.special;
        }
    }

    /// The ids of a text. Names of special tokens in the text become their ids, as everywhere.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<TokenId>, Error> {
        let encoding = self
            .inner
            .encode_fast(text, bos == Bos::Add)
            .map_err(|error| Error::Encode(error.to_string()))?;
        // transformers 4, with which these models were trained, adds the BOS in its Llama class and not by
        // tokenizer.json, so it is added here unless the file's post-processor or the text itself has done it.
        let missing = self.bos.filter(|bos_id| {
            bos == Bos::Add && self.add_bos && encoding.get_ids().first() != Some(&bos_id.0)
        });
        Ok(missing.into_iter().chain(encoding.get_ids().iter().copied().map(TokenId)).collect())
    }

    /// The text of these ids. Ids that the tokenizer does not have are no text.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = Detokenizer::new(skip_special);
        for &token in tokens {
            detokenizer.push(self, token, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// The bytes that a token stands for; none for an id that the tokenizer does not have.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        let index = token.0 as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..end]
    }

    /// Whether `tokenizer.json` marks the token as special, so that it is no part of the text.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.special.get(token.0 as usize).copied().unwrap_or(false)
    }

    /// The id of a token by its name.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token).map(TokenId)
    }

    /// The begin-of-sequence token that the config names.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The begin-of-sequence token, if this checkpoint has one put in front of plain text (see [`Bos::Add`]).
    ///
    /// # Errors
    /// If the tokenizer refuses an empty text.
    pub fn leading_bos(&self) -> Result<Option<TokenId>, Error> {
        let empty = self.encode("", Bos::Add)?;
        Ok(self.bos.filter(|&bos| empty.first() == Some(&bos)))
    }

    /// The end-of-sequence token that the config names.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// One more than the highest id.
    pub fn id_count(&self) -> usize {
        self.ends.len()
    }
}

/// The crate numbers added tokens on from the vocabulary, whatever ids the file gives them; refuse a file whose ids
/// it has changed, since the model was trained on the file's.
fn check_added_ids(path: &Path, bytes: &[u8], tokenizer: &tokenizers::Tokenizer) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let file: File = files::parse_json(path, bytes)?;
    for (index, Added { id, content }) in file.added_tokens.iter().enumerate() {
        let got = tokenizer.token_to_id(content);
        if got != Some(*id) {
            return Err(Error::Field {
                path: path.to_owned(),
                field: format!("added_tokens[{index}].id"),
                message: format!(
                    "{content:?} has id {id}, but follows the vocabulary as {}",
                    got.unwrap_or_default()
                ),
            });
        }
    }
    Ok(())
}

/// The type of the decoder as the file spells it.
fn decoder_type(tokenizer: &tokenizers::Tokenizer) -> String {
    let value = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
    value.get("type").unwrap_or(&value).to_string()
}

/// The byte that a character of a byte-level vocabulary stands for. GPT-2's alphabet: a printable byte is the
/// character of its own number, the other 68 bytes are, in order, the characters from U+0100.
fn byte_of_char(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| printable(byte)),
        code @ 0x100..=0x143 => (0..=255).filter(|&byte| !printable(byte)).nth(code as usize - 0x100),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{BOS, EOS, THINK, VOCAB_SIZE, config, tokenizer, tokenizer_json};

    fn parse(
        json: &serde_json::Value,
        config: &TokenizerConfig,
        vocab_size: usize,
    ) -> Result<Tokenizer, Error> {
        Tokenizer::parse(Path::new("tokenizer.json"), json.to_string().as_bytes(), config, vocab_size)
    }

    fn message(result: Result<Tokenizer, Error>) -> String {
        result.err().expect("the tokenizer is refused").to_string()
    }

    #[test]
    fn the_byte_alphabet_is_the_crates() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut bytes: Vec<u8> = alphabet.iter().map(|&character| byte_of_char(character).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert!(['\u{144}', ' ', '\u{AD}', '｜'].iter().all(|&other| byte_of_char(other).is_none()));
        assert_eq!((byte_of_char('Ġ'), byte_of_char('Ċ')), (Some(b' '), Some(b'\n')));
    }

    #[test]
    fn plain_text_gets_one_bos_and_templated_text_none() {
        let tokenizer = tokenizer();
        let bos_text = "<｜begin▁of▁sentence｜>";
        let plain = tokenizer.encode("hi", Bos::Add).unwrap();
        assert_eq!((plain[0], plain.len()), (BOS, 3));
        assert_eq!(tokenizer.encode(&format!("{bos_text}hi"), Bos::Add).unwrap(), plain);
        assert_eq!(tokenizer.encode(&format!("{bos_text}hi"), Bos::AsWritten).unwrap(), plain);
        assert_eq!(tokenizer.encode("hi", Bos::AsWritten).unwrap(), plain[1..]);
        assert_eq!(tokenizer.encode("", Bos::AsWritten).unwrap(), []);

        let without = TokenizerConfig { add_bos_token: false, ..config() };
        let tokenizer = parse(&tokenizer_json(), &without, VOCAB_SIZE).unwrap();
        assert_eq!(tokenizer.encode("hi", Bos::Add).unwrap(), plain[1..]);
    }

    #[test]
    fn special_tokens_are_skipped_and_think_is_not_special() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("<think>a</think>é<｜end▁of▁sentence｜>", Bos::Add).unwrap();
        assert_eq!((ids[1], *ids.last().unwrap()), (THINK, EOS));
        assert_eq!(tokenizer.decode(&ids, true), "<think>a</think>é");
        assert_eq!(
            tokenizer.decode(&ids, false),
            "<｜begin▁of▁sentence｜><think>a</think>é<｜end▁of▁sentence｜>"
        );
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(BOS), Some(EOS)));
    }

    #[test]
    fn ids_outside_of_the_tokenizer_are_no_text() {
        let tokenizer = tokenizer();
        let beyond = TokenId(u32::try_from(tokenizer.id_count()).unwrap());
        assert_eq!(tokenizer.decode(&[beyond, TokenId(u32::MAX)], false), "");
        assert!(!tokenizer.is_special(beyond));
    }

    #[test]
    fn an_id_that_the_model_does_not_know_is_refused_by_name() {
        let error = message(parse(&tokenizer_json(), &config(), 267));
        assert_eq!(
            error,
            "tokenizer.json: token \"<｜Assistant｜>\" has id 267, but the model's vocabulary has 267 ids"
        );
        assert!(parse(&tokenizer_json(), &config(), 268).is_ok());
        let mut json = tokenizer_json();
        json["model"]["vocab"]["zzz"] = u32::MAX.into();
        let error = message(parse(&json, &config(), VOCAB_SIZE));
        assert!(error.contains("token \"zzz\" has id 4294967295"), "{error}");
    }

    #[test]
    fn an_added_token_whose_id_would_change_is_refused() {
        let mut json = tokenizer_json();
        json["added_tokens"][2]["id"] = 270.into();
        assert_eq!(
            message(parse(&json, &config(), VOCAB_SIZE)),
            "tokenizer.json: added_tokens[2].id: \"<think>\" has id 270, but follows the vocabulary as 264"
        );
    }

    #[test]
    fn a_special_token_outside_of_the_vocabulary_is_refused() {
        let config = TokenizerConfig { eos_token: Some("</s>".to_owned()), ..config() };
        let error = message(parse(&tokenizer_json(), &config, VOCAB_SIZE));
        assert_eq!(error, "tokenizer.json: the config's eos_token \"</s>\" is not in the vocabulary");
    }

    #[test]
    fn what_is_not_byte_level_is_refused() {
        let mut json = tokenizer_json();
        json["decoder"] = serde_json::json!({"type": "Fuse"});
        let error = message(parse(&json, &config(), VOCAB_SIZE));
        assert_eq!(error, "tokenizer.json: decoder.type: expected \"ByteLevel\", got \"Fuse\"");
        json["decoder"] = serde_json::Value::Null;
        assert!(message(parse(&json, &config(), VOCAB_SIZE)).ends_with("got null"));
        assert!(
            message(parse(&serde_json::json!({}), &config(), VOCAB_SIZE)).starts_with("tokenizer.json: ")
        );
    }

    #[test]
    fn a_files_truncation_does_not_cut_a_prompt() {
        let mut json = tokenizer_json();
        json["truncation"] = serde_json::json!(
            {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        let tokenizer = parse(&json, &config(), VOCAB_SIZE).unwrap();
        assert_eq!(tokenizer.encode("0123456789", Bos::AsWritten).unwrap().len(), 10);
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in any::<String>()) {
            let tokenizer = tokenizer();
            let ids = tokenizer.encode(&text, Bos::AsWritten).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false), text);
        }

        #[test]
        fn any_ids_decode_as_the_crate_decodes_them(
            ids in prop::collection::vec(0..u32::try_from(VOCAB_SIZE).unwrap() + 5, 0..60),
            skip_special: bool,
        ) {
            let tokenizer = tokenizer();
            let tokens: Vec<TokenId> = ids.iter().copied().map(TokenId).collect();
            let expected = tokenizer.inner.decode(&ids, skip_special).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokens, skip_special), expected);
        }
    }
}
