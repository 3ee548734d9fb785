//! `walcast doctor`: every precondition at the source at once, and what to run for those that do not hold.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{
    args::DoctorArgs,
    error::Error,
    output::Output,
    parts::{self, Check, Verdict},
    text::plural,
};

pub async fn run(args: &DoctorArgs) -> Result<(), Error> {
    let checks = parts::preflight(&parts::dsn(&args.source)?, &args.slot, &args.publication).await?;
    Output::plain().print(&report(&checks))?;
    match checks.iter().filter(|check| check.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        bad => Err(Error::Failed(format!("{} not met", plural(bad as u64, "precondition")))),
    }
}

fn report(checks: &[Check]) -> String {
    let wide = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    checks.iter().fold(String::new(), |mut text, check| {
        let (style, word) = match check.verdict {
            Verdict::Good => (AnsiColor::Green.on_default(), "ok  "),
            Verdict::Warning => (AnsiColor::Yellow.on_default(), "warn"),
            Verdict::Bad => (AnsiColor::Red.on_default().bold(), "FAIL"),
        };
        let _ = writeln!(text, "{style}{word}{style:#}  {:<wide$}  {}", check.name, check.found);
        let dim = Style::new().dimmed();
        for line in check.fix.lines() {
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
        let check = |name: &str, verdict, found: &str, fix: &str| Check {
            name: name.into(),
            verdict,
            found: found.into(),
            fix: fix.into(),
        };
        let text = report(&[
            check("server version", Verdict::Good, "15.4", ""),
            check("wal_level", Verdict::Bad, "replica", "ALTER SYSTEM SET wal_level = logical;\nrestart the server"),
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
