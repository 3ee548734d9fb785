//! The log tables in the list of preconditions.

use super::{installed, unprotected_unless_locked};
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
    let (found, all) = match unprotected_unless_locked(sql, publication).await {
        Ok(looked) => looked,
        Err(error) if error.sqlstate().is_some() => {
            let fix = "walcast logtables install --hub-role <the hub's role>".to_owned();
            return Ok(check(Outcome::Warning, format!("they cannot be looked at: {error}"), Some(fix)));
        }
        Err(error) => return Err(error),
    };
    let unknown = "somebody holds a table, so that the definitions cannot be looked at: its row filter is one of them";
    if found.is_empty() && !all {
        return Ok(check(Outcome::Warning, unknown.to_owned(), None));
    }
    if found.is_empty() {
        let detail = "every published table is logged: a lost slot is made good".to_owned();
        return Ok(check(Outcome::Ok, detail, None));
    }
    let mut text: Vec<String> = found.iter().map(|found| format!("{}: {}", found.table, found.problem)).collect();
    text.extend((!all).then(|| unknown.to_owned()));
    let fix = "walcast logtables install, as the role that installed them".to_owned();
    Ok(check(Outcome::Warning, text.join("; "), Some(fix)))
}
