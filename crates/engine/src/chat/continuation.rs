//! Prompts that end within the last message, as with transformers' `continue_final_message`: what a template writes
//! behind that message is cut off.

use serde_json::Value;

use super::ChatOptions;
use crate::Error;

/// Stands at the end of the message while it is rendered. The blank shows whether the template trims messages.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Puts the tag behind the last message's content. Gives the content.
///
/// # Errors
/// [`Error::Continue`] if there is none.
pub(super) fn begin(messages: &mut [Value], options: &ChatOptions, source: &str) -> Result<String, Error> {
    if options.add_generation_prompt {
        return Err(Error::Parameter {
            parameter: "continue_final_message",
            value: "true".to_owned(),
            expected: "false where add_generation_prompt is true",
        });
    }
    if !source.contains("content") {
        return Err(Error::Continue("the template reads no content"));
    }
    let Some(last) = messages.last_mut() else {
        return Err(Error::Continue("there is none"));
    };
    let Value::String(content) = &mut last["content"] else {
        return Err(Error::Continue("it has no content"));
    };
    let before = content.clone();
    content.push_str(TAG);
    Ok(before)
}

/// Cuts the text off where the tag is.
///
/// # Errors
/// [`Error::Continue`] if the template has not printed the message, or not all of it.
pub(super) fn end(mut text: String, content: &str) -> Result<String, Error> {
    let tag = text.rfind(TAG.trim_end()).filter(|_| text.contains(content.trim()));
    let Some(tag) = tag else {
        return Err(Error::Continue("the template does not print it as it is"));
    };
    let keeps_blanks = text[tag..].starts_with(TAG);
    text.truncate(tag);
    if !keeps_blanks {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}
