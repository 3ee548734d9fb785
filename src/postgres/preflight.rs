//! What must be true before changes can stream, each with the statement that makes it so. `walcast doctor` prints it;
//! the source runs it before it starts.
//!
//! Rights are found out by using them: managed services grant replication in ways that `pg_roles.rolreplication` does
//! not show, and `pg_hba.conf` cannot be read from outside at all.

mod rights;

use super::{
    conninfo::ConnectOptions,
    error::{Error, Result},
    logtables,
    publication::{self, IdentityGap, OWN_SCHEMA, Publication, Scope},
    replication::{Replication, begins_amid, identifier},
    slot::{self, SlotState},
    sql::{Sql, get, text},
    standby,
};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, with a consequence that an operator should know.
    Warning,
    /// Streaming cannot work.
    Failed,
    /// Depends on something that failed.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked, a few words, the same in every run.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, one sentence.
    pub detail: String,
    /// What to run.
    pub fix: Option<String>,
}

/// Runs every check, in a fixed order. Fails only when the SQL connection breaks; a check that cannot be made for
/// another reason is Failed.
pub async fn checks(sql: &Sql, options: &ConnectOptions, slot: &str, publication: &str) -> Result<Vec<Check>> {
    let state = slot::state(sql, slot).await?;
    let found = publication::find(sql, publication).await?;
    let mut list = vec![version(sql.version()), wal_level(sql).await?];
    list.push(replication(sql, options).await);
    list.extend(capacity(sql, state.is_some()).await?);
    list.push(publication_check(sql, publication, found.as_ref()).await?);
    list.push(identities(sql, publication, found.as_ref()).await?);
    list.push(rights::select(sql, publication, found.is_some()).await?);
    list.push(slot_check(sql, options, slot, state.as_ref()).await?);
    list.push(slot_limits(sql, state.as_ref()).await?);
    list.push(other_publications(sql, publication).await?);
    list.extend(standby::checks(sql, options, slot, state.as_ref()).await?);
    list.push(logtables::check(sql, publication).await?);
    Ok(list)
}

fn check(name: &'static str, outcome: Outcome, detail: impl Into<String>, fix: Option<String>) -> Check {
    Check { name, outcome, detail: detail.into(), fix }
}

fn version(number: u32) -> Check {
    let detail = format!("PostgreSQL {}.{}", number / 10_000, number % 10_000);
    match number / 10_000 {
        14..=18 if begins_amid(number) => {
            let why = "whose slots on standbys may begin amid a transaction, and those of other tools on the primary";
            let fix = Some("Upgrade the server to its release of August 2024 (14.13, 15.8, 16.4) or later.".into());
            check("server version", Outcome::Warning, format!("{detail}, {why}"), fix)
        }
        14..=18 => check("server version", Outcome::Ok, detail, None),
        19.. => check("server version", Outcome::Warning, format!("{detail} is newer than walcast knows (18)"), None),
        _ => {
            let fix = Some("Upgrade the server to PostgreSQL 14 or later.".into());
            check("server version", Outcome::Failed, format!("{detail} is older than 14"), fix)
        }
    }
}

async fn setting(sql: &Sql, name: &str) -> Result<Option<String>> {
    get(&sql.one("SELECT pg_catalog.current_setting($1, true)", &[text(&name)]).await?, 0)
}

async fn wal_level(sql: &Sql) -> Result<Check> {
    let level = setting(sql, "wal_level").await?.unwrap_or_default();
    Ok(match level.as_str() {
        "logical" => check("wal_level", Outcome::Ok, "logical", None),
        _ => {
            let fix = Some("ALTER SYSTEM SET wal_level = logical; -- then restart PostgreSQL".into());
            check("wal_level", Outcome::Failed, format!("{level}, but logical decoding needs logical"), fix)
        }
    })
}

async fn replication(sql: &Sql, options: &ConnectOptions) -> Check {
    let name = "replication connection";
    let identity = async {
        let mut session = Replication::connect(options, sql.server()).await?;
        let identity = session.identify_system().await?;
        session.close().await?;
        Ok::<_, Error>(identity)
    };
    match identity.await {
        Ok(identity) => {
            let detail = format!("system {}, timeline {}", identity.system_identifier, identity.timeline);
            check(name, Outcome::Ok, detail, None)
        }
        Err(error) => {
            let role = identifier(&options.user);
            let fix = match error.sqlstate() {
                Some("42501") => Some(format!("ALTER ROLE {role} REPLICATION;")),
                Some("53300") => Some("ALTER SYSTEM SET max_wal_senders = 20; -- then restart PostgreSQL".into()),
                Some("28000") => Some(format!(
                    "Add to pg_hba.conf: host {} {role} <address of this machine>/32 scram-sha-256, then SELECT pg_reload_conf();",
                    identifier(&options.dbname)
                )),
                _ => error.hint(),
            };
            check(name, Outcome::Failed, error.to_string(), fix)
        }
    }
}

/// Free slots and walsenders. Neither matters where what walcast needs is there already.
async fn capacity(sql: &Sql, slot_exists: bool) -> Result<[Check; 2]> {
    let row = sql
        .one(
            "SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots),
                    pg_catalog.current_setting('max_replication_slots')::int8,
                    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication),
                    pg_catalog.current_setting('max_wal_senders')::int8",
            &[],
        )
        .await?;
    let counts: Vec<i64> = (0..4).map(|column| get(&row, column)).collect::<Result<_>>()?;
    let of = |name: &'static str, used: i64, most: i64, setting: &str, needed: bool| {
        let detail = format!("{used} of {most} in use");
        match used < most {
            true => check(name, Outcome::Ok, detail, None),
            false if !needed => check(name, Outcome::Ok, format!("{detail}, and the slot is one of them"), None),
            false => {
                let fix = format!("ALTER SYSTEM SET {setting} = {}; -- then restart PostgreSQL", most + 10);
                check(name, Outcome::Failed, detail, Some(fix))
            }
        }
    };
    Ok([
        of("replication slots", counts[0], counts[1], "max_replication_slots", !slot_exists),
        of("walsenders", counts[2], counts[3], "max_wal_senders", true),
    ])
}

async fn publication_check(sql: &Sql, name: &str, found: Option<&Publication>) -> Result<Check> {
    let Some(found) = found else {
        let fix = format!(
            "CREATE PUBLICATION {} FOR ALL TABLES; -- or: walcast serve --create-publication",
            identifier(name)
        );
        let detail = format!("{name:?} does not exist in this database");
        return Ok(check("publication", Outcome::Failed, detail, Some(fix)));
    };
    let count = publication::published_tables(sql, name).await?.len();
    let operations =
        [("insert", found.insert), ("update", found.update), ("delete", found.delete), ("truncate", found.truncate)];
    let missing: Vec<_> = operations.iter().filter(|(_, published)| !published).map(|(name, _)| *name).collect();
    let mut detail = format!("{name:?} publishes {count} tables");
    if found.all_tables {
        detail.push_str(" (FOR ALL TABLES)");
    }
    if found.via_partition_root {
        detail.push_str(", partitions under their partitioned table");
    }
    if found.generated_columns {
        detail.push_str(", with stored generated columns");
    }
    let quoted = identifier(name);
    Ok(if !missing.is_empty() {
        let fix = Some(format!("ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate');"));
        check("publication", Outcome::Warning, format!("{detail}, but not {}", missing.join(", ")), fix)
    } else if count == 0 {
        let fix = Some(format!("ALTER PUBLICATION {quoted} ADD TABLE schema.name;"));
        check("publication", Outcome::Warning, detail, fix)
    } else {
        check("publication", Outcome::Ok, detail, None)
    })
}

/// Without a replica identity it is the application whose UPDATE and DELETE fail, from the moment of CREATE PUBLICATION:
/// so a publication that is still to be created is looked at as well.
async fn identities(sql: &Sql, name: &str, found: Option<&Publication>) -> Result<Check> {
    let scope = match found {
        Some(found) if !found.update && !found.delete => {
            let detail = "not needed: neither update nor delete is published";
            return Ok(check("replica identity", Outcome::Ok, detail, None));
        }
        Some(_) => Scope::Publication(name),
        None => Scope::AllTables,
    };
    let gaps = publication::identity_gaps(sql, scope).await?;
    let Some(first) = gaps.first() else {
        return Ok(check("replica identity", Outcome::Ok, "every table has one", None));
    };
    let effect = match found {
        Some(_) => "UPDATE and DELETE fail there",
        None => "UPDATE and DELETE would fail there once it is published",
    };
    let more = match gaps.len() {
        1 => String::new(),
        n => format!(", and {} more tables", n - 1),
    };
    let detail = format!("{} {}{more}: {effect}", first.table, first.problem);
    let fix = gaps.iter().map(|gap: &IdentityGap| gap.fix.as_str()).collect::<Vec<_>>().join("\n");
    Ok(check("replica identity", Outcome::Warning, detail, Some(fix)))
}

async fn slot_check(sql: &Sql, options: &ConnectOptions, name: &str, state: Option<&SlotState>) -> Result<Check> {
    let failed = |detail: String, fix: String| Ok(check("slot", Outcome::Failed, detail, Some(fix)));
    let Some(slot) = state else {
        let detail = format!("{name:?} does not exist; walcast serve creates it");
        return Ok(check("slot", Outcome::Ok, detail, None));
    };
    let other_name = || format!("Choose another name with --slot, or drop it: walcast slot drop {name}");
    match slot.plugin.as_deref() {
        Some("pgoutput") => {}
        Some(plugin) => return failed(format!("{name:?} uses the plugin {plugin}, not pgoutput"), other_name()),
        None => return failed(format!("{name:?} is a physical slot"), other_name()),
    }
    if slot.database.as_deref() != Some(options.dbname.as_str()) {
        let database = slot.database.as_deref().unwrap_or_default();
        let detail = format!("{name:?} belongs to database {database:?}, not {:?}", options.dbname);
        return failed(detail, "Choose another name with --slot.".to_owned()); // another hub's, which its drop would end
    }
    if slot.is_lost() {
        let why = slot.invalidation_reason.as_deref().or(slot.wal_status.as_deref()).unwrap_or("lost");
        let fix = format!("walcast slot drop {name} # changes since {} are not in it any more", shown(slot));
        return failed(format!("{name:?} is invalidated ({why})"), fix);
    }
    if let Some(pid) = slot.active_pid {
        let client = slot::client_of(sql, pid).await?.unwrap_or_else(|| "a client that this role cannot see".into());
        let ours = client.split(" from ").next() == Some(options.application_name.as_str());
        let detail = format!("{name:?} streams to {client} (process {pid})");
        return Ok(match ours {
            true => check("slot", Outcome::Ok, detail, None),
            false => {
                let fix = Some(format!("Stop it, or SELECT pg_terminate_backend({pid});"));
                check("slot", Outcome::Warning, detail, fix)
            }
        });
    }
    let detail = format!("{name:?} confirmed {}, holds back {} bytes of WAL", shown(slot), slot.retained_bytes);
    Ok(match slot.wal_status.as_deref() {
        Some("unreserved") => {
            let fix = Some("Start walcast now: the next checkpoint may invalidate the slot.".into());
            check("slot", Outcome::Warning, format!("{detail}, beyond max_slot_wal_keep_size"), fix)
        }
        _ if slot.two_phase => {
            let detail = format!("{detail}; it was made with two_phase, which walcast does not use");
            check("slot", Outcome::Warning, detail, Some(other_name()))
        }
        _ => check("slot", Outcome::Ok, detail, None),
    })
}

fn shown(slot: &SlotState) -> String {
    slot.confirmed_flush.map_or_else(|| "nothing".into(), |lsn| lsn.to_string())
}

async fn slot_limits(sql: &Sql, state: Option<&SlotState>) -> Result<Check> {
    let idle = setting(sql, "idle_replication_slot_timeout").await?.filter(|value| value != "0");
    let keep = setting(sql, "max_slot_wal_keep_size").await?.unwrap_or_default();
    if let Some(idle) = idle {
        let detail = format!("idle_replication_slot_timeout = {idle}: a hub that is away longer loses its slot");
        let fix = Some("ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();".into());
        return Ok(check("slot limits", Outcome::Warning, detail, fix));
    }
    let room = state.and_then(|slot| slot.safe_wal_size).map_or_else(String::new, |n| format!(", {n} bytes left"));
    let detail = match keep.as_str() {
        "-1" => "max_slot_wal_keep_size = -1: while the hub is away, WAL is kept until the disk is full".to_owned(),
        keep => format!("max_slot_wal_keep_size = {keep}{room}: a hub that is further behind loses its slot"),
    };
    Ok(check("slot limits", Outcome::Ok, detail, None))
}

/// FOR ALL TABLES has no EXCEPT: it publishes walcast's own log tables too, whoever created it, and DELETE on a table
/// that is published fails without a replica identity.
async fn other_publications(sql: &Sql, name: &str) -> Result<Check> {
    let row = sql
        .one(
            "SELECT (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(p.pubname), ', ' ORDER BY p.pubname)
                     FROM pg_catalog.pg_publication p WHERE p.puballtables AND p.pubname <> $1),
                    EXISTS (SELECT FROM pg_catalog.pg_class c
                            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                            WHERE n.nspname = $2 AND c.relkind IN ('r', 'p'))",
            &[text(&name), text(&OWN_SCHEMA)],
        )
        .await?;
    let (others, log_tables): (Option<String>, bool) = (get(&row, 0)?, get(&row, 1)?);
    Ok(match others {
        None => check("other publications", Outcome::Ok, "none of all tables", None),
        Some(others) if log_tables => {
            let detail = format!("{others} publishes all tables, those of schema {OWN_SCHEMA} too");
            let fix = Some(format!("Subscribers of {others} should expect or filter schema {OWN_SCHEMA}."));
            check("other publications", Outcome::Warning, detail, fix)
        }
        Some(others) => check("other publications", Outcome::Ok, format!("{others} publishes all tables"), None),
    })
}
