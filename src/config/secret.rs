//! Values that must not reach a log line.

use std::fmt;

/// A connection string. `Debug` and `Display` leave the password out; [`Dsn::expose`] does not.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Dsn(String);

impl Dsn {
    /// Wraps a connection string, URL or `key=value` words.
    pub fn new(text: impl Into<String>) -> Self {
        Dsn(text.into())
    }

    /// The whole text, password included: for connecting only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({:?})", redact(&self.0))
    }
}

/// The string without its passwords. What is not understood is left out altogether.
fn redact(dsn: &str) -> String {
    if let Some((scheme, rest)) = dsn.split_once("://") {
        let (address, query) = rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
        let address = match address.rsplit_once('@') {
            Some((user, host)) => {
                let (name, password) = user.split_once(':').map_or((user, None), |(name, rest)| (name, Some(rest)));
                format!("{name}{}@{host}", if password.is_some() { ":***" } else { "" })
            }
            None => address.to_owned(),
        };
        let query: Vec<String> = query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .map(|pair| match pair.split_once('=') {
                Some((key, _)) if is_secret(key) => format!("{key}=***"),
                _ => pair.to_owned(),
            })
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        return format!("{scheme}://{address}{mark}{}", query.join("&"));
    }
    if dsn.contains(['\'', '\\']) {
        return "***".to_owned();
    }
    let words: Option<Vec<String>> = dsn
        .split_whitespace()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Some(if is_secret(key) { format!("{key}=***") } else { word.to_owned() })
            }
            _ => None,
        })
        .collect();
    words.map_or_else(|| "***".to_owned(), |words| words.join(" "))
}

fn is_secret(key: &str) -> bool {
    key.to_ascii_lowercase().contains("pass")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        for (dsn, shown) in [
            ("postgres://app:hunter2@db:5432/shop", "postgres://app:***@db:5432/shop"),
            ("postgres://app:p@ss:w@db/shop?sslmode=require", "postgres://app:***@db/shop?sslmode=require"),
            ("postgres://app@db/shop?password=hunter2&x=1", "postgres://app@db/shop?password=***&x=1"),
            ("postgres://db/shop", "postgres://db/shop"),
            ("host=db password=hunter2 user=app", "host=db password=*** user=app"),
            ("host=db password='hunter 2'", "***"),
            ("host=db password = hunter2", "***"),
            ("host=db PASSWORD=hunter2", "host=db PASSWORD=***"),
            ("nonsense", "***"),
        ] {
            let dsn = Dsn::new(dsn);
            assert_eq!(dsn.to_string(), shown);
            assert!(!format!("{dsn:?}").contains("hunter"), "{dsn:?}");
        }
    }
}
