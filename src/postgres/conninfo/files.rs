//! The files that complete a connection string: the
//! [password file](https://www.postgresql.org/docs/current/libpq-pgpass.html), the
//! [service file](https://www.postgresql.org/docs/current/libpq-pgservice.html), and the user's entry in `/etc/passwd`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{Error, syntax};

/// The password in `file` for one server, as libpq finds it: the first line whose four fields match. A file that
/// group or others can read is not used; libpq warns and goes on, and so do we.
pub(super) fn password(file: &Path, host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
    let mode = fs::metadata(file).ok().filter(|meta| meta.is_file())?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "password file not used: group or others have access (chmod 0600)");
        return None;
    }
    let text = fs::read_to_string(file).ok()?;
    let port = port.to_string();
    text.lines().find_map(|line| match_line(line, [host, &port, dbname, user]))
}

fn match_line(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for want in wanted {
        let (field, after) = field(rest);
        if field != want && !rest.starts_with("*:") {
            return None;
        }
        rest = after?;
    }
    let password = unescape(rest);
    (!password.is_empty()).then_some(password)
}

/// One field up to an unescaped colon, and what follows the colon.
fn field(text: &str) -> (String, Option<&str>) {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            ':' if !escaped => return (unescape(&text[..at]), Some(&text[at + 1..])),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    (unescape(text), None)
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// The options of `[service]` in one service file; `None` when the file or the section is not there.
pub(super) fn service(file: &Path, service: &str) -> Result<Option<syntax::Pairs>, Error> {
    let Ok(text) = fs::read_to_string(file) else { return Ok(None) };
    let wrong = |number: usize| Error::ServiceFile { file: file.to_owned(), line: number + 1 };
    let mut found = None::<syntax::Pairs>;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if section.strip_suffix(']') == Some(service) {
                found = Some(Vec::new());
            }
        } else if let Some(pairs) = &mut found {
            let (word, value) = line.split_once('=').ok_or_else(|| wrong(number))?;
            let word = syntax::keyword(word).filter(|word| *word != "service").ok_or_else(|| wrong(number))?;
            pairs.push((word, value.to_owned()));
        }
    }
    Ok(found)
}

/// Name and home directory of the effective user, from `/etc/passwd`.
pub(super) fn passwd_entry() -> Option<(String, String)> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, entry_uid) = (fields.next()?, fields.nth(1)?);
        (entry_uid == uid).then(|| Some((name.to_owned(), fields.nth(2)?.to_owned())))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
        text.lines().find_map(|line| match_line(line, wanted))
    }

    #[test]
    fn password_lines_match_as_in_libpq() {
        let file = "# host:1:db:u:comment\nh\\:1:5432:db:u:esc\\:aped\\\\\n*:5433:*:u:wild\nlocalhost:*:db:u:here\n";
        assert_eq!(find(file, ["h:1", "5432", "db", "u"]).as_deref(), Some(r"esc:aped\"));
        assert_eq!(find(file, ["any", "5433", "other", "u"]).as_deref(), Some("wild"));
        assert_eq!(find(file, ["localhost", "9", "db", "u"]).as_deref(), Some("here"));
        assert_eq!(find(file, ["localhost", "9", "db", "v"]), None);
        assert_eq!(find("h:5432:db:u:\n", ["h", "5432", "db", "u"]), None);
        assert_eq!(find("h:5432:db\n", ["h", "5432", "db", "u"]), None);
    }

    #[test]
    fn a_readable_password_file_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pgpass");
        fs::write(&file, "*:*:*:*:secret\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(password(&file, "h", 1, "d", "u").as_deref(), Some("secret"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(password(&file, "h", 1, "d", "u"), None);
    }

    #[test]
    fn a_service_is_one_section() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pg_service.conf");
        fs::write(&file, "# c\n[a]\nhost=x\n\n[b]\nhost=y z\nport=1\n[c]\nnonsense\n").unwrap();
        assert_eq!(service(&file, "b").unwrap(), Some(vec![("host", "y z".to_owned()), ("port", "1".to_owned())]));
        assert_eq!(service(&file, "d").unwrap(), None);
        assert!(service(&file, "c").unwrap_err().to_string().contains("line 9"));
        assert_eq!(service(&dir.path().join("none"), "a").unwrap(), None);
    }
}
