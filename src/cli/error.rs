//! How a command fails, and what the person reads then: what happened, the documented reason, what to do.

use std::fmt::Write as _;

use tonic_types::StatusExt;

use crate::{
    config,
    reason::{DOMAIN, Reason},
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
        /// What to do, as far as what answers there tells.
        advice: String,
    },
    /// The hub sent something that the protocol does not allow, or that this version does not know.
    #[error("the hub sent what this client cannot read: {0}")]
    Protocol(String),
    /// An error of the hub's own parts, which were used without a hub.
    #[error("{message}")]
    Local {
        /// What happened.
        message: String,
        /// What to do, one line.
        advice: Option<String>,
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

/// Whether the hub has as many named subscribers as it may, which does not pass by itself as other limits do.
pub fn has_no_room_for_subscribers(status: &tonic::Status) -> bool {
    let details = status.get_error_details();
    details.error_info().is_some_and(|info| info.metadata.get("limit").is_some_and(|key| key == "limits.subscribers"))
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
        Error::Local { advice: Some(advice), .. } | Error::Unreachable { advice, .. } => {
            let _ = write!(text, "\n  hint: {advice}");
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
        if text.contains(&violation.field) && text.contains(&violation.description) {
            continue;
        }
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
    let _ = write!(text, "\n  reason: {}", reason.as_str());
    if let Some(hint) = hint(reason) {
        let _ = write!(text, "\n  hint: {hint}");
    }
}

/// What to do on a command line, where that is not what it is for a program. `None`: the message says it all.
fn hint(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::FilterInvalid | Reason::RequestInvalid => None,
        Reason::CheckpointMissing => Some(
            "say where to begin with --from, such as --from earliest; if there was a checkpoint before, the hub's data \
             directory was lost",
        ),
        Reason::Unauthenticated => Some("--token-file (WALCAST_TOKEN_FILE) names a file with a token of the hub"),
        reason => Some(reason.action()),
    }
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
        let mut details = ErrorDetails::with_error_info("FILTER_INVALID", DOMAIN, HashMap::new());
        details.add_bad_request_violation("filter.where", "no such column");
        let message = "the filter cannot be applied: filter.where: no such column";
        let status = tonic::Status::with_error_details(tonic::Code::InvalidArgument, message, details);
        assert_eq!(explain(&status.into()), format!("{message}\n  reason: FILTER_INVALID"), "said once");
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
