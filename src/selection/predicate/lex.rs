//! Tokens, each with the character it begins at. Identifiers fold as PostgreSQL folds them in UTF-8 databases: ASCII
//! letters only ([identifiers](https://www.postgresql.org/docs/current/sql-syntax-lexical.html)).

use super::ParseError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Unquoted, in lower case: a column or a keyword.
    Word(String),
    /// Quoted: never a keyword.
    Quoted(String),
    Number(String),
    Text(String),
    /// One of [`SYMBOLS`].
    Symbol(&'static str),
    End,
}

/// Longer ones first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 14] = ["::", "<>", "!=", "<=", ">=", "<", ">", "=", "(", ")", ",", ".", "-", "+"];

/// The tokens with the offset of their first character; the last one is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, usize)>, ParseError> {
    let mut lexer = Lexer { rest: text, offset: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.take_while(char::is_whitespace);
        let offset = lexer.offset;
        let token = lexer.token()?;
        let end = token == Token::End;
        tokens.push((token, offset));
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    offset: usize,
}

impl<'a> Lexer<'a> {
    fn token(&mut self) -> Result<Token, ParseError> {
        let Some(first) = self.rest.chars().next() else { return Ok(Token::End) };
        let after_dot = self.rest.chars().nth(1);
        match first {
            '\'' => self.quoted('\'', "text literal").map(Token::Text),
            '"' => match self.quoted('"', "quoted identifier")? {
                name if name.is_empty() => Err(ParseError::new("an identifier cannot be empty", self.offset - 2)),
                name => Ok(Token::Quoted(name)),
            },
            c if c.is_ascii_digit() => self.number(),
            '.' if after_dot.is_some_and(|c| c.is_ascii_digit()) => self.number(),
            c if c.is_alphabetic() || c == '_' => {
                let word = self.take_while(|c| c.is_alphanumeric() || c == '_' || c == '$');
                Ok(Token::Word(word.to_ascii_lowercase()))
            }
            c => match SYMBOLS.iter().find(|symbol| self.rest.starts_with(**symbol)) {
                Some(symbol) => {
                    self.advance(symbol.len());
                    Ok(Token::Symbol(if *symbol == "!=" { "<>" } else { symbol }))
                }
                None => Err(ParseError::new(format!("unexpected character {c:?}"), self.offset)),
            },
        }
    }

    /// `bytes` must end at a character's end.
    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.offset += taken.chars().count();
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len());
        self.advance(end)
    }

    /// Text between two `quote`s, where a doubled one stands for itself.
    fn quoted(&mut self, quote: char, what: &str) -> Result<String, ParseError> {
        let begin = self.offset;
        self.advance(1);
        let mut text = String::new();
        loop {
            text.push_str(self.take_while(|c| c != quote));
            if self.rest.is_empty() {
                return Err(ParseError::new(format!("this {what} has no end"), begin));
            }
            self.advance(1);
            if !self.rest.starts_with(quote) {
                return Ok(text);
            }
            text.push(quote);
            self.advance(1);
        }
    }

    fn number(&mut self) -> Result<Token, ParseError> {
        let begin = self.offset;
        let digit = |c: char| c.is_ascii_digit();
        let mut number = self.take_while(digit).to_owned();
        if self.rest.starts_with('.') {
            number.push_str(self.advance(1));
            number.push_str(self.take_while(digit));
        }
        if self.rest.starts_with(['e', 'E']) {
            number.push('e');
            self.advance(1);
            if self.rest.starts_with(['+', '-']) {
                number.push_str(self.advance(1).trim_start_matches('+'));
            }
            let exponent = self.take_while(digit);
            if exponent.is_empty() {
                return Err(ParseError::new("the exponent of this number has no digits", begin));
            }
            number.push_str(exponent);
        }
        match self.rest.chars().next() {
            Some(c) if c.is_alphanumeric() || c == '_' => {
                Err(ParseError::new(format!("unexpected {c:?} in a number"), self.offset))
            }
            _ => Ok(Token::Number(number)),
        }
    }
}
