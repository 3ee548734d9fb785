//! LIKE and ILIKE: `%` any run, `_` one character, `\` takes the next one as it is
//! ([pattern matching](https://www.postgresql.org/docs/current/functions-matching.html#FUNCTIONS-LIKE)).
//! Letter case folds one character at a time by Unicode, whatever the collation of the column.

use memchr::memmem::Finder;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// No `%`.
    Exact(Box<[u8]>),
    /// Literal pieces between `%`: the first at the beginning, the last at the end, the others anywhere between in
    /// this order. Linear in the text.
    Pieces { first: Box<[u8]>, middle: Box<[Finder<'static>]>, last: Box<[u8]> },
    /// With `_`, or ILIKE.
    General { tokens: Box<[Token]>, fold: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Any,
    One,
    Char(char),
}

impl Pattern {
    /// `None` when the pattern ends with the escape character.
    pub fn compile(pattern: &str, insensitive: bool) -> Option<Pattern> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '%' if tokens.last() == Some(&Token::Any) => continue,
                '%' => Token::Any,
                '_' => Token::One,
                '\\' => Token::Char(chars.next()?),
                c => Token::Char(c),
            });
        }
        if insensitive || tokens.contains(&Token::One) {
            for token in &mut tokens {
                if let (true, Token::Char(c)) = (insensitive, &mut *token) {
                    *c = fold_case(*c);
                }
            }
            return Some(Pattern::General { tokens: tokens.into(), fold: insensitive });
        }
        let mut pieces = vec![String::new()];
        for token in tokens {
            match (token, pieces.last_mut()) {
                (Token::Char(c), Some(piece)) => piece.push(c),
                _ => pieces.push(String::new()),
            }
        }
        let last = pieces.pop()?.into_bytes().into();
        if pieces.is_empty() {
            return Some(Pattern::Exact(last));
        }
        let first = pieces.remove(0).into_bytes().into();
        Some(Pattern::Pieces {
            first,
            middle: pieces.iter().map(|piece| Finder::new(piece).into_owned()).collect(),
            last,
        })
    }

    /// A LIKE pattern that matches the same; `None` for ILIKE.
    pub fn to_text(&self) -> Option<String> {
        let mut text = String::new();
        match self {
            Pattern::Exact(only) => escape(&mut text, only)?,
            Pattern::Pieces { first, middle, last } => {
                escape(&mut text, first)?;
                for piece in middle.iter().map(Finder::needle).chain([&**last]) {
                    text.push('%');
                    escape(&mut text, piece)?;
                }
            }
            Pattern::General { fold: true, .. } => return None,
            Pattern::General { tokens, .. } => {
                for token in tokens {
                    match token {
                        Token::Any => text.push('%'),
                        Token::One => text.push('_'),
                        Token::Char(c) => escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                    }
                }
            }
        }
        Some(text)
    }

    pub fn matches(&self, text: &str) -> bool {
        match self {
            Pattern::General { tokens, fold } => general(tokens, text, *fold),
            pattern => pattern.matches_raw(text.as_bytes()),
        }
    }

    /// For text that is not UTF-8: where single characters count, what is none counts as U+FFFD.
    pub fn matches_raw(&self, text: &[u8]) -> bool {
        match self {
            Pattern::Exact(piece) => **piece == *text,
            Pattern::Pieces { first, middle, last } => {
                let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else {
                    return false;
                };
                for piece in middle {
                    match piece.find(rest) {
                        Some(at) => rest = &rest[at + piece.needle().len()..],
                        None => return false,
                    }
                }
                true
            }
            Pattern::General { tokens, fold } => general(tokens, &String::from_utf8_lossy(text), *fold),
        }
    }
}

/// Appends what a pattern takes as it is.
fn escape(pattern: &mut String, piece: &[u8]) -> Option<()> {
    for c in std::str::from_utf8(piece).ok()?.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    Some(())
}

/// Backtracks to the last `%` only, which is enough: what an earlier one could still give, the later one can too.
fn general(tokens: &[Token], text: &str, fold: bool) -> bool {
    let (mut token, mut rest) = (0, text.chars());
    let mut retry = None;
    loop {
        match tokens.get(token) {
            Some(Token::Any) => {
                token += 1;
                retry = Some((token, rest.clone()));
                continue;
            }
            Some(expected) => match (rest.next(), expected) {
                (None, _) => return false,
                (Some(c), Token::Char(wanted)) if (if fold { fold_case(c) } else { c }) != *wanted => {}
                _ => {
                    token += 1;
                    continue;
                }
            },
            None if rest.as_str().is_empty() => return true,
            None => {}
        }
        let Some((after, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        token = *after;
        rest = from.clone();
    }
}

fn fold_case(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(only), None) => only,
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (text, pattern, like, ilike) in [
            ("abc", "abc", true, true),
            ("abc", "ABC", false, true),
            ("abc", "a%", true, true),
            ("abc", "%c", true, true),
            ("abc", "%b%", true, true),
            ("abc", "b", false, false),
            ("", "%", true, true),
            ("", "", true, true),
            ("", "_", false, false),
            ("aba", "ab%ba", false, false),
            ("abba", "ab%ba", true, true),
            ("a%c", r"a\%c", true, true),
            ("abc", r"a\%c", false, false),
            ("aXbXc", "a%x%c", false, true),
            ("größe", "gr__e", true, true),
            ("GRÖSSE", "größe", false, false),
            ("ÄRGER", "ä%", false, true),
            ("aaab", "%a_b", true, true),
            ("aaab", "_%_%_%_%_", false, false),
            ("xaybzc", "%a%b%c", true, true),
            ("xaybzcd", "%a%b%c", false, false),
        ] {
            assert_eq!(Pattern::compile(pattern, false).unwrap().matches(text), like, "{text} LIKE {pattern}");
            assert_eq!(Pattern::compile(pattern, true).unwrap().matches(text), ilike, "{text} ILIKE {pattern}");
        }
        assert!(Pattern::compile(r"abc\", false).is_none());
    }
}
