//! The log tables in the list of preconditions.

use super::{Look, installed, unprotected};
use crate::postgres::{
    error::Result,
    preflight::{Check, Outcome},
    sql::Sql,
};

/// Whether a lost slot could be made good.
pub async fn check(sql: &Sql, publication: &str) -> Result<Check> {
    let check = |outcome, detail: String, fix: Option<String>| Check { name: "log tables", outcome, detail, fix };
    if !installed(sql).await? {
        let detail = "not installed: where the slot is lost, so is what it had (walcast logtables install)";
        return Ok(check(Outcome::Skipped, detail.to_owned(), None));
    }
    let found = match unprotected(sql, publication, Look::Definitions).await {
        Ok(found) => found,
        Err(error) if error.sqlstate().is_some() => {
            let fix = "walcast logtables install --hub-role <the hub's role>".to_owned();
            return Ok(check(Outcome::Warning, format!("they cannot be looked at: {error}"), Some(fix)));
        }
        Err(error) => return Err(error),
    };
    if found.is_empty() {
        let detail = "every published table is logged: a lost slot is made good".to_owned();
        return Ok(check(Outcome::Ok, detail, None));
    }
    let text: Vec<String> = found.iter().map(|found| format!("{}: {}", found.table, found.problem)).collect();
    let fix = "walcast logtables install, as the role that installed them".to_owned();
    Ok(check(Outcome::Warning, text.join("; "), Some(fix)))
}
