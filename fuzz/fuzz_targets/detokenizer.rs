//! Any tokens of the embedded model's tokenizer, and some that it does not have, as text: one at a time they must read as
//! their bytes in a row do.
//!
//! ```sh
//! mkdir -p fuzz/corpus/detokenizer
//! cargo +nightly fuzz run detokenizer fuzz/corpus/detokenizer fuzz/seeds/detokenizer
//! ```
#![no_main]

use dsv3_engine::{Bos, Detokenizer, Tokenizer, TokenizerConfig};
use dsv3_runtime::TokenId;
use libfuzzer_sys::fuzz_target;
use std::{path::Path, sync::LazyLock};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let config = include_bytes!("../../models/tiny/tokenizer_config.json");
    let config = TokenizerConfig::parse(Path::new("tokenizer_config.json"), config).expect("a config");
    let json = include_bytes!("../../models/tiny/tokenizer.json");
    Tokenizer::parse(Path::new("tokenizer.json"), json, &config, 1024).expect("a tokenizer")
});

fuzz_target!(|content: &[u8]| {
    let ids = content.as_chunks().0.iter().map(|&id| TokenId(u32::from(u16::from_le_bytes(id) % 1100)));
    let ids: Vec<TokenId> = ids.collect();
    for skip_special in [true, false] {
        let mut detokenizer = Detokenizer::new(skip_special);
        let mut text = String::new();
        for &id in &ids {
            detokenizer.push(&TOKENIZER, id, &mut text);
        }
        detokenizer.finish(&mut text);
        let shown = ids.iter().filter(|&&id| !(skip_special && TOKENIZER.is_special(id)));
        let bytes: Vec<u8> = shown.flat_map(|&id| TOKENIZER.bytes(id)).copied().collect();
        assert_eq!(text, String::from_utf8_lossy(&bytes));
        assert_eq!(text, TOKENIZER.decode(&ids, skip_special));
    }
    let text = String::from_utf8_lossy(content);
    let encoded = TOKENIZER.encode(&text, Bos::AsWritten).expect("any text has tokens");
    assert_eq!(TOKENIZER.decode(&encoded, false), text);
});
