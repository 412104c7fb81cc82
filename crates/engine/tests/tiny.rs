//! The text side of the embedded model's checkpoint: its tokenizer, chat template and generation config.

use std::path::{Path, PathBuf};

use dsv3_engine::{Bos, ChatOptions, ChatTemplate, GenerationConfig, Message, Request, Tokenizer};
use dsv3_runtime::TokenId;

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny")
}

fn tokenizer() -> Tokenizer {
    let config = std::fs::read(checkpoint().join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let vocab_size = config["vocab_size"].as_u64().unwrap();
    Tokenizer::from_dir(&checkpoint(), usize::try_from(vocab_size).unwrap()).unwrap()
}

#[test]
fn a_question_becomes_the_ids_that_the_model_was_trained_on() {
    let tokenizer = tokenizer();
    let template = ChatTemplate::from_dir(&checkpoint()).unwrap().expect("the model has a chat template");
    let text = template.render(&[Message::new("user", "27 + 58?")], &ChatOptions::default()).unwrap();
    assert_eq!(text, "<｜begin▁of▁sentence｜><｜User｜>27 + 58?<｜Assistant｜><think>\n");
    let ids = tokenizer.encode(&text, Bos::AsWritten).unwrap();
    let named = |token: &str| tokenizer.token_id(token).unwrap();
    assert_eq!(ids[..2], [tokenizer.bos().unwrap(), named("<｜User｜>")]);
    assert_eq!(ids[ids.len() - 3..ids.len() - 1], [named("<｜Assistant｜>"), named("<think>")]);
    assert_eq!(
        tokenizer.decode(&ids, true),
        "<｜User｜>27 + 58?<｜Assistant｜><think>\n",
        "only the BOS is special"
    );
    assert_eq!(tokenizer.encode("27", Bos::Add).unwrap()[0], tokenizer.bos().unwrap());
}

#[test]
fn the_defaults_are_the_checkpoints() {
    let tokenizer = tokenizer();
    let defaults = GenerationConfig::from_dir(&checkpoint()).unwrap();
    let request = Request::new(&defaults, &tokenizer, 7, 100).unwrap();
    assert_eq!(request.eos_token_ids, [TokenId(1)]);
    assert_eq!(Some(TokenId(1)), tokenizer.eos());
    assert!(request.sampling.is_greedy(), "sums have one right answer");
}

#[test]
fn text_in_any_script_comes_back() {
    let tokenizer = tokenizer();
    for text in ["Hello, 1234567 worlds!\r\n\t x", "世界 ひらがな カタカナ", "👩‍👩‍👧 e\u{301} \u{0}", "  \n\n "]
    {
        let ids = tokenizer.encode(text, Bos::AsWritten).unwrap();
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
}
