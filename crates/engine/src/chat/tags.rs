//! The tags that DeepSeek's models write between the parts of an answer.

/// Before thoughts.
pub const THINK: &str = "<think>";
/// Behind thoughts.
pub const END_THINK: &str = "</think>";
/// Before the first tool call.
pub const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
/// Behind the last one.
pub const CALLS_END: &str = "<｜tool▁calls▁end｜>";
/// Before each.
pub const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
/// Behind each.
pub const CALL_END: &str = "<｜tool▁call▁end｜>";
/// Within a call.
pub const SEPARATOR: &str = "<｜tool▁sep｜>";
/// What stands between a call's name, with a line end behind it, and its arguments in the older form.
pub const FENCE: &str = "```json\n";
/// And between the arguments and the call's end.
pub const END_FENCE: &str = "\n```";
