//! What to do about errors of the hub's own parts where a person started them: no hub answered, so there is no reason of
//! the protocol to look up, and most are a setting away from working.

use std::{io, path::Path};

use super::error::Error;
use crate::{app, ingest, journal, postgres, rpc};

/// Why `walcast serve` ended.
pub fn hub(error: &app::Error) -> Error {
    let advice = match error {
        app::Error::Dsn(error) => error.hint(),
        app::Error::Journal(error) | app::Error::Ingest(ingest::Error::Journal(error)) => of_journal(error),
        app::Error::Ingest(ingest::Error::Replication(error)) => error.hint(),
        app::Error::Tls(_) => Some(
            "grpc.tls_cert, grpc.tls_key and grpc.tls_client_ca name PEM files that walcast's user can read".to_owned(),
        ),
        app::Error::Tokens(rpc::tokens::Error::Read { .. }) => {
            Some("grpc.tokens_file (--tokens-file) names a file that walcast's user can read".to_owned())
        }
        // What can be done about the others is in the message.
        app::Error::Tokens(_) | app::Error::Grpc(_) | app::Error::Http(_) => None,
        app::Error::Ingest(_) | app::Error::System { .. } => None,
    };
    Error::Local { message: error.to_string(), advice }
}

/// Why a data directory cannot be read.
pub fn journal(error: &journal::Error) -> Error {
    Error::Local { message: error.to_string(), advice: of_journal(error) }
}

/// What PostgreSQL said, or why it did not.
pub fn source(error: &postgres::Error) -> Error {
    Error::Local { message: error.to_string(), advice: error.hint() }
}

fn of_journal(error: &journal::Error) -> Option<String> {
    use journal::Error as E;
    Some(match error {
        E::Locked(_) => "stop that hub, or name another directory with --data-dir".to_owned(),
        E::Version { .. } | E::UnknownRecord { .. } => {
            "use the version of walcast that wrote it, or name another directory with --data-dir".to_owned()
        }
        E::Corrupt(_) => "`walcast journal verify` lists what is damaged".to_owned(),
        E::Io { path, source } => return of_file(path, source),
        E::Order { .. } | E::Failed(_) => return None,
    })
}

fn of_file(path: &Path, error: &io::Error) -> Option<String> {
    use io::ErrorKind as K;
    let uid = rustix::process::geteuid().as_raw();
    Some(match error.kind() {
        K::NotFound => "it cannot be made there: name another directory with --data-dir".to_owned(),
        K::PermissionDenied | K::ReadOnlyFilesystem => {
            format!("make it writable for user id {uid}, or name another directory with --data-dir")
        }
        K::AlreadyExists | K::NotADirectory => {
            let file = path.ancestors().find(|path| path.exists() && !path.is_dir()).unwrap_or(path);
            format!("{} is no directory: name another with --data-dir", file.display())
        }
        K::StorageFull | K::QuotaExceeded => "free space there, or name another directory with --data-dir".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_person_can_mend_is_said() {
        let failed = |kind: io::ErrorKind| {
            let error = journal::Error::Io { path: "/data/segments".into(), source: Arc::new(kind.into()) };
            of_journal(&error).unwrap_or_default()
        };
        assert!(failed(io::ErrorKind::PermissionDenied).contains("--data-dir"));
        assert!(failed(io::ErrorKind::AlreadyExists).starts_with("/data/segments is no directory"));
        assert_eq!(failed(io::ErrorKind::InvalidData), "");
        let Error::Local { message, advice } = hub(&app::Error::Journal(journal::Error::Locked("dd1".into()))) else {
            panic!("another kind")
        };
        assert_eq!(message, "dd1 is in use by another hub");
        assert!(advice.is_some_and(|advice| advice.starts_with("stop that hub")));
    }
}
