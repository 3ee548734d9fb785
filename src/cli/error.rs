//! How a command fails, and what the person reads then: what happened, the documented reason, what to do.

use std::fmt::Write as _;

use tonic_types::StatusExt;

use crate::{
    config,
    reason::{Classified, DOMAIN, Reason},
};

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or the configuration does not hold: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The hub answered with an error.
    #[error("{}", .0.message())]
    Status(Box<tonic::Status>),
    /// The hub was not reached.
    #[error("cannot reach the hub at {hub}: {detail}")]
    Unreachable {
        /// URL.
        hub: String,
        /// What the transport says.
        detail: String,
    },
    /// The hub sent something that the protocol does not allow, or that this version does not know.
    #[error("the hub sent what this client cannot read: {0}")]
    Protocol(String),
    /// An error of the hub's own parts, with its documented reason.
    #[error("{message}")]
    Classified {
        /// What happened.
        message: String,
        /// The documented reason.
        reason: Reason,
    },
    /// Reading or writing something local failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, to what.
        context: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The answer is no: what was asked for does not hold.
    #[error("{0}")]
    Failed(String),
    /// Nobody reads the output any more.
    #[error("the output was closed")]
    OutputClosed,
}

impl Error {
    /// An error of a part of the hub.
    pub fn classified(error: &dyn Classified) -> Self {
        Error::Classified { message: error.to_string(), reason: error.reason() }
    }

    /// For `map_err` on local files and processes.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Error::Io { context, source }
    }

    /// The process's exit code: 1 failed, 2 wrong usage; closed output is no failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::OutputClosed => 0,
            _ => 1,
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Error::Status(Box::new(status))
    }
}

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Self {
        Error::Usage(error.to_string())
    }
}

/// The documented reason of a status, if it carries one of ours.
pub fn reason_of(status: &tonic::Status) -> Option<Reason> {
    let info = status.get_error_details().error_info()?.clone();
    (info.domain == DOMAIN).then(|| Reason::ALL.iter().find(|reason| reason.as_str() == info.reason).copied())?
}

/// What to print on stderr, without the leading `error: `. Several lines, no newline at the end.
pub fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    match error {
        Error::Status(status) => explain_status(&mut text, status),
        Error::Classified { reason, .. } => explain_reason(&mut text, *reason),
        Error::Unreachable { .. } => {
            text.push_str("\n  hint: is `walcast serve` running? --hub (WALCAST_HUB) names another address")
        }
        _ => {}
    }
    text
}

fn explain_status(text: &mut String, status: &tonic::Status) {
    if text.is_empty() {
        text.push_str(status.code().description());
    }
    let details = status.get_error_details();
    for violation in details.bad_request().into_iter().flat_map(|request| &request.field_violations) {
        let _ = write!(text, "\n  {}: {}", violation.field, violation.description);
    }
    let Some(info) = details.error_info() else {
        let _ = write!(text, "\n  code: {:?}", status.code());
        return;
    };
    match reason_of(status) {
        Some(reason) => explain_reason(text, reason),
        None => {
            let _ = write!(text, "\n  reason: {}", info.reason);
        }
    }
    let mut metadata: Vec<_> = info.metadata.iter().filter(|(_, value)| !value.is_empty()).collect();
    metadata.sort();
    for (key, value) in metadata {
        let _ = write!(text, "\n  {key}: {value}");
    }
}

fn explain_reason(text: &mut String, reason: Reason) {
    let _ = write!(text, "\n  reason: {}\n  hint: {}", reason.as_str(), reason.action());
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_typed_status_is_explained_with_its_hint() {
        let metadata = HashMap::from([("earliest".to_owned(), "0/20".to_owned())]);
        let details = ErrorDetails::with_error_info("POSITION_EXPIRED", DOMAIN, metadata);
        let status = tonic::Status::with_error_details(tonic::Code::OutOfRange, "0/10 is gone", details);
        let text = explain(&status.into());
        let action = Reason::PositionExpired.action();
        assert_eq!(text, format!("0/10 is gone\n  reason: POSITION_EXPIRED\n  hint: {action}\n  earliest: 0/20"));
    }

    #[test]
    fn violations_name_their_fields() {
        let mut details = ErrorDetails::with_error_info("FILTER_INVALID", DOMAIN, HashMap::new());
        details.add_bad_request_violation("filter.where", "no such column \"x\"");
        let status = tonic::Status::with_error_details(tonic::Code::InvalidArgument, "bad filter", details);
        assert!(explain(&status.into()).contains("\n  filter.where: no such column \"x\"\n"));
    }

    #[test]
    fn a_foreign_status_still_says_something() {
        let text = explain(&tonic::Status::new(tonic::Code::Unimplemented, "").into());
        assert!(text.ends_with("code: Unimplemented") && !text.starts_with('\n'), "{text}");
    }

    #[test]
    fn usage_is_told_from_failure() {
        assert_eq!(Error::Usage(String::new()).exit_code(), 2);
        assert_eq!(Error::Failed(String::new()).exit_code(), 1);
    }
}
