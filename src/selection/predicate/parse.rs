//! The grammar. Precedence is PostgreSQL's: OR, AND, NOT, IS, comparison, and above it BETWEEN, IN and LIKE, which take
//! operands here, not conditions
//! ([operator precedence](https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-PRECEDENCE)).
//!
//! What is open, parentheses and NOTs, waits in a list and not on the stack: the text is a stranger's. How deep conditions
//! nest is limited for the sake of those who walk them.

use super::{
    MAX_DEPTH, MAX_LENGTH, ParseError,
    ast::{ColumnRef, Expr, KEYWORDS, Literal, Op, Operand, Side, Spelling},
    lex::{Token, tokens},
};

/// The whole text as one condition.
pub(super) fn parse(text: &str) -> Result<Expr, ParseError> {
    if text.len() > MAX_LENGTH {
        let message = format!("the predicate has {} bytes, more than the {MAX_LENGTH} allowed", text.len());
        return Err(ParseError::new(message, 0));
    }
    Parser { tokens: tokens(text)?, next: 0 }.whole()
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    next: usize,
}

/// What has been read of a condition.
struct Part {
    expr: Expr,
    /// Where it begins.
    begin: usize,
    /// Parentheses, NOT and IS in it that are inside one another.
    depth: usize,
}

/// What is between two parentheses, or the whole text, as far as it has been read.
#[derive(Default)]
struct Group {
    begin: usize,
    disjuncts: Vec<Expr>,
    /// Of the disjunct that is being read.
    conjuncts: Vec<Expr>,
    /// NOTs in front of the conjunct that is being read.
    negations: usize,
    /// The greatest [`Part::depth`].
    depth: usize,
}

impl Group {
    fn add_conjunct(&mut self, part: Part) -> Result<(), ParseError> {
        self.depth = self.depth.max(part.depth);
        match condition(part.expr)? {
            Expr::And(inner) => self.conjuncts.extend(inner),
            expr => self.conjuncts.push(expr),
        }
        Ok(())
    }

    fn add_disjunct(&mut self, part: Part) -> Result<(), ParseError> {
        match condition(self.conjunction(part)?)? {
            Expr::Or(inner) => self.disjuncts.extend(inner),
            expr => self.disjuncts.push(expr),
        }
        Ok(())
    }

    /// The disjunct of which `last` is the last conjunct.
    fn conjunction(&mut self, last: Part) -> Result<Expr, ParseError> {
        if self.conjuncts.is_empty() {
            self.depth = self.depth.max(last.depth);
            return Ok(last.expr);
        }
        self.add_conjunct(last)?;
        Ok(Expr::And(std::mem::take(&mut self.conjuncts)))
    }

    /// All of it.
    fn close(mut self, last: Part) -> Result<Part, ParseError> {
        let expr = if self.disjuncts.is_empty() {
            self.conjunction(last)?
        } else {
            self.add_disjunct(last)?;
            Expr::Or(self.disjuncts)
        };
        Ok(Part { expr, begin: self.begin, depth: self.depth })
    }
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].0
    }

    fn offset(&self) -> usize {
        self.tokens[self.next].1
    }

    /// The next token and its offset; the end is never passed.
    fn take(&mut self) -> (Token, usize) {
        let taken = self.tokens[self.next].clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        taken
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(s) if *s == symbol);
        self.next += usize::from(found);
        found
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(w) if w == word);
        self.next += usize::from(found);
        found
    }

    fn expect_symbol(&mut self, symbol: &str) -> Result<(), ParseError> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.unexpected(symbol)) }
    }

    fn expect_word(&mut self, word: &str) -> Result<(), ParseError> {
        if self.word(word) { Ok(()) } else { Err(self.unexpected(&word.to_uppercase())) }
    }

    fn unexpected(&self, expected: &str) -> ParseError {
        unexpected(expected, self.peek(), self.offset())
    }

    /// Whether so many may be inside one another.
    fn allow(&self, depth: usize) -> Result<(), ParseError> {
        if depth <= MAX_DEPTH {
            return Ok(());
        }
        Err(ParseError::new(format!("more than {MAX_DEPTH} conditions inside one another"), self.offset()))
    }

    fn whole(&mut self) -> Result<Expr, ParseError> {
        let mut around: Vec<Group> = Vec::new();
        let mut group = Group::default();
        let mut open = 0;
        loop {
            let begin = self.offset();
            let is_group = self.symbol("(");
            if is_group || self.word("not") {
                open += 1;
                self.allow(open)?;
                if is_group {
                    around.push(std::mem::replace(&mut group, Group { begin, ..Group::default() }));
                } else {
                    group.negations += 1;
                }
                continue;
            }
            let mut part = Part { expr: self.atom()?, begin, depth: 0 };
            loop {
                part = self.suffixes(part)?;
                for _ in 0..std::mem::take(&mut group.negations) {
                    part = Part { expr: Expr::Not(Box::new(condition(part.expr)?)), depth: part.depth + 1, ..part };
                    open -= 1;
                }
                self.allow(part.depth)?;
                if self.word("and") {
                    group.add_conjunct(part)?;
                    break;
                }
                if self.word("or") {
                    group.add_disjunct(part)?;
                    break;
                }
                part = std::mem::take(&mut group).close(part)?;
                let Some(outer) = around.pop() else {
                    return match self.peek() {
                        Token::End => condition(part.expr),
                        _ => Err(self.unexpected("AND, OR or the end")),
                    };
                };
                self.expect_symbol(")")?;
                part.depth += 1;
                open -= 1;
                group = outer;
            }
        }
    }

    /// A comparison that begins with `part`, and what IS says of it.
    fn suffixes(&mut self, part: Part) -> Result<Part, ParseError> {
        let Part { expr, begin, mut depth } = part;
        let mut expr = self.comparison(expr, begin)?;
        loop {
            let offset = self.offset();
            if !self.word("is") {
                return Ok(Part { expr, begin, depth });
            }
            depth += 1;
            self.allow(depth)?;
            let negated = self.word("not");
            let (token, at) = self.take();
            expr = match token {
                Token::Word(word) if word == "null" => match expr {
                    Expr::Operand(operand) => Expr::IsNull(operand),
                    condition => Expr::IsTruth(Box::new(condition), None),
                },
                Token::Word(word) if matches!(word.as_str(), "true" | "false" | "unknown") => {
                    let truth = (word != "unknown").then_some(word == "true");
                    Expr::IsTruth(Box::new(condition(expr)?), truth)
                }
                Token::Word(word) if word == "distinct" => {
                    self.expect_word("from")?;
                    let left = operand(expr, begin)?;
                    let right = self.operand()?;
                    let op = if negated { Op::EQUAL } else { Op::NOT_EQUAL };
                    expr = compare(left, op, true, right, offset)?;
                    continue;
                }
                _ => {
                    let message = "expected NULL, TRUE, FALSE, UNKNOWN or DISTINCT FROM after IS";
                    return Err(ParseError::new(message, at));
                }
            };
            if negated {
                expr = Expr::Not(Box::new(expr));
            }
        }
    }

    fn comparison(&mut self, first: Expr, begin: usize) -> Result<Expr, ParseError> {
        let offset = self.offset();
        let op = match self.peek() {
            Token::Symbol("=") => Op::EQUAL,
            Token::Symbol("<>") => Op::NOT_EQUAL,
            Token::Symbol("<") => Op::LESS,
            Token::Symbol("<=") => Op::LESS_EQUAL,
            Token::Symbol(">") => Op::GREATER,
            Token::Symbol(">=") => Op::GREATER_EQUAL,
            _ => return self.postfix(first, begin),
        };
        self.take();
        let left = operand(first, begin)?;
        let right = self.operand()?;
        compare(left, op, false, right, offset)
    }

    /// `[NOT] IN`, `[NOT] LIKE`, `[NOT] ILIKE`, `[NOT] BETWEEN`, or nothing.
    fn postfix(&mut self, first: Expr, begin: usize) -> Result<Expr, ParseError> {
        let offset = self.offset();
        let negated = self.word("not");
        let expr = if self.word("in") {
            let left = operand(first, begin)?;
            Expr::In { left, items: self.items()? }
        } else if self.word("between") {
            let left = operand(first, begin)?;
            let low = self.operand()?;
            self.expect_word("and")?;
            let high = self.operand()?;
            Expr::And(vec![
                compare(left.clone(), Op::GREATER_EQUAL, false, low, offset)?,
                compare(left, Op::LESS_EQUAL, false, high, offset)?,
            ])
        } else if matches!(self.peek(), Token::Word(word) if word == "like" || word == "ilike") {
            let insensitive = self.word("ilike") || !self.word("like");
            let left = operand(first, begin)?;
            let pattern = self.literal()?;
            Expr::Like { left, pattern, insensitive, offset }
        } else if negated {
            return Err(self.unexpected("IN, LIKE, ILIKE or BETWEEN after NOT"));
        } else {
            return Ok(first);
        };
        Ok(if negated { Expr::Not(Box::new(expr)) } else { expr })
    }

    fn items(&mut self) -> Result<Vec<Literal>, ParseError> {
        self.expect_symbol("(")?;
        let mut items = vec![self.literal()?];
        while self.symbol(",") {
            items.push(self.literal()?);
        }
        self.expect_symbol(")")?;
        Ok(items)
    }

    /// A column or a literal, perhaps in parentheses.
    fn operand(&mut self) -> Result<Operand, ParseError> {
        let mut parentheses = 0;
        while self.symbol("(") {
            parentheses += 1;
        }
        let offset = self.offset();
        let operand = operand(self.atom()?, offset)?;
        for _ in 0..parentheses {
            self.expect_symbol(")")?;
        }
        Ok(operand)
    }

    fn literal(&mut self) -> Result<Literal, ParseError> {
        let offset = self.offset();
        match self.operand()? {
            Operand::Literal(literal) => Ok(literal),
            Operand::Column(_) => Err(ParseError::new("expected a literal, but found a column", offset)),
        }
    }

    /// A column, a literal or changed().
    fn atom(&mut self) -> Result<Expr, ParseError> {
        let (token, offset) = self.take();
        match token {
            Token::Symbol(sign @ ("-" | "+")) => match self.take() {
                (Token::Number(digits), _) => {
                    self.cast(Spelling::Number(if sign == "-" { format!("-{digits}") } else { digits }), offset)
                }
                (_, at) => Err(ParseError::new(format!("expected a number after {sign:?}"), at)),
            },
            Token::Number(digits) => self.cast(Spelling::Number(digits), offset),
            Token::Text(text) => self.cast(Spelling::Text(text), offset),
            Token::Quoted(name) => self.column(Side::Row, name, offset),
            Token::Word(word) => self.after_word(word, offset),
            token => Err(unexpected("a column, a literal, NOT or (", &token, offset)),
        }
    }

    fn after_word(&mut self, word: String, offset: usize) -> Result<Expr, ParseError> {
        let dot = matches!(self.peek(), Token::Symbol("."));
        match word.as_str() {
            "before" | "after" if dot => {
                self.take();
                let side = if word == "before" { Side::Before } else { Side::After };
                match self.take() {
                    (Token::Quoted(name), _) => self.column(side, name, offset),
                    (Token::Word(name), _) => self.column(side, name, offset),
                    (_, at) => Err(ParseError::new(format!("expected a column after \"{word}.\""), at)),
                }
            }
            "changed" if matches!(self.peek(), Token::Symbol("(")) => {
                self.take();
                let at = self.offset();
                let (token, _) = self.take();
                match token {
                    Token::Quoted(name) | Token::Word(name) if self.symbol(")") => {
                        Ok(Expr::Changed(ColumnRef { side: Side::Row, name, offset: at }))
                    }
                    _ => Err(ParseError::new("changed() takes the name of one column", at)),
                }
            }
            "true" => self.cast(Spelling::Bool(true), offset),
            "false" => self.cast(Spelling::Bool(false), offset),
            "null" => self.cast(Spelling::Null, offset),
            "before" | "after" | "changed" => self.column(Side::Row, word, offset),
            keyword if KEYWORDS.contains(&keyword) => {
                let message = format!("expected a column or a literal, but found {}", keyword.to_uppercase());
                Err(ParseError::new(message, offset))
            }
            _ => match self.peek() {
                Token::Text(text) => {
                    let spelling = Spelling::Text(text.clone());
                    self.take();
                    Ok(Expr::Operand(Operand::Literal(Literal { spelling, cast: Some(word), offset })))
                }
                Token::Symbol("(") => Err(ParseError::new(
                    format!("there is no function {word}(); the only one is changed(column)"),
                    offset,
                )),
                _ => self.column(Side::Row, word, offset),
            },
        }
    }

    fn column(&mut self, side: Side, name: String, offset: usize) -> Result<Expr, ParseError> {
        if matches!(self.peek(), Token::Symbol(".")) {
            let message = "columns are not qualified by a table: write column, before.column or after.column";
            return Err(ParseError::new(message, self.offset()));
        }
        if matches!(self.peek(), Token::Symbol("::")) {
            return Err(ParseError::new(
                "only literals can be cast; a column is compared by its own type",
                self.offset(),
            ));
        }
        Ok(Expr::Operand(Operand::Column(ColumnRef { side, name, offset })))
    }

    /// `::type` behind a literal.
    fn cast(&mut self, spelling: Spelling, offset: usize) -> Result<Expr, ParseError> {
        let mut cast = None;
        while self.symbol("::") {
            let at = self.offset();
            if cast.is_some() {
                return Err(ParseError::new("a literal can be cast once only", at));
            }
            let mut name = self.type_part()?;
            if self.symbol(".") {
                name.push('.');
                name.push_str(&self.type_part()?);
            }
            cast = Some(name);
        }
        Ok(Expr::Operand(Operand::Literal(Literal { spelling, cast, offset })))
    }

    fn type_part(&mut self) -> Result<String, ParseError> {
        match self.take() {
            (Token::Word(name) | Token::Quoted(name), _) => Ok(name),
            (_, at) => Err(ParseError::new("expected the name of a type after ::", at)),
        }
    }
}

fn unexpected(expected: &str, found: &Token, offset: usize) -> ParseError {
    let found = match found {
        Token::End => "the predicate ends".to_owned(),
        Token::Word(word) | Token::Quoted(word) => format!("found {word:?}"),
        Token::Number(digits) => format!("found {digits}"),
        Token::Text(_) => "found a text literal".to_owned(),
        Token::Symbol(symbol) => format!("found {symbol:?}"),
    };
    ParseError::new(format!("expected {expected}, but {found}"), offset)
}

/// A literal stands on the right from here on.
fn compare(left: Operand, op: Op, distinct: bool, right: Operand, offset: usize) -> Result<Expr, ParseError> {
    match (&left, &right) {
        (Operand::Literal(_), Operand::Literal(_)) => {
            Err(ParseError::new("a comparison needs a column on at least one side", left.offset()))
        }
        (Operand::Literal(_), _) => Ok(Expr::Compare { left: right, op: op.flipped(), distinct, right: left, offset }),
        _ => Ok(Expr::Compare { left, op, distinct, right, offset }),
    }
}

fn operand(expr: Expr, offset: usize) -> Result<Operand, ParseError> {
    match expr {
        Expr::Operand(operand) => Ok(operand),
        _ => Err(ParseError::new("expected a column or a literal, but found a condition", offset)),
    }
}

/// What may stand where a condition is needed: a column may (if it is boolean), of literals TRUE, FALSE and NULL.
fn condition(expr: Expr) -> Result<Expr, ParseError> {
    match &expr {
        Expr::Operand(Operand::Literal(literal))
            if literal.cast.is_some() || !matches!(literal.spelling, Spelling::Bool(_) | Spelling::Null) =>
        {
            Err(ParseError::new("expected a condition, but found a literal", literal.offset))
        }
        _ => Ok(expr),
    }
}
