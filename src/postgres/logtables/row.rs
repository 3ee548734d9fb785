//! Rows in the text form of [composite types](https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX),
//! as `record_out` writes it: nothing is null, `""` is empty, quotes and backslashes are doubled inside quotes.

use std::borrow::Cow;

use super::super::error::{Error, Result};

/// One column: `None` for NULL.
pub type Field<'a> = Option<Cow<'a, str>>;

/// The columns of a row. A row without columns reads as one NULL: the text is the same.
pub fn fields(row: &str) -> Result<Vec<Field<'_>>> {
    read(row).ok_or_else(|| Error::Protocol("a logged row that is not in the form of a composite type".into()))
}

fn read(row: &str) -> Option<Vec<Field<'_>>> {
    let mut rest = row.strip_prefix('(')?.strip_suffix(')')?;
    let mut fields = Vec::new();
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (value, after) = quoted_field(quoted)?;
            fields.push(Some(value));
            rest = after;
        } else {
            let end = rest.find([',', '"']).unwrap_or(rest.len());
            fields.push((end > 0).then(|| Cow::Borrowed(&rest[..end])));
            rest = &rest[end..];
        }
        if rest.is_empty() {
            return Some(fields);
        }
        rest = rest.strip_prefix(',')?;
    }
}

/// The value behind an opening quote, and what follows the closing one.
fn quoted_field(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let bytes = text.as_bytes();
    let mut value: Option<String> = None;
    let mut start = 0;
    loop {
        let at = start + memchr::memchr2(b'"', b'\\', &bytes[start..])?;
        let doubled = bytes.get(at + 1) == Some(&bytes[at]);
        if !doubled {
            if bytes[at] == b'\\' {
                return None;
            }
            let tail = &text[start..at];
            let value = match value {
                Some(value) => Cow::Owned(value + tail),
                None => Cow::Borrowed(tail),
            };
            return Some((value, &text[at + 1..]));
        }
        value.get_or_insert_default().push_str(&text[start..=at]);
        start = at + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_record_out_writes() {
        let own = |text: &'static str| Some(Cow::Borrowed(text));
        for (row, expected) in [
            ("()", vec![None]),
            ("(1,,\"\")", vec![own("1"), None, own("")]),
            (r#"("a ""b"" \\ c",d)"#, vec![own(r#"a "b" \ c"#), own("d")]),
            (r#"("""","\\")"#, vec![own("\""), own("\\")]),
            ("(\"(1,\"\"x y\"\")\",)", vec![own("(1,\"x y\")"), None]),
            ("(\"a,b\",é)", vec![own("a,b"), own("é")]),
        ] {
            assert_eq!(fields(row).unwrap(), expected, "{row}");
        }
        for wrong in ["", "(", "(1", "(\"a)", "(\"a\"b)", "(\"a\\b\")", "(a\"b)"] {
            assert!(fields(wrong).is_err(), "{wrong}");
        }
    }
}
