//! In what form a model writes its thoughts and its tool calls, and where in that form a prompt leaves it.

use std::fmt;
use std::str::FromStr;

use super::tags::{CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, END_THINK, SEPARATOR, THINK};
use crate::Tokenizer;

/// After the last of these, a prompt holds only what belongs to the answer.
const ANSWER_BEGINS: [&str; 3] = ["<｜Assistant｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁end｜>"];

/// How a model marks the parts of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    /// Whether thoughts stand between `<think>` and `</think>`.
    pub reasoning: bool,
    /// How tools are called.
    pub tools: ToolFormat,
}

/// How a model writes tool calls. `｜` stands for U+FF5C and `▁` for U+2581 in these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolFormat {
    /// It does not; tags are text.
    #[default]
    None,
    /// DeepSeek-V3 and R1: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`, a line end, the arguments in a fence of
    /// ```` ```json ````, `<｜tool▁call▁end｜>`.
    DeepSeekV3,
    /// DeepSeek-V3.1: `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>`.
    DeepSeekV31,
}

/// Where in its form an answer begins, since a template may have written the first tag itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatStart {
    /// In the content.
    Content,
    /// In the thoughts.
    Reasoning,
    /// In the content, unless the answer itself begins with `<think>`.
    Open,
}

impl ChatFormat {
    /// No thoughts and no calls: all is content.
    pub const PLAIN: Self = Self { reasoning: false, tools: ToolFormat::None };

    /// The form that a chat template shows: it prints the history in the form that the model writes.
    pub fn detect(template: &str) -> Self {
        let reasoning = template.contains(THINK) || template.contains(END_THINK);
        // The fence may be put together from parts, as in '\n' + '```json' + '\n'.
        let tools = match (template.contains(CALL_BEGIN), template.contains("```json")) {
            (false, _) => ToolFormat::None,
            (true, true) => ToolFormat::DeepSeekV3,
            (true, false) => ToolFormat::DeepSeekV31,
        };
        Self { reasoning, tools }
    }

    /// For a request that offers no tools: what looks like a call is text.
    pub fn without_tools(self) -> Self {
        Self { tools: ToolFormat::None, ..self }
    }

    /// Whether special tokens may be left out of the text that a [`ChatParser`](crate::ChatParser) reads:
    /// [`Request::skip_special`](crate::Request::skip_special). DeepSeek's tags are no special tokens; where a
    /// tokenizer says that one is, the text must hold them all.
    pub fn skip_special(self, tokenizer: &Tokenizer) -> bool {
        let thoughts: &[&str] = if self.reasoning { &[THINK, END_THINK] } else { &[] };
        let calls: &[&str] = match self.tools {
            ToolFormat::None => &[],
            _ => &[CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR],
        };
        let is_special = |tag: &&str| tokenizer.token_id(tag).is_some_and(|id| tokenizer.is_special(id));
        !thoughts.iter().chain(calls).any(is_special)
    }
}

impl ToolFormat {
    const NAMES: [(&str, Self); 3] =
        [("none", Self::None), ("deepseek-v3", Self::DeepSeekV3), ("deepseek-v3.1", Self::DeepSeekV31)];
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().find(|(_, format)| format == self);
        formatter.write_str(named.expect("every format has a name").0)
    }
}

/// Refuses what it does not know by name.
impl FromStr for ToolFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match Self::NAMES.iter().find(|(known, _)| *known == name) {
            Some(&(_, format)) => Ok(format),
            None if name == "deepseek-v3.2" => {
                Err("the tool calls of DeepSeek-V3.2 (DSML) are not supported".to_owned())
            }
            None => Err(format!("expected none, deepseek-v3 or deepseek-v3.1, got {name:?}")),
        }
    }
}

impl ChatStart {
    /// How a rendered prompt leaves the answer, be it at its beginning or, where the last message is continued, in
    /// its middle.
    pub fn after(rendered: &str) -> Self {
        let begin = ANSWER_BEGINS.iter().filter_map(|tag| Some(rendered.rfind(tag)? + tag.len())).max();
        let answer = &rendered[begin.unwrap_or(0)..];
        match (answer.rfind(THINK), answer.rfind(END_THINK)) {
            // Of a template that is not DeepSeek's only the end says something: what comes before may be a question.
            _ if begin.is_none() && answer.trim_end().ends_with(THINK) => Self::Reasoning,
            _ if begin.is_none() && answer.trim_end().ends_with(END_THINK) => Self::Content,
            _ if begin.is_none() || answer.trim().is_empty() => Self::Open,
            (Some(opened), closed) if closed.is_none_or(|closed| closed < opened) => Self::Reasoning,
            _ => Self::Content,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_template_shows_its_form() {
        for (source, reasoning, tools) in [
            (include_str!("templates/v3.jinja"), false, ToolFormat::DeepSeekV3),
            (include_str!("templates/r1.jinja"), true, ToolFormat::None),
            (include_str!("templates/r1_0528.jinja"), true, ToolFormat::None),
            (include_str!("templates/v31.jinja"), true, ToolFormat::DeepSeekV31),
            ("{{ messages[0].content }}", false, ToolFormat::None),
        ] {
            assert_eq!(ChatFormat::detect(source), ChatFormat { reasoning, tools });
        }
        assert_eq!(ChatFormat::detect("{{ x }}"), ChatFormat::PLAIN);
    }

    #[test]
    fn a_prompt_shows_where_the_answer_begins() {
        for (prompt, start) in [
            ("<｜User｜>a<｜Assistant｜><think>\n", ChatStart::Reasoning),
            ("<｜User｜>a<｜Assistant｜></think>", ChatStart::Content),
            ("<｜User｜>a <think> b<｜Assistant｜>", ChatStart::Open),
            ("<｜Assistant｜><think>x</think>y<｜User｜>a<｜Assistant｜>", ChatStart::Open),
            ("<｜tool▁outputs▁begin｜>x<｜tool▁outputs▁end｜>", ChatStart::Open),
            ("<｜Assistant｜>The answer is", ChatStart::Content),
            ("<｜Assistant｜><think>\nLet me", ChatStart::Reasoning),
            ("<｜Assistant｜><think>x</think>The answer is", ChatStart::Content),
            ("<user>what is <think>?</user><assistant>", ChatStart::Open),
            ("<user>a</user><assistant><think>\n", ChatStart::Reasoning),
            ("<assistant></think>\n\n", ChatStart::Content),
            ("", ChatStart::Open),
        ] {
            assert_eq!(ChatStart::after(prompt), start, "{prompt}");
        }
    }

    #[test]
    fn formats_have_names_and_an_unknown_one_is_refused_by_its() {
        for name in ["none", "deepseek-v3", "deepseek-v3.1"] {
            assert_eq!(name.parse::<ToolFormat>().unwrap().to_string(), name);
        }
        assert!("deepseek-v3.2".parse::<ToolFormat>().unwrap_err().contains("DeepSeek-V3.2"));
        assert!("hermes".parse::<ToolFormat>().unwrap_err().contains("\"hermes\""));
    }

    #[test]
    fn special_tokens_stay_in_the_text_where_a_tag_is_one() {
        let format = ChatFormat { reasoning: true, tools: ToolFormat::DeepSeekV3 };
        assert!(format.skip_special(testing::tokenizer()));
        let mut json = testing::tokenizer_json();
        json["added_tokens"][3]["special"] = true.into();
        let path = std::path::Path::new("tokenizer.json");
        let bytes = json.to_string();
        let tokenizer =
            Tokenizer::parse(path, bytes.as_bytes(), &testing::config(), testing::VOCAB_SIZE).unwrap();
        assert!(!format.skip_special(&tokenizer));
        assert!(ChatFormat::PLAIN.skip_special(&tokenizer));
    }
}
