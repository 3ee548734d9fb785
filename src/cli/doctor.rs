//! `walcast doctor`: every precondition at the source at once, and what to run for those that do not hold.

use std::{fmt::Write as _, time::Duration};

use anstyle::{AnsiColor, Style};

use super::{
    args::DoctorArgs,
    error::Error,
    output::Output,
    source::{self, Given, Settings, failed},
    text::plural,
};
use crate::postgres::preflight::{self, Check, Outcome};

/// How long a check may wait for a lock that somebody holds.
pub(super) const LONGEST_LOCK: Duration = Duration::from_secs(2);

pub async fn run(args: &DoctorArgs) -> Result<(), Error> {
    let given = Given { slot: args.slot.clone(), publication: args.publication.clone(), ..Given::default() };
    let settings = source::settings(&args.source, given)?;
    let options = settings.options()?;
    let Settings { slot, publication, .. } = settings;
    let sql = source::connect(&options).await?;
    sql.wait_for_locks(LONGEST_LOCK).await.map_err(failed)?;
    let checks = preflight::checks(&sql, &options, &slot, &publication).await.map_err(failed)?;
    Output::plain().print(&report(&checks))?;
    match checks.iter().filter(|check| check.outcome == Outcome::Failed).count() {
        0 => Ok(()),
        bad => Err(Error::Failed(format!("{} not met", plural(bad as u64, "precondition")))),
    }
}

fn report(checks: &[Check]) -> String {
    let wide = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    checks.iter().fold(String::new(), |mut text, check| {
        let (style, word) = match check.outcome {
            Outcome::Ok => (AnsiColor::Green.on_default(), "ok  "),
            Outcome::Warning => (AnsiColor::Yellow.on_default(), "warn"),
            Outcome::Failed => (AnsiColor::Red.on_default().bold(), "FAIL"),
            Outcome::Skipped => (Style::new().dimmed(), "skip"),
        };
        let _ = writeln!(text, "{style}{word}{style:#}  {:<wide$}  {}", check.name, check.detail);
        let dim = Style::new().dimmed();
        for line in check.fix.iter().flat_map(|fix| fix.lines()) {
            let _ = writeln!(text, "      {dim}fix:{dim:#} {line}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_what_to_run() {
        let check = |name, outcome, detail: &str, fix: Option<&str>| Check {
            name,
            outcome,
            detail: detail.into(),
            fix: fix.map(str::to_owned),
        };
        let text = report(&[
            check("server version", Outcome::Ok, "15.4", None),
            check(
                "wal_level",
                Outcome::Failed,
                "replica",
                Some("ALTER SYSTEM SET wal_level = logical;\nrestart the server"),
            ),
        ]);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "ok    server version  15.4\n\
             FAIL  wal_level       replica\n      \
             fix: ALTER SYSTEM SET wal_level = logical;\n      \
             fix: restart the server\n"
        );
    }
}
