//! Bearer tokens from a file, which is read again when it changes.
//!
//! One entry per line, fields separated by white space, `#` starts a comment:
//!
//! ```text
//! # TOKEN                            PRINCIPAL   tables it may read              rights
//! 6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d55   billing     public.invoices,public.pay*
//! 0b9d7a52c3e84b6f8d1f2a3b4c5d6e7f   reporting   *
//! c2a7e4d90f1b4c7e8a6d5b3f2e1c0d9a   operator    *                               admin
//! ```
//!
//! * TOKEN: 16 to 512 visible ASCII characters other than `#`; what a client sends as `authorization: Bearer TOKEN`.
//! * PRINCIPAL: `[a-zA-Z0-9._@-]{1,128}`. Several tokens may name one principal, so that a token can be replaced
//!   without an interruption. Subscriber names are private to their principal.
//! * tables: globs over `schema.table`, separated by commas, or `*` for every table. Required.
//! * `admin`: may also call `AdminService`.
//!
//! A token that is taken out of the file, or whose principal may read less than before, ends its open streams. A file
//! that cannot be read or does not parse is an error at the start and later leaves the tokens as they were.
//! Memory holds SHA-256 digests only, and every comparison goes over all of them in constant time.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use globset::Glob;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::watch;

use crate::{hub::Principal, reason::Reason};

/// Why the token file cannot be used. Never holds a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("token file {} cannot be read: {source}", path.display())]
    Read {
        /// Its name.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line is not an entry.
    #[error("token file {}, line {line}: {problem}", path.display())]
    Line {
        /// Its name.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Who calls, and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// As the hub knows it.
    pub principal: Principal,
    /// May call AdminService.
    pub admin: bool,
}

impl Caller {
    /// The caller of a hub without tokens: no name, every table, every call.
    pub fn unnamed() -> Self {
        Caller { principal: Principal::default(), admin: true }
    }
}

/// The tokens of one file.
pub struct Tokens {
    path: PathBuf,
    entries: ArcSwap<Vec<Entry>>,
    read: Mutex<[u8; 32]>,
    /// Told after the entries have changed.
    changed: watch::Sender<()>,
}

/// What one call was let in with. Streams hold it, and end when it is withdrawn.
#[derive(Clone)]
pub struct Grant {
    tokens: Arc<Tokens>,
    digest: [u8; 32],
    caller: Caller,
}

impl Grant {
    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Waits until the file no longer gives what it gave; why.
    pub async fn withdrawn(self) -> (Reason, &'static str) {
        let mut changed = self.tokens.changed.subscribe();
        loop {
            match self.tokens.find(&self.digest) {
                None => return (Reason::Unauthenticated, "the bearer token is not known to this hub any more"),
                Some(now) if now.principal.name != self.caller.principal.name => {
                    return (Reason::Unauthenticated, "the bearer token names another principal now");
                }
                Some(now) if !covers(now.principal.tables.as_deref(), self.caller.principal.tables.as_deref()) => {
                    return (
                        Reason::PermissionDenied,
                        "the principal may not read all that it could when the stream opened",
                    );
                }
                Some(_) => {}
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Whether the rights hold every one of the earlier rights, as they are written. `None`: every table.
fn covers(now: Option<&Vec<String>>, before: Option<&Vec<String>>) -> bool {
    match (now, before) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(now), Some(before)) => before.iter().all(|glob| now.contains(glob)),
    }
}

struct Entry {
    digest: [u8; 32],
    caller: Caller,
}

impl Tokens {
    /// Reads the file.
    pub fn load(path: PathBuf) -> Result<Self, Error> {
        let text = read(&path)?;
        warn_if_others_can_read(&path);
        let entries = parse(&path, &text)?;
        if entries.is_empty() {
            tracing::warn!(file = %path.display(), "the token file names nobody: every call will be refused");
        }
        let changed = watch::channel(()).0;
        Ok(Tokens { entries: ArcSwap::from_pointee(entries), read: Mutex::new(digest(text.as_bytes())), changed, path })
    }

    /// Who sends this token. Takes the same time whichever entry matches, and when none does.
    pub fn grant(self: &Arc<Self>, token: &str) -> Option<Grant> {
        let digest = digest(token.as_bytes());
        let caller = self.find(&digest)?;
        Some(Grant { tokens: Arc::clone(self), digest, caller })
    }

    fn find(&self, presented: &[u8; 32]) -> Option<Caller> {
        let entries = self.entries.load();
        let mut found = u64::MAX;
        for (index, entry) in entries.iter().enumerate() {
            let same: Choice = entry.digest.as_slice().ct_eq(presented.as_slice());
            found.conditional_assign(&(index as u64), same);
        }
        entries.get(usize::try_from(found).ok()?).map(|entry| entry.caller.clone())
    }

    /// Reads the file again; whether it was another one. On an error the tokens stay as they were.
    pub fn reload(&self) -> Result<bool, Error> {
        let text = read(&self.path)?;
        let read = digest(text.as_bytes());
        if *self.read.lock() == read {
            return Ok(false);
        }
        let entries = parse(&self.path, &text);
        *self.read.lock() = read;
        self.entries.store(Arc::new(entries?));
        self.changed.send_replace(());
        Ok(true)
    }

    /// Reads the file again whenever it changes, for ever. Looks every `interval`.
    pub async fn watch(&self, interval: Duration) {
        let mut failed = false;
        loop {
            tokio::time::sleep(interval).await;
            match self.reload() {
                Ok(true) => {
                    failed = false;
                    tracing::info!(file = %self.path.display(), tokens = self.entries.load().len(), "tokens read again");
                }
                Ok(false) => failed = false,
                Err(error) if failed && matches!(error, Error::Read { .. }) => {}
                Err(error) => {
                    failed = true;
                    tracing::error!(%error, "the tokens stay as they were");
                }
            }
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(unix)]
fn warn_if_others_can_read(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        tracing::warn!(file = %path.display(), "every user of this machine can read the token file; chmod 600 it");
    }
}

#[cfg(not(unix))]
fn warn_if_others_can_read(_: &Path) {}

fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        if fields.is_empty() {
            continue;
        }
        let entry = entry(&fields)
            .and_then(
                |entry| if seen.insert(entry.digest) { Ok(entry) } else { Err("the token is there twice".into()) },
            )
            .map_err(|problem| Error::Line { path: path.to_owned(), line: index + 1, problem })?;
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(fields: &[&str]) -> Result<Entry, String> {
    let (token, principal, tables, rights) = match *fields {
        [token, principal, tables] => (token, principal, tables, None),
        [token, principal, tables, rights] => (token, principal, tables, Some(rights)),
        _ => return Err("expected TOKEN PRINCIPAL TABLES [admin]".to_owned()),
    };
    if !(16..=512).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token has 16 to 512 visible ASCII characters".to_owned());
    }
    let principal_is_good = (1..=128).contains(&principal.len())
        && principal.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte));
    if !principal_is_good {
        return Err(format!("{principal:?} is not a principal: 1 to 128 of a-z A-Z 0-9 . _ @ -"));
    }
    if let Some(rights) = rights.filter(|rights| *rights != "admin") {
        return Err(format!("{rights:?} is not a right; the only one is \"admin\""));
    }
    let principal = Principal { name: principal.to_owned(), tables: globs(tables)? };
    Ok(Entry { digest: digest(token.as_bytes()), caller: Caller { principal, admin: rights.is_some() } })
}

fn globs(text: &str) -> Result<Option<Arc<Vec<String>>>, String> {
    if text == "*" {
        return Ok(None);
    }
    let globs = split(text);
    for glob in &globs {
        if !glob.contains(['.', '*', '?', '[', '{']) || glob.is_empty() {
            return Err(format!("{glob:?} is not a glob over schema.table"));
        }
        Glob::new(glob).map_err(|error| error.to_string())?;
    }
    Ok(Some(Arc::new(globs)))
}

/// At the commas outside of `{a,b}`.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_u32;
    for letter in text.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match parts.last_mut() {
            Some(part) if letter != ',' || depth > 0 => part.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# comment
6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d55   billing     public.invoices,public.pay*   # trailing comment

0b9d7a52c3e84b6f8d1f2a3b4c5d6e7f\treporting *
c2a7e4d90f1b4c7e8a6d5b3f2e1c0d9a   operator    *     admin
";

    fn tokens(text: &str) -> (tempfile::TempDir, Arc<Tokens>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        fs::write(&path, text).unwrap();
        let tokens = Arc::new(Tokens::load(path).unwrap());
        (directory, tokens)
    }

    #[test]
    fn a_token_names_its_principal_and_rights() {
        let (_directory, tokens) = tokens(FILE);
        let caller = |token| tokens.grant(token).map(|grant| grant.caller().clone());
        let billing = caller("6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d55").unwrap();
        assert_eq!(billing.principal.name, "billing");
        assert_eq!(*billing.principal.tables.unwrap(), ["public.invoices", "public.pay*"]);
        assert!(!billing.admin);
        let operator = caller("c2a7e4d90f1b4c7e8a6d5b3f2e1c0d9a").unwrap();
        assert_eq!(
            (operator.principal.name.as_str(), operator.principal.tables, operator.admin),
            ("operator", None, true)
        );
        for stranger in ["", "6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d5", "6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d555", "billing"] {
            assert_eq!(caller(stranger), None, "{stranger:?}");
        }
    }

    #[test]
    fn a_changed_file_holds_and_a_broken_one_changes_nothing() {
        let (directory, tokens) = tokens(FILE);
        let path = directory.path().join("tokens");
        assert!(!tokens.reload().unwrap());

        fs::write(&path, "aaaaaaaaaaaaaaaaaaaaaaaa next *").unwrap();
        assert!(tokens.reload().unwrap());
        assert!(tokens.grant("6f1e0c1b5f2a4f0f9a7c3f4f1f0e6d55").is_none());
        assert_eq!(tokens.grant("aaaaaaaaaaaaaaaaaaaaaaaa").unwrap().caller().principal.name, "next");

        fs::write(&path, "short x *").unwrap();
        assert!(tokens.reload().is_err());
        assert!(!tokens.reload().unwrap(), "the same broken file is reported once");
        fs::remove_file(&path).unwrap();
        assert!(tokens.reload().is_err());
        assert!(tokens.grant("aaaaaaaaaaaaaaaaaaaaaaaa").is_some());
    }

    #[tokio::test]
    async fn a_grant_is_withdrawn_with_its_token_or_its_tables_and_not_otherwise() {
        let token = "aaaaaaaaaaaaaaaaaaaaaaaa";
        let other = "bbbbbbbbbbbbbbbbbbbbbbbb other *";
        for (now, expected) in [
            (format!("{token} p public.a,public.b\n{other}"), None),
            (format!("{token} p public.a,public.b,public.c"), None),
            (format!("{token} p * admin"), None),
            (format!("{token} p public.a"), Some(Reason::PermissionDenied)),
            (format!("{token} q *"), Some(Reason::Unauthenticated)),
            (other.to_owned(), Some(Reason::Unauthenticated)),
        ] {
            let (directory, tokens) = tokens(&format!("{token} p public.a,public.b"));
            let mut withdrawn = std::pin::pin!(tokens.grant(token).unwrap().withdrawn());
            assert!(futures_util::poll!(&mut withdrawn).is_pending());
            fs::write(directory.path().join("tokens"), &now).unwrap();
            assert!(tokens.reload().unwrap());
            let seen = match futures_util::poll!(&mut withdrawn) {
                std::task::Poll::Ready((reason, _)) => Some(reason),
                std::task::Poll::Pending => None,
            };
            assert_eq!(seen, expected, "{now}");
        }
    }

    #[test]
    fn globs_may_hold_commas_in_braces() {
        assert_eq!(split("public.{a,b},audit.*,*_log"), ["public.{a,b}", "audit.*", "*_log"]);
        assert_eq!(globs("public.{a,b}").unwrap().unwrap().len(), 1);
        assert_eq!(globs("*").unwrap(), None);
        for wrong in ["", "a.b,", ",a.b", "orders", "a.{b"] {
            assert!(globs(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_wrong_line_is_named_without_its_token() {
        let secret = "sssssssssssssssssssssssss";
        for (text, expected) in [
            ("short name *", "16 to 512"),
            (secret, "expected TOKEN"),
            (&format!("{secret} name"), "expected TOKEN"),
            (&format!("{secret} na/me *"), "not a principal"),
            (&format!("{secret} name * root"), "not a right"),
            (&format!("{secret} name orders"), "schema.table"),
            (&format!("{secret} name public.[a"), "public.[a"),
            (&format!("{secret} a *\n{secret} b *"), "line 2: the token is there twice"),
        ] {
            let error = parse(Path::new("t"), text).err().expect(text).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("line "), "{error}");
            assert!(!error.contains(secret), "{error}");
        }
    }
}
