//! LIKE and ILIKE: `%` any run, `_` one character, `\` takes the next one as it is
//! ([pattern matching](https://www.postgresql.org/docs/current/functions-matching.html#FUNCTIONS-LIKE)).
//! Letter case folds one character at a time by Unicode, whatever the collation of the column.
//!
//! A piece with `_` is in the worst case compared at each place of the text, and either may be long. So a longer piece is
//! followed at all places at once, a bit for each character of it
//! ([shift-and](https://en.wikipedia.org/wiki/Bitap_algorithm)), and has at most [`MAX_PIECE`] characters. So what a character of
//! the text costs is known beforehand ([`Pattern::steps`]), and a predicate may ask for [`MAX_STEPS`] of them, all its patterns
//! together: sessions evaluate on the threads that serve everybody.

use memchr::memmem::Finder;

/// Longest piece between two `%` that is looked for by single characters, inclusive.
pub(super) const MAX_PIECE: usize = 1024;
/// Steps that the patterns of one predicate may take for a character of the text in the worst case, inclusive: some ten
/// microseconds for each KiB at most.
pub(super) const MAX_STEPS: usize = 512;
/// Longest piece that is tried at one place after another, inclusive.
const SHORT: usize = 16;
const WORDS: usize = MAX_PIECE / 64;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// No `%`.
    Exact(Box<[u8]>),
    /// Literal pieces between `%`: the first at the beginning, the last at the end, the others anywhere between in
    /// this order. Linear in the text.
    Pieces { first: Box<[u8]>, middle: Box<[Finder<'static>]>, last: Box<[u8]> },
    /// With `_`, or ILIKE.
    General(General),
}

/// Pieces as in [`Pattern::Pieces`], by characters.
#[derive(Clone, Debug)]
pub(super) struct General {
    first: Box<[Token]>,
    middle: Box<[Piece]>,
    /// `None`: there is no `%`, and the text ends where `first` does.
    last: Option<Box<[Token]>>,
    fold: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    One,
    Char(char),
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// It ends with the escape character.
    Escape,
    /// A piece has more than [`MAX_PIECE`] characters.
    Long,
}

impl Pattern {
    pub fn compile(pattern: &str, insensitive: bool) -> Result<Pattern, Invalid> {
        let mut pieces = vec![Vec::new()];
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            let token = match c {
                '%' => {
                    pieces.push(Vec::new());
                    continue;
                }
                '_' => Token::One,
                '\\' => Token::of(chars.next().ok_or(Invalid::Escape)?, insensitive),
                c => Token::of(c, insensitive),
            };
            pieces.last_mut().into_iter().for_each(|piece| piece.push(token));
        }
        let general = insensitive || pieces.iter().flatten().any(|token| *token == Token::One);
        let mut pieces = pieces.into_iter();
        let first = pieces.next().unwrap_or_default();
        let last = pieces.next_back();
        let middle = pieces.filter(|piece| !piece.is_empty());
        if general {
            let middle = middle.map(Piece::new).collect::<Result<_, _>>()?;
            let last = last.map(Vec::into_boxed_slice);
            return Ok(Pattern::General(General { first: first.into(), middle, last, fold: insensitive }));
        }
        let text = |tokens: &[Token]| tokens.iter().filter_map(|token| token.char()).collect::<String>().into_bytes();
        Ok(match last {
            None => Pattern::Exact(text(&first).into()),
            Some(last) => Pattern::Pieces {
                first: text(&first).into(),
                middle: middle.map(|piece| Finder::new(&text(&piece)).into_owned()).collect(),
                last: text(&last).into(),
            },
        })
    }

    /// What a character of the text costs in the worst case: about a nanosecond each. What is anchored at an end costs the
    /// pattern's length, whatever the text's.
    pub fn steps(&self) -> usize {
        match self {
            Pattern::Exact(_) => 0,
            Pattern::Pieces { middle, .. } => usize::from(!middle.is_empty()),
            // The text is made UTF-8 first where it is not.
            Pattern::General(general) => 1 + general.middle.iter().map(Piece::steps).max().unwrap_or_default(),
        }
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
            Pattern::General(General { fold: true, .. }) => return None,
            Pattern::General(General { first, middle, last, .. }) => {
                write(&mut text, first)?;
                for piece in middle.iter().map(|piece| &piece.tokens).chain(last) {
                    text.push('%');
                    write(&mut text, piece)?;
                }
            }
        }
        Some(text)
    }

    pub fn matches(&self, text: &str) -> bool {
        match self {
            Pattern::General(general) => general.matches(text),
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
            Pattern::General(general) => general.matches(&String::from_utf8_lossy(text)),
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

fn write(pattern: &mut String, tokens: &[Token]) -> Option<()> {
    for token in tokens {
        match token {
            Token::One => pattern.push('_'),
            Token::Char(c) => escape(pattern, c.encode_utf8(&mut [0; 4]).as_bytes())?,
        }
    }
    Some(())
}

impl Token {
    fn of(c: char, fold: bool) -> Token {
        Token::Char(if fold { fold_case(c) } else { c })
    }

    fn char(self) -> Option<char> {
        match self {
            Token::Char(c) => Some(c),
            Token::One => None,
        }
    }
}

impl General {
    fn matches(&self, text: &str) -> bool {
        let Some(mut rest) = behind(&self.first, text, self.fold) else { return false };
        let Some(last) = &self.last else { return rest.is_empty() };
        let end = match last.len() {
            0 => rest.len(),
            // Each token is one character.
            len => match rest.char_indices().rev().nth(len - 1) {
                Some((at, _)) => at,
                None => return false,
            },
        };
        if behind(last, &rest[end..], self.fold).is_none() {
            return false;
        }
        rest = &rest[..end];
        for piece in &self.middle {
            match piece.find(rest, self.fold) {
                Some(found) => rest = found,
                None => return false,
            }
        }
        true
    }
}

/// What comes behind the tokens, if the text begins with them.
fn behind<'t>(tokens: &[Token], text: &'t str, fold: bool) -> Option<&'t str> {
    let mut chars = text.chars();
    for token in tokens {
        let c = chars.next()?;
        if token.char().is_some_and(|wanted| wanted != if fold { fold_case(c) } else { c }) {
            return None;
        }
    }
    Some(chars.as_str())
}

/// Tokens that are looked for; at least one.
#[derive(Clone, Debug)]
struct Piece {
    tokens: Box<[Token]>,
    /// For a long one.
    places: Option<Places>,
}

/// At which places of a piece a character may stand, a bit for each.
#[derive(Clone, Debug)]
struct Places {
    /// Words of each set.
    words: usize,
    /// Those of `_`, at which any character may.
    any: Box<[u64]>,
    /// Characters of the piece, ascending; their sets one behind the other, those of `_` included.
    chars: Box<[char]>,
    sets: Box<[u64]>,
}

impl Piece {
    fn new(tokens: Vec<Token>) -> Result<Piece, Invalid> {
        if tokens.len() > MAX_PIECE {
            return Err(Invalid::Long);
        }
        let places = (tokens.len() > SHORT).then(|| Places::of(&tokens));
        Ok(Piece { tokens: tokens.into(), places })
    }

    fn steps(&self) -> usize {
        const LOOKUP: usize = 8;
        self.places.as_ref().map_or(self.tokens.len(), |places| LOOKUP + places.words)
    }

    /// What comes behind the first place at which the text has it.
    fn find<'t>(&self, text: &'t str, fold: bool) -> Option<&'t str> {
        match &self.places {
            None => text.char_indices().find_map(|(at, _)| behind(&self.tokens, &text[at..], fold)),
            Some(places) => places.find(text, self.tokens.len(), fold),
        }
    }
}

impl Places {
    fn of(tokens: &[Token]) -> Places {
        let words = tokens.len().div_ceil(64);
        let mut chars: Vec<char> = tokens.iter().filter_map(|token| token.char()).collect();
        chars.sort_unstable();
        chars.dedup();
        let set = |wanted: Option<char>| {
            let mut set = vec![0; words];
            let fits = |token: &Token| token.char().is_none() || token.char() == wanted;
            for (at, _) in tokens.iter().enumerate().filter(|(_, token)| fits(token)) {
                set[at / 64] |= 1 << (at % 64);
            }
            set
        };
        let sets = chars.iter().flat_map(|c| set(Some(*c))).collect();
        Places { words, any: set(None).into(), chars: chars.into(), sets }
    }

    fn set(&self, c: char) -> &[u64] {
        match self.chars.binary_search(&c) {
            Ok(at) => &self.sets[at * self.words..(at + 1) * self.words],
            Err(_) => &self.any,
        }
    }

    /// `state` has a bit for each prefix of the piece that ends here.
    fn find<'t>(&self, text: &'t str, len: usize, fold: bool) -> Option<&'t str> {
        let mut state = [0u64; WORDS];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let mut carry = 1;
            for (word, set) in state.iter_mut().zip(self.set(if fold { fold_case(c) } else { c })) {
                let next = *word >> 63;
                *word = (*word << 1 | carry) & set;
                carry = next;
            }
            if state[(len - 1) / 64] >> ((len - 1) % 64) & 1 == 1 {
                return Some(chars.as_str());
            }
        }
        None
    }
}

fn fold_case(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    // U+0130 alone becomes two, an i and a dot; the simple mapping, which PostgreSQL uses, has no dot.
    c.to_lowercase().next().unwrap_or(c)
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
        assert_eq!(Pattern::compile(r"abc\", false).err(), Some(Invalid::Escape));
    }

    /// Tries everything.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|at| naive(rest, &text[at..])),
            ['_', rest @ ..] => !text.is_empty() && naive(rest, &text[1..]),
            [c, rest @ ..] => text.first() == Some(c) && naive(rest, &text[1..]),
        }
    }

    #[test]
    fn pieces_of_any_length_are_found_where_they_are() {
        let mut random = fastrand::Rng::with_seed(4);
        let mut matched = 0;
        for round in 0..3000 {
            let piece = |random: &mut fastrand::Rng, len: usize| -> String {
                (0..len).map(|_| *random.choice(&['a', 'a', 'a', 'b', 'ß', '_']).expect("a choice")).collect()
            };
            let lens = [(0, 3), (1, 20), (14, 18), (60, 70), (120, 200)][round % 5];
            let parts: Vec<String> = (0..random.usize(1..4))
                .map(|_| {
                    let len = random.usize(lens.0..lens.1);
                    piece(&mut random, len)
                })
                .collect();
            let pattern = parts.join("%");
            // Texts that match but for a character now and then.
            let mut text: Vec<char> = Vec::new();
            for c in pattern.chars() {
                match c {
                    '%' => text.extend((0..random.usize(0..4)).map(|_| if random.bool() { 'a' } else { 'ß' })),
                    '_' => text.push('b'),
                    c => text.push(c),
                }
            }
            if random.bool() && !text.is_empty() {
                let at = random.usize(..text.len());
                text[at] = 'c';
            }
            let expected = naive(&pattern.chars().collect::<Vec<_>>(), &text);
            let text: String = text.into_iter().collect();
            matched += usize::from(expected);
            assert_eq!(Pattern::compile(&pattern, false).unwrap().matches(&text), expected, "{text} LIKE {pattern}");
            assert_eq!(Pattern::compile(&pattern, true).unwrap().matches(&text), expected, "{text} ILIKE {pattern}");
        }
        assert!((1000..2500).contains(&matched), "{matched}");
    }

    #[test]
    fn a_piece_that_would_cost_too_much_is_refused() {
        let of = |len: usize| format!("%{}_%", "a".repeat(len - 1));
        assert_eq!(Pattern::compile(&of(MAX_PIECE + 1), false).err(), Some(Invalid::Long));
        assert!(Pattern::compile(&of(MAX_PIECE), true).is_ok());
        let literal = format!("%{}%", "a".repeat(5 * MAX_PIECE));
        assert!(Pattern::compile(&literal, false).is_ok(), "text is found in linear time");
        assert_eq!(Pattern::compile(&literal, true).err(), Some(Invalid::Long));
        let ends = "a_".repeat(MAX_PIECE);
        assert!(Pattern::compile(&format!("{ends}%{ends}"), false).is_ok(), "the ends have one place each");
    }

    #[test]
    fn steps_are_those_of_the_dearest_piece() {
        let long = format!("%{}_%", "a".repeat(99));
        for (pattern, like, ilike) in [
            ("abc", 0, 1),
            ("abc%xyz", 0, 1),
            ("a%b%c", 1, 2),
            ("%abcdef%", 1, 7),
            ("%abcdef%gh%", 1, 7),
            ("a_%", 1, 1),
            ("%a_%", 3, 3),
            (&*long, 1 + 8 + 2, 1 + 8 + 2),
        ] {
            let steps = |insensitive| Pattern::compile(pattern, insensitive).unwrap().steps();
            assert_eq!((steps(false), steps(true)), (like, ilike), "{pattern}");
        }
    }
}
