//! The server over real sockets, with a generated client on one side and a hub on the other whose steps the test
//! decides.

mod access;
mod drain;
mod fake;
mod hostile;
mod services;
mod streams;
mod tls;
mod web;

use std::{future::Future, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);

#[track_caller]
fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(output) => output,
            Err(_) => panic!("nothing happened in time at {caller}"),
        }
    }
}

/// Code and reason. Every error must have both.
#[track_caller]
fn typed(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "walcast");
    (status.code(), info.reason.clone())
}
