//! Takes any text apart as an answer of each form, once whole and once cut where the input has zero bytes. Both must come
//! to the same, and no more text may come out than went in.
//!
//! ```sh
//! mkdir -p fuzz/corpus/chat_parser
//! cargo +nightly fuzz run chat_parser fuzz/corpus/chat_parser fuzz/seeds/chat_parser
//! ```
#![no_main]

use dsv3_engine::{ChatAnswer, ChatDelta, ChatFormat, ChatParser, ChatStart, ToolFormat};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let whole = text.replace('\0', "");
    for tools in [ToolFormat::None, ToolFormat::DeepSeekV3, ToolFormat::DeepSeekV31] {
        for start in [ChatStart::Content, ChatStart::Reasoning, ChatStart::Open] {
            let format = ChatFormat { reasoning: true, tools };
            let answer = parse(format, start, [whole.as_str()]);
            assert_eq!(answer, parse(format, start, text.split('\0')), "{format:?} {start:?}");
            let calls = answer.tool_calls.iter().map(|call| call.name.len() + call.arguments.len());
            let texts = [&answer.reasoning, &answer.content].into_iter().flatten().map(String::len);
            assert!(calls.chain(texts).sum::<usize>() <= whole.len());
            if tools == ToolFormat::None {
                assert!(answer.tool_calls.is_empty());
            }
        }
    }
    let plain = parse(ChatFormat::PLAIN, ChatStart::Reasoning, text.split('\0'));
    assert_eq!(plain.content.unwrap_or_default(), whole);
});

/// The answer, without the names of its calls, which are random.
fn parse<'a>(format: ChatFormat, start: ChatStart, pieces: impl IntoIterator<Item = &'a str>) -> ChatAnswer {
    let mut parser = ChatParser::new(format, start);
    let mut answer = ChatAnswer::default();
    for piece in pieces {
        add(&mut answer, parser.push(piece));
    }
    add(&mut answer, parser.finish());
    assert_eq!(parser.has_tool_calls(), !answer.tool_calls.is_empty());
    answer.tool_calls.iter_mut().for_each(|call| call.id.clear());
    answer
}

fn add(answer: &mut ChatAnswer, deltas: Vec<ChatDelta>) {
    for delta in deltas {
        if let ChatDelta::Reasoning(text)
        | ChatDelta::Content(text)
        | ChatDelta::ToolCallStart { name: text, .. }
        | ChatDelta::ToolCallArguments { delta: text, .. } = &delta
        {
            assert!(!text.is_empty());
        }
        answer.add(delta);
    }
}
