//! The forms of answers as grammars in llguidance's Lark: tool calls in the words of the model's own format, and what may
//! stand after thoughts, which have no form.

use dsv3_engine::{
    ChatFormat, ChatStart, Constraint, Tokenizer, ToolFormat,
    tags::{CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, END_FENCE, END_THINK, FENCE, SEPARATOR, THINK},
};
use serde_json::Value;

use crate::{
    ApiError,
    request::{
        form::Form,
        tools::{Function, ToolPlan},
    },
};

/// The constraint of a form on an answer that may begin with thoughts.
pub(crate) fn of_form(form: Form, format: ChatFormat, start: ChatStart, tokenizer: &Tokenizer) -> Constraint {
    let rules = Rules { tokenizer };
    if !format.reasoning || start == ChatStart::Content {
        return match form {
            Form::Json(schema) => Constraint::JsonSchema(schema),
            Form::Regex(regex) => Constraint::Regex(regex),
            Form::Choice(choice) => Constraint::Lark(format!("start: {}", alternatives(&choice))),
            Form::Grammar(grammar) => Constraint::Lark(grammar),
        };
    }
    let answer = match form {
        Form::Json(schema) => format!("answer: {}", Constraint::json_in_lark(schema)),
        Form::Regex(regex) => format!("answer: /{}/", in_slashes(&regex)),
        Form::Choice(choice) => format!("answer: {}", alternatives(&choice)),
        Form::Grammar(grammar) => format!("answer: %lark {{\n{grammar}\n}}"),
    };
    let end = match tokenizer.token_id(END_THINK).filter(|&id| tokenizer.is_special(id)) {
        None => "thoughts[lazy]: /(.|\\n)*<\\/think>/".to_owned(),
        Some(id) => format!("thoughts: inside <[{}]>\ninside: /(.|\\n)*/", id.0),
    };
    let thinking = match start {
        ChatStart::Reasoning => "thoughts".to_owned(),
        _ => format!("({} thoughts)?", rules.tag(THINK)),
    };
    Constraint::Lark(format!("start: {thinking} space answer\n{end}\nspace: /[ \\n]{{0,4}}/\n{answer}\n"))
}

/// The constraint of an answer that must call one of these functions, thoughts first.
///
/// # Errors
/// A model whose format has no calls.
pub(crate) fn of_calls(
    plan: &ToolPlan,
    format: ChatFormat,
    start: ChatStart,
    tokenizer: &Tokenizer,
) -> Result<Constraint, ApiError> {
    let rules = Rules { tokenizer };
    let (before, after, between) = match format.tools {
        ToolFormat::DeepSeekV3 => (format!("\n{FENCE}"), END_FENCE, "\n"),
        ToolFormat::DeepSeekV31 => (String::new(), "", ""),
        ToolFormat::None => return Err(no_calls("tool_choice")),
    };
    let is_v3 = format.tools == ToolFormat::DeepSeekV3;
    let call = |(index, function): (usize, &Function)| {
        let Function { name, .. } = function;
        let separator = rules.tag(SEPARATOR);
        let head = if is_v3 {
            format!("{} {separator} {}", quoted("function"), quoted(&format!("{name}{before}")))
        } else {
            format!("{} {separator}", quoted(name))
        };
        let tail = if after.is_empty() { String::new() } else { quoted(after) };
        format!("call_{index}: {head} {} {tail}\n", Constraint::json_in_lark(function.schema()))
    };
    let calls: String = plan.forced.iter().enumerate().map(call).collect();
    let any: Vec<String> = (0..plan.forced.len()).map(|index| format!("call_{index}")).collect();
    let gap = if between.is_empty() { String::new() } else { quoted(between) };
    let more = if plan.single { String::new() } else { format!("({gap} call)*") };
    let [calls_begin, calls_end] = [CALLS_BEGIN, CALLS_END].map(|tag| rules.tag(tag));
    let [call_begin, call_end] = [CALL_BEGIN, CALL_END].map(|tag| rules.tag(tag));
    let any = any.join(" | ");
    let grammar = format!(
        "start: {calls_begin} call {more} {calls_end}\ncall: {call_begin} ({any}) {call_end}\n{calls}"
    );
    Ok(of_form(Form::Grammar(grammar), format, start, tokenizer))
}

/// Of tools where the model has no form for calling them.
pub(crate) fn no_calls(field: &str) -> ApiError {
    let message = format!("{field}: this model's chat template shows no form of tool calls");
    ApiError::unsupported(field, message)
}

struct Rules<'a> {
    tokenizer: &'a Tokenizer,
}

impl Rules<'_> {
    /// A tag as it is written: text, or where it is a special token, that.
    fn tag(&self, tag: &str) -> String {
        match self.tokenizer.token_id(tag).filter(|&id| self.tokenizer.is_special(id)) {
            Some(id) => format!("<[{}]>", id.0),
            None => quoted(tag),
        }
    }
}

/// A text as Lark writes it, which is as JSON does.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn alternatives(texts: &[String]) -> String {
    texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(" | ")
}

/// An expression between slashes.
fn in_slashes(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut is_escaped = false;
    for character in regex.chars() {
        match character {
            '/' if !is_escaped => out.push_str("\\/"),
            '\n' => out.push_str(if is_escaped { "n" } else { "\\n" }),
            other => out.push(other),
        }
        is_escaped = character == '\\' && !is_escaped;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsv3_engine::{Guides, testing};
    use serde_json::json;
    use std::path::Path;

    fn tokenizer(has_special_tags: bool) -> Tokenizer {
        let mut json = testing::tokenizer_json();
        for tag in json["added_tokens"].as_array_mut().unwrap() {
            if tag["content"].as_str().unwrap().contains("think") {
                tag["special"] = has_special_tags.into();
            }
        }
        let bytes = json.to_string();
        let path = Path::new("tokenizer.json");
        Tokenizer::parse(path, bytes.as_bytes(), &testing::config(), testing::VOCAB_SIZE).unwrap()
    }

    #[test]
    fn every_form_is_a_grammar_wherever_the_answer_begins() {
        let forms = [
            Form::Json(json!(true)),
            Form::Json(json!({"type": "object", "properties": {"a\"b": {"type": "string"}}})),
            Form::Regex("a/b\\/c\n|\\{[0-9]\\}".to_owned()),
            Form::Choice(vec!["a\"b".to_owned(), "\\n\n".to_owned()]),
            Form::Grammar("start: x\nx: \"{\" /[^}]/ \"}\"".to_owned()),
        ];
        for is_special in [false, true] {
            let tokenizer = tokenizer(is_special);
            let guides = Guides::new(&tokenizer).unwrap();
            for tools in [ToolFormat::DeepSeekV3, ToolFormat::DeepSeekV31] {
                let format = ChatFormat { reasoning: true, tools };
                for start in [ChatStart::Content, ChatStart::Reasoning, ChatStart::Open] {
                    for form in forms.clone() {
                        let constraint = of_form(form, format, start, &tokenizer);
                        guides.guide(&constraint).unwrap_or_else(|error| panic!("{error}: {constraint:?}"));
                    }
                    let tool = json!({"name": "get", "parameters": {"type": "object"}});
                    let forced: Vec<Function> =
                        serde_json::from_value(json!([tool, {"name": "put"}])).unwrap();
                    for single in [false, true] {
                        let plan = ToolPlan { is_on: true, forced: forced.clone(), single };
                        let constraint = of_calls(&plan, format, start, &tokenizer).unwrap();
                        guides.guide(&constraint).unwrap_or_else(|error| panic!("{error}: {constraint:?}"));
                    }
                }
            }
        }
    }

    #[test]
    fn an_expression_keeps_its_meaning_between_slashes() {
        assert_eq!(in_slashes("a/b\\/c\\\\/d\ne"), "a\\/b\\/c\\\\\\/d\\ne");
    }
}
