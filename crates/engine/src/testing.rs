//! For the tests: a byte-level tokenizer in the shape of DeepSeek's, and a model that is an automaton.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use dsv3_runtime::{DecodeStep, LogitRows, PageId, PrefillStep, Tensor, TokenId};
use serde_json::{Value, json};

use crate::{LanguageModel, ModelLimits, Tokenizer, TokenizerConfig};

/// Begins a text.
pub const BOS: TokenId = TokenId(0);
/// Ends a text.
pub const EOS: TokenId = TokenId(1);
/// Opens thoughts.
pub const THINK: TokenId = TokenId(258 + 6);
/// Padded beyond the tokenizer's ids, as DeepSeek's is.
pub const VOCAB_SIZE: usize = 280;

/// Merges that make tokens of several bytes, cut inside characters too (the second half of an é with a space).
const MERGES: [(&str, &str); 6] = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ã", "©"), ("ð", "Ł"), ("Ł", "ĺ")];

/// A `tokenizer.json`: 2 special tokens, 256 bytes, the merges, and 4 added tokens that are not special.
pub fn tokenizer_json() -> Value {
    // The special tokens stand in the vocabulary too: the crate gives its own ids to added tokens that do not.
    let special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"].map(str::to_owned);
    let mut vocab = serde_json::Map::new();
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let bytes = alphabet.iter().map(char::to_string);
    let merged = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    for (token, id) in special.into_iter().chain(bytes).chain(merged).zip(0..) {
        vocab.insert(token, Value::from(id));
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "normalized": true,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    json!({
        "version": "1.0",
        "added_tokens": [
            added(0, "<｜begin▁of▁sentence｜>", true), added(1, "<｜end▁of▁sentence｜>", true),
            added(264, "<think>", false), added(265, "</think>", false),
            added(266, "<｜User｜>", false), added(267, "<｜Assistant｜>", false),
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": MERGES.map(|(left, right)| json!([left, right]))},
    })
}

/// The tokenizer's config.
pub fn config() -> TokenizerConfig {
    TokenizerConfig {
        bos_token: Some("<｜begin▁of▁sentence｜>".to_owned()),
        eos_token: Some("<｜end▁of▁sentence｜>".to_owned()),
        add_bos_token: true,
        ..TokenizerConfig::default()
    }
}

/// The tokenizer.
///
/// # Panics
/// Not for these files.
pub fn tokenizer() -> &'static Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let json = tokenizer_json().to_string();
        Arc::new(
            Tokenizer::parse(Path::new("tokenizer.json"), json.as_bytes(), &config(), VOCAB_SIZE).unwrap(),
        )
    });
    &TOKENIZER
}

type Slot = (usize, PageId, usize);

/// From all tokens of a sequence to the logits, `[vocab]`.
pub type Next = fn(&[TokenId]) -> Vec<f32>;

/// A model whose cache holds the tokens themselves: what comes next is a function of what the pages give back, so
/// a wrong page, position or chunk changes the text.
pub struct FakeModel<F> {
    /// What it can hold.
    pub limits: ModelLimits,
    /// From all tokens of the sequence to the logits, `[vocab]`.
    pub next: F,
    /// By row, page and place in the page.
    pub cache: HashMap<Slot, TokenId>,
    /// Start, length and rows of each prefill.
    pub prefills: Vec<(usize, usize, LogitRows)>,
    /// Steps that decoded.
    pub decodes: usize,
}

impl<F: FnMut(&[TokenId]) -> Vec<f32>> FakeModel<F> {
    /// One that has run nothing yet.
    pub fn new(limits: ModelLimits, next: F) -> Self {
        Self { limits, next, cache: HashMap::new(), prefills: Vec::new(), decodes: 0 }
    }

    fn slot(&self, row: usize, position: usize, pages: &[PageId]) -> Slot {
        let page = pages.get(position / self.limits.page_size).expect("the pages cover the position");
        assert!((page.0 as usize) < self.limits.page_count, "a page of the cache");
        assert!(row < self.limits.rows, "a row of the mesh");
        (row, *page, position % self.limits.page_size)
    }

    fn write(&mut self, row: usize, position: usize, token: TokenId, pages: &[PageId]) {
        assert!(position < self.limits.max_context, "a position of the state");
        let slot = self.slot(row, position, pages);
        self.cache.insert(slot, token);
    }

    fn logits_after(&mut self, row: usize, position: usize, pages: &[PageId]) -> Vec<f32> {
        let tokens: Vec<TokenId> =
            (0..=position).map(|position| self.cache[&self.slot(row, position, pages)]).collect();
        (self.next)(&tokens)
    }
}

impl<F: FnMut(&[TokenId]) -> Vec<f32>> LanguageModel for FakeModel<F> {
    fn limits(&self) -> ModelLimits {
        self.limits
    }

    fn forward_prefill(
        &mut self,
        tokens: &[TokenId],
        step: &PrefillStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error> {
        self.prefills.push((step.start, tokens.len(), step.logits));
        let positions = step.start..step.start + tokens.len();
        for (position, &token) in positions.clone().zip(tokens) {
            self.write(step.row, position, token, step.pages);
        }
        let rows = match step.logits {
            LogitRows::None => positions.end..positions.end,
            LogitRows::Last => positions.end - 1..positions.end,
            LogitRows::All => positions,
        };
        let count = rows.len();
        let values = rows.flat_map(|position| self.logits_after(step.row, position, step.pages)).collect();
        Ok(Tensor::from_vec(count, self.limits.vocab_size, values))
    }

    fn forward_decode(
        &mut self,
        tokens: &[TokenId],
        step: &DecodeStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error> {
        self.decodes += 1;
        let mut values = Vec::new();
        for (user, &token) in tokens.iter().enumerate() {
            let (row, position, pages) = (step.row(user), step.positions[user], step.pages[user]);
            self.write(row, position, token, pages);
            values.extend(self.logits_after(row, position, pages));
        }
        Ok(Tensor::from_vec(tokens.len(), self.limits.vocab_size, values))
    }

    fn copy_page(&mut self, row: usize, from: PageId, to: PageId) -> Result<(), dsv3_runtime::Error> {
        for place in 0..self.limits.page_size {
            match self.cache.get(&(row, from, place)).copied() {
                Some(token) => self.cache.insert((row, to, place), token),
                None => self.cache.remove(&(row, to, place)),
            };
        }
        Ok(())
    }

    fn page_bytes(&self) -> Option<usize> {
        Some(self.limits.page_size * size_of::<u32>())
    }

    fn read_page(&mut self, page: PageId, out: &mut Vec<u8>) -> Result<(), dsv3_runtime::Error> {
        for place in 0..self.limits.page_size {
            out.extend(self.cache[&(0, page, place)].0.to_le_bytes());
        }
        Ok(())
    }

    fn write_page(&mut self, page: PageId, bytes: &[u8]) -> Result<(), dsv3_runtime::Error> {
        for (place, bytes) in bytes.as_chunks().0.iter().enumerate() {
            self.cache.insert((0, page, place), TokenId(u32::from_le_bytes(*bytes)));
        }
        Ok(())
    }
}

/// Logits that are a hash of the sequence: what is chosen depends on every token before it.
pub fn hashed(tokens: &[TokenId]) -> Vec<f32> {
    let seed =
        tokens.iter().fold(17_u64, |hash, token| (hash ^ u64::from(token.0)).wrapping_mul(0x0100_0000_01B3));
    (0..VOCAB_SIZE as u64)
        .map(|id| (seed.wrapping_mul(2 * id + 1) >> 40) as f32 / (1_u64 << 22) as f32)
        .collect()
}

/// Logits that leave one token only.
pub fn one_hot(token: TokenId) -> Vec<f32> {
    let mut logits = vec![-1e9; VOCAB_SIZE];
    logits[token.0 as usize] = 0.0;
    logits
}
