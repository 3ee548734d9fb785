use walcast::reason::{DOMAIN, Reason};

use super::super::{
    history::{End, Failure, History},
    parsed::Violation,
};

const LOUD: &str = "Loud";

/// Every stream that the hub ended in another way than OK ended with a typed error of the documented table.
pub fn loud(history: &History) -> Result<(), Violation> {
    for stream in &history.streams {
        let last = stream.events.len().saturating_sub(1);
        match &stream.end {
            End::Failed(failure) => {
                typed(failure).map_err(|text| Violation::at(LOUD, stream, last, text))?;
            }
            End::Cut(text) if !history.may_be_cut => {
                return Err(Violation::at(LOUD, stream, last, format!("the connection broke: {text}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The reason is documented, and code and RetryInfo are those of the table.
pub fn typed(failure: &Failure) -> Result<Reason, String> {
    let Some(reason) = Reason::ALL.iter().copied().find(|reason| reason.as_str() == failure.reason) else {
        return Err(format!("reason {:?} is not in the documented table: {failure:?}", failure.reason));
    };
    if failure.domain != DOMAIN {
        return Err(format!("domain {:?}: {failure:?}", failure.domain));
    }
    if reason.code() as i32 != failure.code as i32 {
        return Err(format!("{} goes with {:?}, not with {:?}", failure.reason, reason.code(), failure.code));
    }
    if reason.retry_after().is_some() != failure.retry.is_some() {
        return Err(format!("RetryInfo {:?}, the table says {:?}", failure.retry, reason.retry_after()));
    }
    Ok(reason)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::{super::synthetic::*, *};

    fn failed(code: Code, reason: &str, retry: Option<Duration>) -> Result<(), Violation> {
        let mut told = history([stream(0).all([1])]);
        told.streams[0].end = End::Failed(Failure {
            code,
            message: String::new(),
            reason: reason.into(),
            domain: DOMAIN.into(),
            metadata: Default::default(),
            retry,
            violations: Vec::new(),
        });
        loud(&told)
    }

    #[test]
    fn untyped_errors_are_caught() {
        failed(Code::OutOfRange, "POSITION_EXPIRED", None).unwrap();
        assert_eq!(failed(Code::Internal, "", None).unwrap_err().guarantee, LOUD);
        assert!(failed(Code::OutOfRange, "SOMETHING_ELSE", None).is_err());
        assert!(failed(Code::Internal, "POSITION_EXPIRED", None).is_err(), "the wrong code");
        assert!(failed(Code::Unavailable, "DRAINING", None).is_err(), "RetryInfo is missing");
    }

    #[test]
    fn a_broken_connection_is_caught_unless_the_test_broke_it() {
        let mut cut = history([stream(0).all([1])]);
        cut.streams[0].end = End::Cut("reset".into());
        assert!(loud(&cut).is_err());
        cut.may_be_cut = true;
        loud(&cut).unwrap();
    }
}
