//! Globs over dotted names. `*` crosses dots: `public.*` is every table of a schema, `*.orders` a table of any schema,
//! `*.id` a column of any table, `*` everything. Names may hold dots themselves, so a dot is not a separator that a
//! pattern could respect anyway. `?`, `[ab]`, `{a,b}` and `\` to escape are as in
//! [globset](https://docs.rs/globset/0.4/globset/#syntax).

use globset::{GlobBuilder, GlobMatcher};

/// One pattern: a name without glob characters, or a glob.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    Exact(String),
    Glob(GlobMatcher),
}

impl Pattern {
    /// Whether it is more than a name.
    pub fn is_glob(text: &str) -> bool {
        text.contains(['*', '?', '[', ']', '{', '}', '\\'])
    }

    /// A pattern for names of at least `parts` dotted parts.
    pub fn new(text: &str, parts: usize) -> Result<Self, String> {
        if !Pattern::is_glob(text) {
            if parts > 1 && (text.split('.').count() < parts || text.split('.').any(str::is_empty)) {
                let form = if parts == 2 { "schema.table" } else { "schema.table.column" };
                return Err(format!("{text:?} has neither the form {form} nor a glob character"));
            }
            return Ok(Pattern::Exact(text.to_owned()));
        }
        GlobBuilder::new(text)
            .backslash_escape(true)
            .build()
            .map(|glob| Pattern::Glob(glob.compile_matcher()))
            .map_err(|error| error.to_string())
    }

    pub fn matches(&self, name: &str) -> bool {
        match self {
            Pattern::Exact(exact) => exact == name,
            Pattern::Glob(glob) => glob.is_match(name),
        }
    }
}

/// Alternatives.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns(pub Vec<Pattern>);

impl Patterns {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_crosses_dots() {
        for (pattern, name, expected) in [
            ("public.*", "public.orders", true),
            ("public.*", "public.odd.name", true),
            ("public.*", "publicity.orders", false),
            ("*.orders", "shop.orders", true),
            ("*.orders", "shop.reorders", false),
            ("*", "shop.orders", true),
            ("shop.orders", "shop.orders", true),
            ("shop.orders", "shop.Orders", false),
            ("shop.{orders,items}", "shop.items", true),
            (r"shop.a\[1\]", "shop.a[1]", true),
            ("shop.a?", "shop.a/", true),
            ("*.x", "a.", false),
        ] {
            assert_eq!(Pattern::new(pattern, 2).map(|p| p.matches(name)), Ok(expected), "{pattern} on {name}");
        }
    }

    #[test]
    fn names_that_cannot_match_are_refused() {
        for bad in ["orders", "", ".orders", "shop.", "shop.[", "shop.{a"] {
            assert!(Pattern::new(bad, 2).is_err(), "{bad:?}");
        }
        assert!(Pattern::new("shop.orders", 3).is_err());
        assert!(Pattern::new("", 1).is_ok(), "a message prefix may be empty");
    }
}
