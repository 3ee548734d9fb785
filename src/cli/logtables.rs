//! `walcast logtables`: the tables and triggers in the database that make a lost slot good.

use std::io::{IsTerminal, Write};

use super::{
    advice,
    args::LogtablesCommand,
    doctor::LONGEST_LOCK,
    error::Error,
    journal::existing,
    output::Output,
    source::{self, Given, failed},
    text::plural,
};
use crate::{
    config::units::show_bytes,
    journal::inspect,
    postgres::{
        self,
        logtables::{self, Status},
        sql::Sql,
    },
};

const WHO_LOCKS: &str = "try again; who holds it is in pg_locks, as a rule DDL in a transaction that is still open";

pub async fn run(command: LogtablesCommand) -> Result<(), Error> {
    let output = Output::plain();
    match command {
        LogtablesCommand::Install { publication, hub_role, print_sql: true, source } => {
            let publication = source::settings(&source, Given { publication, ..Given::default() })?.publication;
            output.print(&logtables::script(&publication, hub_role.as_deref()))
        }
        LogtablesCommand::Install { publication, hub_role, print_sql: false, source } => {
            let settings = source::settings(&source, Given { publication, ..Given::default() })?;
            let sql = source::connect(&settings.options()?).await?;
            let publication = settings.publication;
            let done = match logtables::install(&sql, &publication, hub_role.as_deref()).await {
                Err(error) if error.sqlstate() == Some("42501") => return Err(not_permitted(&sql, &error).await),
                done => done.map_err(failed)?,
            };
            let ddl = if done.follows_ddl { ", later DDL is followed" } else { "" };
            output.print(&format!("logging {} of publication {publication}{ddl}\n", plural(done.tables, "table")))?;
            done.notes.iter().for_each(|note| output.note(&format!("note: {note}")));
            match done.tables {
                0 => Err(Error::Failed(format!("publication {publication} publishes no table"))),
                _ => Ok(()),
            }
        }
        LogtablesCommand::Status { source } => {
            let sql = source::connect(&source::options(&source)?).await?;
            sql.wait_for_locks(LONGEST_LOCK).await.map_err(failed)?;
            if !logtables::installed(&sql).await.map_err(failed)? {
                return Err(Error::Failed("no log tables are installed: walcast logtables install".to_owned()));
            }
            let status = logtables::status(&sql).await.map_err(|error| match error.is_locked() {
                true => Error::Failed(format!("somebody has locked the log itself: {WHO_LOCKS}")),
                false => failed(error),
            })?;
            output.print(&report(&status))?;
            match status.unprotected.len() {
                0 if status.compared => Ok(()),
                0 => Err(Error::Failed(format!(
                    "somebody has locked a published table, so definitions and row filters were not compared: {WHO_LOCKS}"
                ))),
                bad => Err(Error::Failed(format!("{} not protected", plural(bad as u64, "table")))),
            }
        }
        LogtablesCommand::Prune { data_dir, source } => {
            let settings = source::settings(&source, Given { data_dir, ..Given::default() })?;
            let data_dir = existing(&settings.data_dir)?;
            let found = inspect::horizon(data_dir).map_err(|error| advice::journal(&error))?;
            let Some(horizon) = found else {
                return Err(Error::Failed(format!("the journal in {} has recorded no horizon", data_dir.display())));
            };
            let sql = source::connect(&settings.options()?).await?;
            let emptied = logtables::prune(&sql, &horizon.snapshot).await.map_err(failed)?;
            output.print(&format!("emptied {}\n", plural(emptied, "log partition")))
        }
        LogtablesCommand::Uninstall { yes, source } => {
            let sql = source::connect(&source::options(&source)?).await?;
            if !yes && !confirmed()? {
                return Err(Error::Failed("nothing was removed".to_owned()));
            }
            let tables = logtables::uninstall(&sql).await.map_err(failed)?;
            output.print(&format!("removed the triggers of {} and the log\n", plural(tables, "table")))
        }
    }
}

/// What the installing role lacks, as far as that can be granted.
async fn not_permitted(sql: &Sql, error: &postgres::Error) -> Error {
    let names =
        "SELECT pg_catalog.format('GRANT CREATE ON DATABASE %I TO %I', pg_catalog.current_database(), current_user)";
    let _ = sql.batch("ROLLBACK").await; // the transaction of the installation, where it was that far
    let grant = match sql.one(names, &[]).await.map(|row| row.try_get::<_, String>(0)) {
        Ok(Ok(grant)) => grant,
        _ => "GRANT CREATE ON DATABASE ... TO the installing role".to_owned(),
    };
    Error::Failed(format!(
        "{error}\n  hint: the installing role must own every published table and may create schemas: {grant}; or run install \
         as a superuser"
    ))
}

fn confirmed() -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::Usage("not asking without a terminal: give --yes".to_owned()));
    }
    let mut err = std::io::stderr();
    let question = "Remove the log tables? A slot that is lost from then on loses changes. [y/N] ";
    write!(err, "{question}").and_then(|()| err.flush()).map_err(Error::io("stderr"))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Error::io("stdin"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn report(status: &Status) -> String {
    let leaves: Vec<String> = status.leaves.iter().map(|bytes| show_bytes(*bytes)).collect();
    let age = status.oldest_seconds.map_or_else(|| "empty".to_owned(), |age| format!("{age:.0} s"));
    let mut text = format!(
        "publication   {}\ntables        {}\nfollows DDL   {}\nlog           {} ({}; writing leaf {})\noldest row    {age}\n",
        status.publication,
        status.tables,
        if status.follows_ddl { "yes" } else { "no: run install again after DDL" },
        show_bytes(status.bytes),
        leaves.join(" + "),
        status.leaf,
    );
    for found in &status.unprotected {
        text += &format!("NOT PROTECTED {}: {}\n", found.table, found.problem);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::logtables::Unprotected;

    #[test]
    fn what_is_not_protected_is_named() {
        let status = Status {
            publication: "walcast".into(),
            tables: 2,
            unprotected: vec![Unprotected { table: "public.a".into(), problem: "its triggers are gone".into() }],
            compared: true,
            follows_ddl: true,
            bytes: 3 << 20,
            leaves: vec![2 << 20, 1 << 20, 0],
            leaf: 1,
            oldest_seconds: Some(12.4),
        };
        assert_eq!(
            report(&status),
            "publication   walcast\n\
             tables        2\n\
             follows DDL   yes\n\
             log           3.00 MiB (2.00 MiB + 1.00 MiB + 0 B; writing leaf 1)\n\
             oldest row    12 s\n\
             NOT PROTECTED public.a: its triggers are gone\n"
        );
    }
}
