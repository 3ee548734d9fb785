//! From [`Filter`] to [`Selection`], with the path of every field that cannot be applied.

use super::{
    Error, Filter, Operations, RowRule, Selection, canonical,
    pattern::{Pattern, Patterns},
    plan::Where,
    predicate::Predicate,
};

impl Selection {
    /// Compiles a filter (`None`: everything, messages included) for a principal that may read the tables which `rights`
    /// match (`None`: all).
    pub fn compile(filter: Option<&Filter>, rights: Option<&[String]>) -> Result<Self, Error> {
        let empty = Filter::default();
        let given = filter.unwrap_or(&empty);
        let mut violations = Violations::default();
        let tables = violations.patterns("filter.tables", &given.tables, 2);
        let exclude_tables = violations.patterns("filter.exclude_tables", &given.exclude_tables, 2);
        let rows = violations.rows("filter", &given.columns, &given.predicate, &given.operations);
        let message_prefixes = violations.patterns("filter.message_prefixes", &given.message_prefixes, 1);
        let mut rules = Vec::new();
        for (index, rule) in given.rules.iter().enumerate() {
            let path = format!("filter.rules[{index}]");
            let tables = violations.pattern(format!("{path}.tables"), &rule.tables, 2);
            let rows = violations.rows(&path, &rule.columns, &rule.predicate, &rule.operations);
            rules.extend(tables.map(|tables| (tables, rows)));
        }
        violations.finish()?;

        let text = canonical::filter(filter, &rows, &rules);
        Ok(Selection {
            tables,
            exclude_tables,
            rows,
            rules,
            message_prefixes: filter.is_some().then_some(message_prefixes),
            origins: given.origins.clone(),
            rights: rights.map(compile_rights).transpose()?,
            everything: filter.is_none() && rights.is_none(),
            filter_hash: canonical::hash(&text),
            canonical: text + &canonical::rights(rights),
        })
    }
}

fn compile_rights(rights: &[String]) -> Result<Patterns, Error> {
    let compile = |text: &String| Pattern::new(text, 2).map_err(Error::Rights);
    Ok(Patterns(rights.iter().map(compile).collect::<Result<_, _>>()?))
}

/// Globs of a filter, and bytes of all of them together, inclusive: each takes 7 KB, and 100 bytes for each character, for as
/// long as somebody selects by it. Names without glob characters are not counted.
const MAX_GLOBS: usize = 256;
const MAX_GLOB_BYTES: usize = 16 * 1024;
/// Fields of which it is told what is wrong with them; more are only counted.
const FIELDS_NAMED: usize = 20;

#[derive(Default)]
struct Violations {
    found: Vec<(String, String)>,
    globs: usize,
    glob_bytes: usize,
}

impl Violations {
    fn pattern(&mut self, path: String, text: &str, parts: usize) -> Option<Pattern> {
        let fits = |it: &Self| it.globs <= MAX_GLOBS && it.glob_bytes <= MAX_GLOB_BYTES;
        let fitted = fits(self);
        if Pattern::is_glob(text) {
            self.globs += 1;
            self.glob_bytes += text.len();
        }
        if fits(self) {
            return Pattern::new(text, parts).map_err(|detail| self.found.push((path, detail))).ok();
        }
        if fitted {
            let detail = format!("a filter has at most {MAX_GLOBS} globs with {MAX_GLOB_BYTES} bytes together");
            self.found.push((path, detail + "; names without wildcards are not counted"));
        }
        None
    }

    fn patterns(&mut self, path: &str, texts: &[String], parts: usize) -> Patterns {
        let compile = |(index, text): (usize, &String)| self.pattern(format!("{path}[{index}]"), text, parts);
        Patterns(texts.iter().enumerate().filter_map(compile).collect())
    }

    fn rows(
        &mut self,
        path: &str,
        columns: &[String],
        predicate: &str,
        operations: &[crate::model::Operation],
    ) -> RowRule {
        let predicate = self.predicate(format!("{path}.where"), predicate);
        let columns = self.patterns(&format!("{path}.columns"), columns, 3);
        RowRule { operations: Operations::of(operations), columns, predicate }
    }

    fn predicate(&mut self, path: String, text: &str) -> Option<Where> {
        if text.is_empty() {
            return None;
        }
        match Predicate::parse(text) {
            Ok(predicate) => {
                let canonical = predicate.canonical().into();
                Some(Where { path: path.into(), predicate, canonical })
            }
            Err(error) => {
                self.found.push((path, error.to_string()));
                None
            }
        }
    }

    fn finish(mut self) -> Result<(), Error> {
        let more = self.found.len().saturating_sub(FIELDS_NAMED);
        self.found.truncate(FIELDS_NAMED);
        if let Some((_, detail)) = self.found.last_mut().filter(|_| more > 0) {
            detail.push_str(&format!("; {more} more fields are wrong"));
        }
        if self.found.is_empty() { Ok(()) } else { Err(Error::Invalid(self.found)) }
    }
}
