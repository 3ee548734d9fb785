//! Why a filter cannot be used.

use crate::reason::{Classified, Reason};

/// Why a filter was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Field paths (`filter.tables[2]`) and what is wrong there; at least one.
    #[error("the filter cannot be applied: {}", .0.iter().map(|(path, text)| format!("{path}: {text}")).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<(String, String)>),
    /// An exact name that the publication does not contain.
    #[error("table {0} is not published")]
    NotPublished(String),
    /// A table that the filter asks for and the principal may not read.
    #[error("table {0} may not be read by this principal")]
    Denied(String),
    /// An exact name that cannot be checked yet: the source has never been connected.
    #[error("whether table {0} is published is not known yet")]
    Unverified(String),
    /// A glob in the principal's rights does not parse.
    #[error("the rights of this principal hold an invalid glob: {0}")]
    Rights(String),
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        match self {
            Error::Invalid(_) => Reason::FilterInvalid,
            Error::NotPublished(_) => Reason::TableNotPublished,
            Error::Denied(_) => Reason::PermissionDenied,
            Error::Unverified(_) => Reason::Starting,
            Error::Rights(_) => Reason::Internal,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Error::NotPublished(table) | Error::Denied(table) | Error::Unverified(table) => {
                vec![("table", table.clone())]
            }
            Error::Invalid(_) | Error::Rights(_) => Vec::new(),
        }
    }

    fn violations(&self) -> Vec<(String, String)> {
        match self {
            Error::Invalid(violations) => violations.clone(),
            _ => Vec::new(),
        }
    }
}
