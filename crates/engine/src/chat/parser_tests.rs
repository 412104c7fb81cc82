//! Answers of all forms, whole and cut anywhere.

use proptest::prelude::*;

use super::*;
use crate::ChatAnswer;

const THOUGHTS: ChatFormat = ChatFormat { reasoning: true, tools: ToolFormat::None };
const V3: ChatFormat = ChatFormat { reasoning: true, tools: ToolFormat::DeepSeekV3 };
const V31: ChatFormat = ChatFormat { reasoning: true, tools: ToolFormat::DeepSeekV31 };

/// Writes out what the tests abbreviate.
fn long(text: &str) -> String {
    [
        ("[calls]", CALLS_BEGIN),
        ("[/calls]", CALLS_END),
        ("[call]", CALL_BEGIN),
        ("[/call]", CALL_END),
        ("[sep]", SEPARATOR),
    ]
    .iter()
    .fold(text.to_owned(), |text, (short, tag)| text.replace(short, tag))
}

/// The pieces of a text that comes in these parts, adjacent ones of a kind joined.
fn pieces<'a>(format: ChatFormat, start: ChatStart, parts: impl IntoIterator<Item = &'a str>) -> Vec<Piece> {
    let mut parser = ChatParser::new(format, start);
    let mut pieces = Vec::new();
    for part in parts {
        parser.read(part, &mut pieces);
    }
    parser.end(&mut pieces);
    pieces
}

fn source(pieces: &[Piece]) -> String {
    let text = |piece: &Piece| match piece {
        Piece::Mark(text) | Piece::Delta(ChatDelta::Reasoning(text) | ChatDelta::Content(text)) => {
            text.clone()
        }
        Piece::Delta(ChatDelta::ToolCallStart { name, .. }) => name.clone(),
        Piece::Delta(ChatDelta::ToolCallArguments { delta, .. }) => delta.clone(),
    };
    pieces.iter().map(text).collect()
}

fn answer(format: ChatFormat, start: ChatStart, text: &str) -> ChatAnswer {
    let mut parser = ChatParser::new(format, start);
    let mut answer = ChatAnswer::default();
    answer.extend(parser.push(&long(text)));
    answer.extend(parser.finish());
    answer
}

/// Thoughts, content and calls of an answer, in short.
fn parts(format: ChatFormat, start: ChatStart, text: &str) -> (String, String, Vec<(String, String)>) {
    let answer = answer(format, start, text);
    let calls = answer.tool_calls.into_iter().map(|call| (call.name, call.arguments)).collect();
    (answer.reasoning.unwrap_or_default(), answer.content.unwrap_or_default(), calls)
}

fn thoughts(start: ChatStart, text: &str) -> (String, String) {
    let (reasoning, content, calls) = parts(THOUGHTS, start, text);
    assert!(calls.is_empty());
    (reasoning, content)
}

fn pair(first: &str, second: &str) -> (String, String) {
    (first.to_owned(), second.to_owned())
}

#[test]
fn thoughts_end_with_their_tag() {
    use ChatStart::{Content, Open, Reasoning};
    for (start, text, expected) in [
        (Reasoning, "a\n</think>\n\nb", pair("a\n", "\n\nb")),
        (Open, "<think>\na</think>b", pair("\na", "b")),
        (Open, "\n<think>a</think>b", pair("a", "b")),
        // A model that repeats the tag which the template has written.
        (Reasoning, "<think>\na</think>b", pair("\na", "b")),
        // One that does not think.
        (Reasoning, "</think>b", pair("", "b")),
        (Open, "b <think> c", pair("", "b <think> c")),
        (Open, "b</think>c", pair("", "b</think>c")),
        // One that does not come to an end.
        (Reasoning, "a</thin", pair("a</thin", "")),
        (Open, "<think>a", pair("a", "")),
        (Open, "<thin", pair("", "<thin")),
        // One that was told not to.
        (Content, "<think>a</think>b", pair("", "<think>a</think>b")),
        // And a second thought, which is none.
        (Reasoning, "a</think>b<think>c</think>", pair("a", "b<think>c</think>")),
        (Open, "", pair("", "")),
    ] {
        assert_eq!(thoughts(start, text), expected, "{start:?} {text:?}");
    }
    let (reasoning, content, _) = parts(ChatFormat::PLAIN, Open, "<think>a</think>b");
    assert_eq!((reasoning, content), pair("", "<think>a</think>b"));
}

#[test]
fn text_goes_on_as_soon_as_it_is_no_tag() {
    let mut parser = ChatParser::new(V31, ChatStart::Reasoning);
    let content = |text: &str| vec![ChatDelta::Content(text.to_owned())];
    let reasoning = |text: &str| vec![ChatDelta::Reasoning(text.to_owned())];
    assert_eq!(parser.push("  "), []);
    assert_eq!(parser.push("a <"), reasoning("  a "));
    assert_eq!(parser.push("/thi"), []);
    assert_eq!(parser.push("s> </think"), reasoning("</this> "));
    assert_eq!(parser.push(">b<"), content("b"));
    assert_eq!(parser.push("｜tool▁calls"), []);
    assert_eq!(parser.push(" c"), content("<｜tool▁calls c"));
    assert_eq!(parser.finish(), []);
}

#[test]
fn calls_of_v3_are_read() {
    let text = "Let me see.[calls][call]function[sep]weather\n```json\n{\"city\": \"Ulm\"}\n```[/call]\n\
                [call]function[sep]time\n```json\n{}\n```[/call][/calls]";
    let (reasoning, content, calls) = parts(V3, ChatStart::Content, text);
    assert_eq!((reasoning, content), pair("", "Let me see."));
    assert_eq!(calls, [pair("weather", "{\"city\": \"Ulm\"}"), pair("time", "{}")]);
    let answer = answer(V3, ChatStart::Reasoning, &format!("hm</think>{text}"));
    assert_eq!(answer.reasoning.as_deref(), Some("hm"));
    assert_eq!(answer.tool_calls.len(), 2);
    assert_ne!(answer.tool_calls[0].id, answer.tool_calls[1].id);
}

#[test]
fn calls_of_v31_are_read() {
    let text =
        "[calls][call]weather[sep]{\"city\": \"Ulm ```\\n```\"}[/call][call]time[sep]{}[/call][/calls]";
    let (_, content, calls) = parts(V31, ChatStart::Content, text);
    assert_eq!(content, "");
    assert_eq!(calls, [pair("weather", "{\"city\": \"Ulm ```\\n```\"}"), pair("time", "{}")]);
}

#[test]
fn a_call_comes_in_pieces() {
    let mut parser = ChatParser::new(V3, ChatStart::Content);
    assert_eq!(parser.push(&long("[calls][call]function[sep]f\n```js")), []);
    let deltas = parser.push("on\n");
    assert!(
        matches!(&deltas[..], [ChatDelta::ToolCallStart { index: 0, name, .. }] if name == "f"),
        "{deltas:?}"
    );
    let arguments =
        |index, delta: &str| vec![ChatDelta::ToolCallArguments { index, delta: delta.to_owned() }];
    assert_eq!(parser.push("{\"a\": "), arguments(0, "{\"a\": "));
    assert_eq!(parser.push("1}\n"), arguments(0, "1}"));
    assert_eq!(parser.push("```"), []);
    assert_eq!(parser.push(&long("[/call]\n")), []);
    assert_eq!(parser.push(&long("[/calls]")), []);
    assert_eq!(parser.push("x"), [ChatDelta::Content("x".to_owned())]);
    assert!(parser.has_tool_calls());
}

#[test]
fn what_is_no_call_comes_back_as_text() {
    for text in [
        "[calls]x",
        "[calls][/calls]",
        "[calls]",
        "a[call]",
        "[calls][call]function[sep]f[/call]",
        "[calls][call]function[sep]f\n{}[/call][/calls]",
        "[calls][call][sep]f\n```json\n{}\n```[/call]",
        "[calls][call]function[sep]\n```json\n{}\n```[/call]",
        "[calls][call]function\n[sep]f",
        "[calls][call]function[call]function",
        "[call]function[sep]f\n```json",
        "[/call][/calls][sep]",
    ] {
        let (_, content, calls) = parts(V3, ChatStart::Content, text);
        assert_eq!((content, calls.len()), (long(text), 0), "{text}");
    }
    let name = "f".repeat(LONGEST_HEAD + 1);
    for text in
        [format!("[calls][call]{name}"), format!("[call]function[sep]{name}"), "[call]a<b[sep]".to_owned()]
    {
        let (_, content, calls) = parts(V31, ChatStart::Content, &text);
        assert!(calls.is_empty() || text.contains("function"), "{text}");
        assert!(content.is_empty() || content == long(&text));
    }
}

#[test]
fn what_is_no_call_leaves_thoughts_as_they_were() {
    for no_call in ["[calls]x", "[calls][/calls]", "[call]<b", "[calls][call]function[sep]f\n{}"] {
        let text = format!("a{no_call}b</think>c");
        let (reasoning, content, calls) = parts(V3, ChatStart::Reasoning, &text);
        assert_eq!((reasoning, content, calls.len()), (long(&format!("a{no_call}b")), "c".to_owned(), 0));
        let (reasoning, content, _) = parts(V3, ChatStart::Reasoning, &format!("a{no_call}"));
        assert_eq!((reasoning, content), (long(&format!("a{no_call}")), String::new()));
    }
    let text = "a[calls][call]function[sep]f\n```json\n{}\n```[/call][/calls]b";
    let call = vec![pair("f", "{}")];
    assert_eq!(parts(V3, ChatStart::Reasoning, text), ("a".to_owned(), "b".to_owned(), call));
}

#[test]
fn a_fence_ends_arguments_also_where_the_text_ends() {
    let text = "[calls][call]function[sep]f\n```json\n{\"a\": 1}\n```";
    let (_, content, calls) = parts(V3, ChatStart::Content, text);
    assert_eq!((content, calls), (String::new(), vec![pair("f", "{\"a\": 1}")]));
}

#[test]
fn what_is_almost_a_call_is_one() {
    let f = |arguments: &str| vec![pair("f", arguments)];
    for (text, content, expected) in [
        // Cut off.
        ("[calls][call]f[sep]{\"a\": 1", "", f("{\"a\": 1")),
        ("[calls][call]f[sep]{}[/call]\n", "", f("{}")),
        // Without the list, and without the call's end.
        ("[call]f[sep]{}[/call]", "", f("{}")),
        ("[calls][call]f[sep]{}[/calls]", "", f("{}")),
        ("[call]f[sep]1[call]f[sep]2", "", [f("1"), f("2")].concat()),
        // Arguments that are no JSON, or none.
        ("[calls][call]f[sep][/call][/calls]", "", f("")),
        ("[calls][call]f[sep]no[/call] what [call]f[sep]{}[/call]", " what ", [f("no"), f("{}")].concat()),
        ("[calls][call]f[sep]{}[/call][call]x[/call][/calls]", "[call]x[/call][/calls]", f("{}")),
    ] {
        let (_, got, calls) = parts(V31, ChatStart::Content, text);
        assert_eq!((got, calls), (long(content), expected), "{text}");
    }
    // Thoughts that nothing but the call ends; none of it where no tools were offered.
    let text = "hm[calls][call]f[sep]{}[/call][/calls]";
    assert_eq!(parts(V31, ChatStart::Reasoning, text), ("hm".to_owned(), String::new(), f("{}")));
    let (reasoning, content, calls) = parts(V31.without_tools(), ChatStart::Reasoning, text);
    assert_eq!((reasoning, content, calls.len()), (long(text), String::new(), 0));
    // A fence that does not belong to the form.
    let (_, _, calls) = parts(V3, ChatStart::Content, "[call]function[sep]f\n```json\n{}```[/call]");
    assert_eq!(calls, f("{}```"));
}

#[test]
fn an_answer_is_a_message() {
    let message =
        answer(V31, ChatStart::Reasoning, "r</think>[calls][call]f[sep]{}[/call][/calls]").into_message();
    let json = serde_json::to_value(&message).unwrap();
    assert_eq!((&json["content"], &json["reasoning_content"]), (&serde_json::Value::Null, &"r".into()));
    assert_eq!(json["tool_calls"][0]["function"], serde_json::json!({"name": "f", "arguments": "{}"}));
    assert!(json["tool_calls"][0]["id"].as_str().unwrap().starts_with("call_"));
    let message = answer(V31, ChatStart::Content, "hi").into_message();
    assert_eq!(
        serde_json::to_value(&message).unwrap(),
        serde_json::json!({"role": "assistant", "content": "hi"})
    );
}

const MARKS: [&str; 9] =
    [THINK, END_THINK, CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR, "\n```json\n", "\n```"];

fn fragments() -> impl Strategy<Value = Vec<String>> {
    let marks = prop::sample::select(MARKS.to_vec()).prop_map(str::to_owned);
    let halves =
        (prop::sample::select(MARKS.to_vec()), any::<prop::sample::Index>()).prop_map(|(mark, index)| {
            let ends: Vec<usize> = mark.char_indices().map(|(at, _)| at).collect();
            mark[..ends[index.index(ends.len())]].to_owned()
        });
    let words =
        prop::sample::select(vec!["function", "f", "{}", "{\"a\": 1}", "\n", " ", "é", "<", "``", "x y"]);
    let words = words.prop_map(str::to_owned);
    prop::collection::vec(prop_oneof![4 => marks, 1 => halves, 3 => words, 1 => any::<String>()], 0..24)
}

fn formats() -> impl Strategy<Value = (ChatFormat, ChatStart)> {
    let tools = [ToolFormat::None, ToolFormat::DeepSeekV3, ToolFormat::DeepSeekV31];
    let starts = vec![ChatStart::Content, ChatStart::Reasoning, ChatStart::Open];
    (any::<bool>(), prop::sample::select(tools.to_vec()), prop::sample::select(starts))
        .prop_map(|(reasoning, tools, start)| (ChatFormat { reasoning, tools }, start))
}

/// The pieces without the calls' ids, which are random, and joined: what is not to depend on where the text is cut.
fn joined(pieces: Vec<Piece>) -> ChatAnswer {
    let mut answer = ChatAnswer::default();
    answer.extend(deltas(pieces));
    answer.tool_calls.iter_mut().for_each(|call| call.id.clear());
    answer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_byte_is_lost_and_only_marks_are_taken_away(fragments in fragments(), (format, start) in formats()) {
        let text = fragments.concat();
        let pieces = pieces(format, start, fragments.iter().map(String::as_str));
        prop_assert_eq!(source(&pieces), text);
        for piece in &pieces {
            if let Piece::Mark(mark) = piece {
                let bare = MARKS.iter().fold(mark.clone(), |text, tag| text.replace(tag, ""));
                // The kind of a V3 call is any word before its separator.
                let kind = mark.contains(SEPARATOR);
                prop_assert!(bare.trim().is_empty() || kind, "{:?}", mark);
            }
        }
    }

    #[test]
    fn where_a_text_is_cut_does_not_matter(
        fragments in fragments(),
        (format, start) in formats(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let text = fragments.concat();
        let characters: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| characters[cut.index(characters.len())]).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let parts = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]);
        let whole = joined(pieces(format, start, [text.as_str()]));
        prop_assert_eq!(joined(pieces(format, start, parts)), whole);
        let characters = characters.windows(2).map(|cut| &text[cut[0]..cut[1]]);
        prop_assert_eq!(joined(pieces(format, start, characters)), joined(pieces(format, start, [text.as_str()])));
    }
}
