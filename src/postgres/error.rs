//! What can go wrong with the source, whether it is worth a retry, and what an operator can do.
//!
//! The server's message texts are translated (`lc_messages` cannot be pinned without superuser rights), so decisions
//! are made from the SQLSTATE and the [`Phase`] in which it came: `42704` is a missing slot as the answer to
//! `START_REPLICATION`, and a missing publication once changes flow.

use std::{fmt, io, sync::Arc};

use super::conninfo;
use crate::reason::{Classified, Reason};

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// When the server reported an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Start-up and authentication.
    Connecting,
    /// An SQL statement.
    Sql,
    /// A replication command.
    Command,
    /// The stream of changes.
    Streaming,
}

/// An ErrorResponse or NoticeResponse, in the fields of
/// [its documentation](https://www.postgresql.org/docs/current/protocol-error-fields.html).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// ERROR, FATAL, PANIC, WARNING, NOTICE, DEBUG, INFO or LOG; never translated.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// The server's advice.
    pub hint: Option<String>,
    /// The function of the server's source that reports it.
    pub routine: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

/// Why the source cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The connection options are wrong.
    #[error(transparent)]
    Config(#[from] conninfo::Error),
    /// A certificate or key file cannot be used.
    #[error("TLS configuration: {0}")]
    TlsConfig(String),
    /// Nobody answers there.
    #[error("cannot connect to {server}: {problem}")]
    Unreachable {
        /// The server as configured, with the address tried.
        server: String,
        /// What the operating system says.
        problem: String,
    },
    /// The TLS handshake failed, or the server offers no TLS and it is required.
    #[error("TLS with {server}: {problem}")]
    Tls {
        /// The server as configured.
        server: String,
        /// What is wrong.
        problem: String,
    },
    /// The client itself cannot or will not authenticate.
    #[error("authentication with {server} as {user:?}: {problem}")]
    Authentication {
        /// The server as configured.
        server: String,
        /// The role.
        user: String,
        /// What is wrong.
        problem: String,
    },
    /// No server is of the kind that `target_session_attrs` asks for.
    #[error("{server} {problem}")]
    WrongKind {
        /// The last server that answered.
        server: String,
        /// What it is instead.
        problem: &'static str,
    },
    /// Several servers were tried and none will do.
    #[error("no suitable server: {}", join(.0))]
    NoServer(Vec<Error>),
    /// The server said so.
    #[error("{notice}")]
    Server {
        /// When.
        phase: Phase,
        /// What.
        notice: Notice,
    },
    /// A slot that is about to be dropped is streaming.
    #[error("replication slot {slot:?} is active for process {pid} ({client})")]
    SlotActive {
        /// The slot.
        slot: String,
        /// Server process that holds it.
        pid: i32,
        /// Application name and address of its client, as far as they are visible.
        client: String,
    },
    /// No table to publish.
    #[error("publication {publication:?} not created: {problem}")]
    NothingToPublish {
        /// The publication.
        publication: String,
        /// Why there is nothing.
        problem: String,
    },
    /// The connection broke.
    #[error("connection to the source lost: {0}")]
    Lost(Arc<io::Error>),
    /// The server ended the connection.
    #[error("the source closed the connection")]
    Closed,
    /// The server does not speak the protocol as documented.
    #[error("unexpected answer from the source: {0}")]
    Protocol(String),
}

impl Error {
    /// Whether trying again, with the same settings, may help. A rejected password, a failed certificate check or a
    /// missing right needs a person first.
    pub fn retryable(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::WrongKind { .. } | Error::SlotActive { .. } => true,
            Error::Lost(_) | Error::Closed | Error::NoServer(_) => true,
            Error::Server { phase, notice } => {
                let resource = ["08", "25", "40", "53", "57", "58", "XX"].contains(&class(&notice.code));
                match notice.code.as_str() {
                    "58P01" | "53400" => false,
                    "55006" | "55P03" => true,
                    "55000" => *phase == Phase::Streaming,
                    _ => resource,
                }
            }
            Error::Config(_) | Error::TlsConfig(_) | Error::Tls { .. } | Error::Authentication { .. } => false,
            Error::NothingToPublish { .. } | Error::Protocol(_) => false,
        }
    }

    /// Whether the server fails in decoding a slot, or where its WAL or a file of it is damaged or gone: an internal error in
    /// answer to a replication command. It may pass.
    pub fn cannot_decode(&self) -> bool {
        match self {
            Error::Server { phase: Phase::Streaming, notice } => class(&notice.code) == "XX" || notice.code == "58P01",
            Error::Server { phase: Phase::Command, notice } => class(&notice.code) == "XX",
            _ => false,
        }
    }

    /// What an operator can do.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Error::Config(error) => return error.hint(),
            Error::NoServer(errors) => return errors.last().and_then(Error::hint),
            Error::TlsConfig(_) => "Check sslrootcert, sslcert and sslkey: PEM files that walcast's user can read.",
            Error::Unreachable { .. } => "Check host and port, listen_addresses, firewalls, and that PostgreSQL runs.",
            Error::Tls { problem, .. } if problem.contains("does not support") => {
                "Set ssl = on at the server, or a weaker sslmode."
            }
            Error::Tls { .. } => {
                "Check sslrootcert against the authority that signed the server's certificate. verify-full needs the \
                 host in its subjectAltName: the common name alone, which libpq still accepts, does not count."
            }
            Error::Authentication { .. } => "Check user and password, PGPASSWORD or the password file.",
            Error::WrongKind { .. } => "Name the primary, or several hosts: host=a,b (target_session_attrs decides).",
            Error::SlotActive { pid, .. } => {
                return Some(format!("Stop that consumer first: SELECT pg_terminate_backend({pid})"));
            }
            Error::NothingToPublish { .. } => {
                "Create it as superuser (CREATE PUBLICATION name FOR ALL TABLES), or name schemas whose tables the \
                 role owns."
            }
            Error::Server { phase, notice } => return server_hint(*phase, notice),
            Error::Lost(_) | Error::Closed | Error::Protocol(_) => return None,
        };
        Some(text.into())
    }

    /// What is wrong, where the server said it without its code.
    pub fn message(&self) -> String {
        match self {
            Error::Server { notice, .. } => notice.message.clone(),
            other => other.to_string(),
        }
    }

    /// The server's error code, if it is the server that complained.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Server { notice, .. } => Some(&notice.code),
            _ => None,
        }
    }

    /// Whether a lock was not to be had in time (`lock_timeout`): what was asked is not known now, and nothing is wrong.
    pub fn is_locked(&self) -> bool {
        self.is("55P03")
    }

    pub(super) fn is(&self, code: &str) -> bool {
        self.sqlstate() == Some(code)
    }
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn class(code: &str) -> &str {
    code.get(..2).unwrap_or(code)
}

fn server_hint(phase: Phase, notice: &Notice) -> Option<String> {
    let text = match (notice.code.as_str(), phase) {
        ("28P01", _) => "Wrong password: check PGPASSWORD or the password file.",
        ("28000", _) => {
            "pg_hba.conf lets this user, database, address or encryption not in, or the role lacks LOGIN. A replication \
             connection with a database name needs an ordinary entry (not \"replication\"), and the role REPLICATION: \
             ALTER ROLE name REPLICATION."
        }
        ("42501", Phase::Connecting | Phase::Command) => {
            "ALTER ROLE name REPLICATION (on managed services: GRANT rds_replication or cloudsqlreplica's equivalent)."
        }
        ("42501", _) => "The role lacks the right named in the message.",
        ("3D000", _) => "Correct dbname.",
        ("53300", Phase::Connecting) => {
            "Too many connections: raise max_connections, max_wal_senders or the role's CONNECTION LIMIT, or end others."
        }
        ("53400", _) => "Raise max_replication_slots and restart PostgreSQL, or drop a slot that nobody uses.",
        ("55006", _) => "Another process streams from the slot; stop it, or choose another slot.",
        ("42704", Phase::Command) => "The slot does not exist any more; walcast slot list shows what there is.",
        ("42704", Phase::Streaming) => {
            "The publication does not exist at this point of the WAL, and only a new slot gets past it: see \"a publication that was \
             dropped\" in docs/failover.md."
        }
        ("58P01", Phase::Streaming) => "WAL that the slot needs is gone: max_slot_wal_keep_size was exceeded.",
        (code, Phase::Streaming) if class(code) == "XX" => {
            "The server cannot decode its WAL here. If that does not pass the slot counts as lost: see \"a slot that cannot be \
             decoded\" in docs/failover.md."
        }
        ("42710", _) => "It exists already.",
        _ => return notice.hint.clone(),
    };
    Some(text.into())
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        match self {
            Error::Config(error) => error.reason(),
            Error::Unreachable { .. } | Error::WrongKind { .. } | Error::NoServer(_) => Reason::SourceUnavailable,
            Error::Lost(_) | Error::Closed => Reason::SourceUnavailable,
            Error::SlotActive { .. } => Reason::SlotInUse,
            Error::TlsConfig(_) | Error::Tls { .. } | Error::Authentication { .. } => Reason::PreflightFailed,
            Error::NothingToPublish { .. } => Reason::PublicationMissing,
            Error::Protocol(_) => Reason::Internal,
            Error::Server { phase, notice } => match (notice.code.as_str(), phase) {
                ("55006", _) => Reason::SlotInUse,
                ("42704", Phase::Streaming) => Reason::PublicationMissing,
                ("42704", Phase::Command) | ("58P01", Phase::Streaming) => Reason::SlotLost,
                _ if self.retryable() => Reason::SourceUnavailable,
                _ => Reason::PreflightFailed,
            },
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Closed,
            _ => Error::Lost(Arc::new(error)),
        }
    }
}

impl Notice {
    pub(super) fn of(error: &tokio_postgres::error::DbError) -> Notice {
        let severity = error.parsed_severity().map_or_else(|| error.severity().to_owned(), |known| known.to_string());
        Notice {
            severity,
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            routine: error.routine().unwrap_or_default().to_owned(),
        }
    }
}

/// Errors of an established tokio-postgres connection.
impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            return Error::Server { phase: Phase::Sql, notice: Notice::of(server) };
        }
        if error.is_closed() {
            return Error::Closed;
        }
        let text = with_causes(&error);
        match error.into_source().map(|source| source.downcast::<io::Error>()) {
            Some(Ok(source)) => (*source).into(),
            _ => Error::Protocol(text),
        }
    }
}

/// An error with its causes on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(phase: Phase, code: &str) -> Error {
        Error::Server { phase, notice: Notice { code: code.into(), ..Notice::default() } }
    }

    #[test]
    fn the_same_code_means_different_things_in_different_phases() {
        assert_eq!(server(Phase::Streaming, "42704").reason(), Reason::PublicationMissing);
        assert_eq!(server(Phase::Command, "42704").reason(), Reason::SlotLost);
        assert!(server(Phase::Streaming, "55000").retryable(), "a closed gate at shutdown");
        assert!(!server(Phase::Command, "55000").retryable(), "a slot that cannot be used");
    }

    #[test]
    fn what_passes_by_itself_is_retried_and_what_needs_a_person_is_not() {
        for code in ["57P03", "57P01", "53300", "55006", "55P03", "08006"] {
            assert!(server(Phase::Connecting, code).retryable(), "{code}");
        }
        for code in ["28P01", "28000", "3D000", "42501", "53400"] {
            let error = server(Phase::Connecting, code);
            assert!(!error.retryable() && error.hint().is_some(), "{code}");
            assert_eq!(error.reason(), Reason::PreflightFailed, "{code}");
        }
    }
}
