//! The two written forms of a connection string:
//! [keyword/value and URI](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING).
//!
//! A piece of a badly quoted password can end up anywhere in the parse (as a keyword, a port, a host), so the errors
//! here name places and known keywords, never the text found there.

use super::Error;

/// Every keyword of libpq 18, in the order of its documentation.
const KEYWORDS: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "require_auth",
    "channel_binding",
    "connect_timeout",
    "client_encoding",
    "options",
    "application_name",
    "fallback_application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "replication",
    "gssencmode",
    "sslmode",
    "requiressl",
    "sslnegotiation",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslkeylogfile",
    "sslpassword",
    "sslcertmode",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "requirepeer",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "min_protocol_version",
    "max_protocol_version",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "target_session_attrs",
    "load_balance_hosts",
    "oauth_issuer",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_scope",
];

/// Keyword and value pairs in the order written; a keyword may come twice, and then the last one counts.
pub(super) type Pairs = Vec<(&'static str, String)>;

/// Parses either form; the empty string is an empty list.
pub(super) fn parse(dsn: &str) -> Result<Pairs, Error> {
    match ["postgresql://", "postgres://"].iter().find_map(|scheme| dsn.strip_prefix(scheme)) {
        Some(rest) => uri(rest),
        None if dsn.contains("://") => Err(Error::Syntax("the URI scheme must be postgresql or postgres".into())),
        None => key_value(dsn),
    }
}

/// The static spelling of a known keyword.
pub(super) fn keyword(word: &str) -> Option<&'static str> {
    KEYWORDS.iter().find(|known| **known == word).copied()
}

fn unknown_keyword(place: String) -> Error {
    Error::Syntax(format!("unknown option {place}; libpq's names are expected (host, port, dbname, user, sslmode ...)"))
}

fn key_value(dsn: &str) -> Result<Pairs, Error> {
    let mut pairs = Pairs::new();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let place = match pairs.last() {
            Some((previous, _)) => format!("after \"{previous}\""),
            None => "at the start".to_owned(),
        };
        let (word, value) = rest.split_once('=').ok_or_else(|| {
            Error::Syntax(format!("missing \"=\" {place}; a value with spaces must stand in single quotes"))
        })?;
        let known = keyword(word.trim_end()).ok_or_else(|| unknown_keyword(place))?;
        let (value, after) = quoted_value(value.trim_start(), known)?;
        pairs.push((known, value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// The value at the start of `text` and what follows it.
fn quoted_value<'a>(text: &'a str, keyword: &str) -> Result<(String, &'a str), Error> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(Error::Syntax(format!("the quoted value of \"{keyword}\" does not end")));
    }
    Ok((value, ""))
}

fn uri(rest: &str) -> Result<Pairs, Error> {
    let mut pairs = Pairs::new();
    let before_path = rest.split('/').next().unwrap_or_default();
    let rest = match before_path.split_once('@') {
        Some((credentials, _)) => {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            push(&mut pairs, "user", user)?;
            push(&mut pairs, "password", password)?;
            &rest[credentials.len() + 1..]
        }
        None => rest,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.contains('@') {
        return Err(Error::Syntax(
            "the URI has an \"@\" too many; in user, password and database write it as %40, \"/\" as %2F".into(),
        ));
    }
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    host_list(&mut pairs, hosts)?;
    push(&mut pairs, "dbname", path)?;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (word, value) =
            part.split_once('=').ok_or_else(|| Error::Syntax("a URI parameter lacks its \"=\"".into()))?;
        match decode(word, "a parameter name")?.as_str() {
            "ssl" if value == "true" => pairs.push(("sslmode", "require".into())),
            word => {
                let known = keyword(word).ok_or_else(|| unknown_keyword("in the URI's parameters".into()))?;
                pairs.push((known, decode(value, known)?));
            }
        }
    }
    Ok(pairs)
}

fn push(pairs: &mut Pairs, keyword: &'static str, encoded: &str) -> Result<(), Error> {
    if !encoded.is_empty() {
        pairs.push((keyword, decode(encoded, keyword)?));
    }
    Ok(())
}

/// `host[:port][,host[:port]...]`, a host being a name, an address, `[IPv6]` or an encoded socket directory.
fn host_list(pairs: &mut Pairs, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Ok(());
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for part in text.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(inner) => {
                let (address, after) = inner
                    .split_once(']')
                    .ok_or_else(|| Error::Syntax("an IPv6 address in the URI lacks its \"]\"".into()))?;
                match after.strip_prefix(':') {
                    Some(port) => (address, port),
                    None if after.is_empty() => (address, ""),
                    None => return Err(Error::Syntax("only \":port\" may follow \"]\" in the URI".into())),
                }
            }
            None => part.split_once(':').unwrap_or((part, "")),
        };
        hosts.push(decode(host, "host")?);
        ports.push(decode(port, "port")?);
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        pairs.push(("host", hosts.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port", ports.join(",")));
    }
    Ok(())
}

fn decode(text: &str, place: &str) -> Result<String, Error> {
    let wrong = || Error::Syntax(format!("{place} in the URI is not valid percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else { return Err(wrong()) };
        match (high << 4 | low) as u8 {
            0 => return Err(wrong()),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(dsn: &str) -> Vec<(&'static str, String)> {
        parse(dsn).unwrap()
    }

    fn of(list: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        list.iter().map(|(k, v)| (*k, (*v).to_owned())).collect()
    }

    #[test]
    fn keyword_value_quoting_is_libpqs() {
        assert_eq!(pairs(""), vec![]);
        assert_eq!(
            pairs("host=a  port = 5433\tpassword='two words'user=b"),
            of(&[("host", "a"), ("port", "5433"), ("password", "two words"), ("user", "b")])
        );
    }

    #[test]
    fn keyword_value_escapes() {
        assert_eq!(
            pairs(r"user=a\ b password='it\'s \\ x' dbname= "),
            of(&[("user", "a b"), ("password", r"it's \ x"), ("dbname", "")])
        );
    }

    #[test]
    fn uri_parts_and_several_hosts() {
        assert_eq!(
            pairs("postgresql://al%69ce:p%40ss%2Fword@h1:5433,[::1]:5434,%2Frun%2Fpg/db?sslmode=require&ssl=true"),
            of(&[
                ("user", "alice"),
                ("password", "p@ss/word"),
                ("host", "h1,::1,/run/pg"),
                ("port", "5433,5434,"),
                ("dbname", "db"),
                ("sslmode", "require"),
                ("sslmode", "require"),
            ])
        );
        assert_eq!(pairs("postgres:///db?host=/tmp"), of(&[("dbname", "db"), ("host", "/tmp")]));
        assert_eq!(pairs("postgres://"), vec![]);
    }

    #[test]
    fn errors_never_repeat_what_was_written() {
        for bad in [
            "password=my hunter2",
            "password=my hunter2=x",
            "password='hunter2",
            "postgres://u:hunter2@x@host/db",
            "postgres://u:hunter2/x@host/db",
            "postgres://u:hunter2%zz@host/db",
            "postgres://u@host/db?hunter2=1",
            "postgres://u@host/db?hunter2",
            "mysql://u:hunter2@host/db",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{bad}: {error}");
        }
    }
}
