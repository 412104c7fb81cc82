//! What transformers gives to chat templates: `raise_exception`, `strftime_now`, and `tojson` as Python writes JSON.

use std::fmt::{self, Write};
use std::io;

use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
}

/// The message of a template's `raise_exception`, as the source of the engine's error.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The message, if `error` comes from `raise_exception`.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The local time by a `strftime` format.
#[expect(clippy::needless_pass_by_value, reason = "the template engine hands over owned arguments")]
fn strftime_now(format: String) -> Result<String, Error> {
    let mut text = String::new();
    // Formatting fails, and `to_string` would panic, on a directive that does not exist.
    write!(text, "{}", chrono::Local::now().format(&format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now has no format {format:?}"))
    })?;
    Ok(text)
}

/// `json.dumps` with the options that transformers gives to the filter: the engine's own has other blanks, and escapes
/// HTML.
#[expect(clippy::needless_pass_by_value, reason = "the template engine hands over owned arguments")]
fn to_json(Serde(value): Serde<serde_json::Value>, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<(String, String)> = match options.get::<Option<Vec<String>>>("separators")? {
        None => None,
        Some(separators) => {
            let [items, keys]: [String; 2] = separators.try_into().map_err(|_| {
                Error::new(ErrorKind::InvalidOperation, "tojson's separators are two: of items, and of keys")
            })?;
            Some((items, keys))
        }
    };
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut value = value;
    if sort_keys == Some(true) {
        value.sort_all_objects();
    }
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| indentation(&indent)).transpose()?;
    let (item_separator, key_separator) = separators.unwrap_or_else(|| {
        let items = if indent.is_some() { "," } else { ", " };
        (items.to_owned(), ": ".to_owned())
    });
    let ascii = ensure_ascii == Some(true);
    let formatter = PythonFormatter { indent, item_separator, key_separator, ascii, depth: 0, empty: true };
    let mut bytes = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        .and_then(|()| String::from_utf8(bytes).map_err(serde::ser::Error::custom))
        .map(Value::from)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// What a level of indentation is: so many blanks, or this text.
fn indentation(indent: &Value) -> Result<String, Error> {
    const WIDEST: i64 = 64;
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    match indent.as_i64() {
        Some(width) if width <= WIDEST => Ok(" ".repeat(usize::try_from(width).unwrap_or(0))),
        _ => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson cannot indent by {indent}"))),
    }
}

/// The layout of Python's `json.dumps`, and floats as `repr` writes them.
struct PythonFormatter {
    /// One level's, on lines of their own.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ascii: bool,
    depth: usize,
    /// Whether the list or object that ends has nothing in it.
    empty: bool,
}

impl PythonFormatter {
    fn line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }

    fn begin<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + io::Write>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item_separator.as_bytes())?;
        }
        self.line(writer)
    }

    fn end<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }
}

impl Formatter for PythonFormatter {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(text.as_bytes());
        }
        let mut units = [0; 2];
        for character in text.chars() {
            // To Python's pattern, the last of ASCII is none.
            if character.is_ascii() && character != '\u{7f}' {
                writer.write_all(&[character as u8])?;
            } else {
                character
                    .encode_utf16(&mut units)
                    .iter()
                    .try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }
}

/// `repr(value)`: the shortest digits, with an exponent of two digits below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        format!("{value:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, context: &serde_json::Value) -> Result<String, Error> {
        let mut environment = Environment::new();
        register(&mut environment);
        environment.render_str(source, Serde(context))
    }

    #[test]
    fn json_is_what_python_writes() {
        let value =
            serde_json::json!({"b": [1, 2.0, null, true], "a": {"x": "é<'&>\n\u{1}"}, "e": [], "f": {}});
        let context = serde_json::json!({ "v": value });
        assert_eq!(
            render("{{ v|tojson }}", &context).unwrap(),
            r#"{"b": [1, 2.0, null, true], "a": {"x": "é<'&>\n\u0001"}, "e": [], "f": {}}"#
        );
        assert_eq!(
            render("{{ v.b|tojson(indent=2) }}", &context).unwrap(),
            "[\n  1,\n  2.0,\n  null,\n  true\n]"
        );
        assert!(render("{{ v|tojson(sort_keys=true) }}", &context).unwrap().starts_with(r#"{"a": {"#));
        assert_eq!(
            render("{{ v.a|tojson(ensure_ascii=true, separators=(',', ':')) }}", &context).unwrap(),
            r#"{"x":"\u00e9<'&>\n\u0001"}"#
        );
        assert_eq!(render("{{ '😀'|tojson(ensure_ascii=true) }}", &context).unwrap(), r#""\ud83d\ude00""#);
        assert_eq!(
            render("{{ [{'k': []}, {}]|tojson(indent='\t') }}", &context).unwrap(),
            "[\n\t{\n\t\t\"k\": []\n\t},\n\t{}\n]"
        );
        for unknown in ["separators=1", "separators=[',']", "indent=1.5", "indent=1000", "skipkeys=true"] {
            let source = format!("{{{{ v|tojson({unknown}) }}}}");
            assert!(render(&source, &context).is_err(), "an unknown option is no silence: {unknown}");
        }
    }

    #[test]
    fn floats_are_what_python_writes() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn a_raised_message_is_found_and_another_error_is_not_one() {
        let error = render("{{ raise_exception('no ' + 'way') }}", &serde_json::json!({})).unwrap_err();
        assert_eq!(raised(&error).as_deref(), Some("no way"));
        let error = render("{{ 1 + 'x' }}", &serde_json::json!({})).unwrap_err();
        assert_eq!(raised(&error), None);
    }

    #[test]
    fn the_time_is_formatted_and_a_bad_format_is_an_error() {
        let year = render("{{ strftime_now('%Y') }}", &serde_json::json!({})).unwrap();
        assert!(year.len() == 4 && year.parse::<u32>().is_ok_and(|year| year >= 2024), "{year}");
        let error = render("{{ strftime_now('%Q!') }}", &serde_json::json!({})).unwrap_err();
        assert!(error.to_string().contains("%Q!"), "{error}");
    }
}
