//! Errors on the wire: any [`Classified`] error becomes a gRPC status whose details hold a `google.rpc.ErrorInfo`,
//! and statuses that tonic makes by itself are completed to the same shape. Clients switch on the reason, never on
//! the code: tonic answers OUT_OF_RANGE for a request that is too large, and so does a position that expired.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::reason::{Classified, DOMAIN, Reason};

/// Bytes of the longest message, metadata value or violation that is sent. A status travels in HTTP/2 headers, and
/// clients accept 8 KiB (Go, Java) to 16 KiB of them.
const TEXT_LIMIT: usize = 1024;

/// Field violations of one error that are sent.
const VIOLATIONS_LIMIT: usize = 3;

/// The status of an error: code, message, ErrorInfo, RetryInfo where retrying helps, BadRequest where fields are wrong.
pub fn status<E: Classified + ?Sized>(error: &E) -> Status {
    build(
        code(error.reason()),
        error.reason(),
        &error.to_string(),
        error.metadata().into_iter().map(|(key, value)| (key.to_owned(), cut(&value).to_owned())).collect(),
        &error.violations(),
    )
}

/// The status of a reason that needs no more than a sentence.
pub fn refuse(reason: Reason, message: &str) -> Status {
    build(code(reason), reason, message, HashMap::new(), &[])
}

/// Completes a status that tonic made while it decoded a request for one of our services. What it could not decode is
/// the client's mistake, which tonic reports as INTERNAL, OUT_OF_RANGE or RESOURCE_EXHAUSTED.
pub fn from_transport(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let message = status.message().to_owned();
    let (code, reason) = match status.code() {
        Code::Unimplemented => (Code::Unimplemented, Reason::Unsupported),
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable => (status.code(), Reason::Internal),
        _ => (Code::InvalidArgument, Reason::RequestInvalid),
    };
    let message = if message.is_empty() && code == Code::Unimplemented { "no such method" } else { &message };
    let mut completed = build(code, reason, message, HashMap::new(), &[]);
    *completed.metadata_mut() = status.metadata().clone();
    completed
}

/// Completes a status in response headers or trailers, if it is an error without details. `ours`: of one of our
/// services or of no service at all; the codes of health and reflection have a meaning of their own and stay.
pub fn complete(headers: &mut HeaderMap, ours: bool) {
    if headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return;
    }
    let Some(status) = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok) else { return };
    let completed = if ours {
        from_transport(status)
    } else {
        let reason = match status.code() {
            Code::Unimplemented => Reason::Unsupported,
            Code::Unavailable => Reason::Draining,
            Code::NotFound | Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
                Reason::RequestInvalid
            }
            _ => Reason::Internal,
        };
        build(status.code(), reason, status.message(), HashMap::new(), &[])
    };
    headers.remove(Status::GRPC_MESSAGE);
    for (name, value) in &trailers(&completed) {
        headers.insert(name, value.clone());
    }
}

/// The trailers that end a stream with this status.
pub fn trailers(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        headers.insert(Status::GRPC_STATUS, (Code::Internal as i32).into());
    }
    headers
}

/// `OK`, `INVALID_ARGUMENT` and so on, as the
/// [code's documentation](https://grpc.io/docs/guides/status-codes/) spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn code(reason: Reason) -> Code {
    Code::from_i32(reason.code() as i32)
}

fn build(
    code: Code,
    reason: Reason,
    message: &str,
    metadata: HashMap<String, String>,
    violations: &[(String, String)],
) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.as_str(), DOMAIN, metadata);
    if let Some(seconds) = reason.retry_after() {
        details.set_retry_info(Some(jittered(seconds)));
    }
    for (field, description) in violations.iter().take(VIOLATIONS_LIMIT) {
        details.add_bad_request_violation(cut(field), cut(description));
    }
    let message = if message.is_empty() { reason.meaning() } else { cut(message) };
    Status::with_error_details(code, message, details)
}

/// Half to one and a half times as long: subscribers that were disconnected together must not come back together.
fn jittered(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * (0.5 + fastrand::f64()))
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Sample(String, Reason);

    impl Classified for Sample {
        fn reason(&self) -> Reason {
            self.1
        }

        fn metadata(&self) -> Vec<(&'static str, String)> {
            vec![("earliest", "0/16B3748".to_owned())]
        }

        fn violations(&self) -> Vec<(String, String)> {
            (0..100).map(|n| (format!("field[{n}]"), "ü".repeat(5000))).collect()
        }
    }

    #[test]
    fn every_reason_becomes_a_typed_status() {
        for &reason in Reason::ALL {
            let status = status(&Sample("what happened".to_owned(), reason));
            assert_eq!(status.code() as i32, reason.code() as i32, "{reason:?}");
            let details = status.get_error_details();
            let info = details.error_info().expect("ErrorInfo");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason.as_str(), DOMAIN));
            assert_eq!(info.metadata["earliest"], "0/16B3748");
            let delay = details.retry_info().and_then(|retry| retry.retry_delay);
            match (delay, reason.retry_after()) {
                (None, None) => {}
                (Some(delay), Some(seconds)) => {
                    assert!((seconds * 0.5..=seconds * 1.5).contains(&delay.as_secs_f64()), "{reason:?} {delay:?}");
                }
                other => panic!("{reason:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_status_fits_into_the_headers_that_clients_accept() {
        let status = status(&Sample("é".repeat(100_000), Reason::FilterInvalid));
        let bytes: usize = trailers(&status).iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 15_000, "{bytes}");
        assert_eq!(status.get_error_details().bad_request().expect("BadRequest").field_violations.len(), 3);
    }

    #[test]
    fn what_tonic_could_not_decode_is_the_clients_mistake() {
        for status in [
            Status::internal("failed to decode Protobuf message"),
            Status::out_of_range("Error, decoded message length too large"),
            Status::resource_exhausted("Error decompressing"),
        ] {
            let completed = from_transport(status);
            assert_eq!(completed.code(), Code::InvalidArgument);
            assert_eq!(completed.get_error_details().error_info().expect("ErrorInfo").reason, "REQUEST_INVALID");
        }
        let unknown = from_transport(Status::unimplemented(""));
        assert_eq!(unknown.code(), Code::Unimplemented);
        assert_eq!(unknown.get_error_details().error_info().expect("ErrorInfo").reason, "UNSUPPORTED");
    }

    #[test]
    fn a_status_with_details_is_left_alone() {
        let mut headers = trailers(&refuse(Reason::Draining, "going away"));
        let before = headers.clone();
        complete(&mut headers, true);
        assert_eq!(headers, before);
        let mut ok = trailers(&Status::ok(""));
        complete(&mut ok, true);
        assert_eq!(ok.len(), 1);
    }
}
