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

#[derive(Default)]
struct Violations(Vec<(String, String)>);

impl Violations {
    fn pattern(&mut self, path: String, text: &str, parts: usize) -> Option<Pattern> {
        Pattern::new(text, parts).map_err(|detail| self.0.push((path, detail))).ok()
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
                self.0.push((path, error.to_string()));
                None
            }
        }
    }

    fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Invalid(self.0)) }
    }
}
