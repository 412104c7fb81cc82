//! `{% generation %}` and `{% endgeneration %}`, by which transformers' templates mark what the assistant has said, for
//! training. Here they only bound the names that are set between them, as there.

/// The same template with a block that minijinja knows in their place. What is in strings, comments and raw blocks stays.
pub(super) fn without(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') => expression(rest, "}}"),
            Some(b'%') => expression(rest, "%}"),
            _ => 1,
        };
        let (token, behind) = rest.split_at(length);
        rest = behind;
        match block_name(token) {
            Some("generation") => out.push_str(&token.replacen("generation", "with", 1)),
            Some("endgeneration") => out.push_str(&token.replacen("endgeneration", "endwith", 1)),
            Some("raw") => {
                out.push_str(token);
                let end = raw_end(rest);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => out.push_str(token),
        }
    }
    out + rest
}

/// The length of a tag with its end, which is not one within a string.
fn expression(text: &str, end: &str) -> usize {
    let mut quote = None;
    let mut characters = text.char_indices().skip(2);
    while let Some((at, character)) = characters.next() {
        match quote {
            Some(_) if character == '\\' => {
                characters.next();
            }
            Some(open) if character == open => quote = None,
            None if character == '\'' || character == '"' => quote = Some(character),
            None if text[at..].starts_with(end) => return at + end.len(),
            Some(_) | None => {}
        }
    }
    text.len()
}

/// The name of a block's tag that holds nothing else.
fn block_name(token: &str) -> Option<&str> {
    let inner = token.strip_prefix("{%")?.strip_suffix("%}")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    Some(inner.strip_suffix(['-', '+']).unwrap_or(inner).trim())
}

/// Where the tag begins that ends a raw block.
fn raw_end(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%").map(|at| from + at) {
        let end = text[at..].find("%}").map_or(text.len(), |end| at + end + 2);
        if block_name(&text[at..end]) == Some("endraw") {
            return at;
        }
        from = at + 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tags_are_replaced() {
        for (source, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% with %}b{% endwith %}c"),
            ("{%- generation -%} x {%+endgeneration-%}", "{%- with -%} x {%+endwith-%}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            (r#"{% set x = "\"{% generation %}" %}"#, r#"{% set x = "\"{% generation %}" %}"#),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{% raw %}{% generation %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}"),
            ("{% raw %}{% generation %}", "{% raw %}{% generation %}"),
            ("{% generation", "{% generation"),
            ("{ {{ x }} {%", "{ {{ x }} {%"),
            ("{% if generation %}{% endif %}", "{% if generation %}{% endif %}"),
            ("{", "{"),
        ] {
            assert_eq!(without(source), expected);
        }
    }
}
