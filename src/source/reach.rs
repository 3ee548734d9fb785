//! From the configured servers to the one that the journal may follow. A stale primary that still answers is passed over,
//! and of several primaries the one whose history is furthest is taken: after a failover the old one may be reachable, and
//! to a hub that was away it looks as it always did.

use std::{sync::Arc, time::Duration};

use super::{
    Error, Options,
    course::{self, Step},
    prepare, refused,
};
use crate::{
    feed::Feed,
    journal::Journal,
    lsn::Lsn,
    postgres::{
        conninfo::{ConnectOptions, HostSpec},
        lineage,
        replication::Replication,
        server::{self, Identity},
        sql::Sql,
    },
    reason::Reason,
};

/// How long the other servers may take to say that they are ahead of the first that will do.
const SURVEY: Duration = Duration::from_secs(1);

/// How long a question may wait for a lock. All of them share one session, the gate's and subscribers' too, so whatever holds
/// a table must not hold it up; the questions are put so that they take no locks on tables that are published, but for the text of
/// a row filter, which log tables go by.
const LONGEST_LOCK: Duration = Duration::from_millis(200);

/// A server that the journal may follow.
pub(super) struct Reached {
    pub sql: Arc<Sql>,
    pub replication: Replication,
    pub identity: Identity,
    pub step: Step,
    /// Where the server's present timeline begins.
    pub timeline_begins: Lsn,
}

/// The options with one server only.
pub(super) fn only(options: &ConnectOptions, spec: &HostSpec) -> ConnectOptions {
    let mut one = options.clone();
    one.hosts = vec![spec.clone()];
    one
}

/// Connects to the best of the configured servers.
pub(super) async fn reach(options: &Options, journal: &Journal) -> Result<Reached, Error> {
    let mut hosts: Vec<&HostSpec> = options.connect.hosts.iter().collect();
    if options.connect.load_balance {
        fastrand::shuffle(&mut hosts);
    }
    if hosts.len() < 2 {
        return one(options, &options.connect, journal).await;
    }
    let mut best: Option<Reached> = None;
    let mut failure: Option<Error> = None;
    for spec in hosts {
        let connect = only(&options.connect, spec);
        let attempt = one(options, &connect, journal);
        let attempt = match &best {
            None => attempt.await,
            Some(_) => match tokio::time::timeout(SURVEY, attempt).await {
                Ok(attempt) => attempt,
                Err(_) => continue,
            },
        };
        match attempt {
            Ok(found) if best.as_ref().is_none_or(|best| found.is_ahead_of(best)) => best = Some(found),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(server = %spec, %error, "not this server");
                // What a server that answered lacks says more than that another does not answer.
                let says_more = matches!(error, Error::Refused { .. });
                if failure.is_none() || says_more {
                    failure = Some(error);
                }
            }
        }
    }
    match (best, failure) {
        (Some(best), _) => Ok(best),
        (None, Some(failure)) => Err(failure),
        (None, None) => Err(refused(Reason::SourceUnavailable, "no server is configured")),
    }
}

/// A server, and the history that it was on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At {
    server: HostSpec,
    system_identifier: u64,
    timeline: u32,
}

pub(super) fn reached_at(sql: &Sql, identity: &Identity) -> At {
    let Identity { system_identifier, timeline, .. } = *identity;
    At { server: sql.server().spec.clone(), system_identifier, timeline }
}

impl At {
    /// Whether another server's history is this one's and went on where this one's ended.
    pub fn is_overtaken_by(&self, step: &Step, other: &Identity) -> bool {
        matches!(step, Step::Follow(_) | Step::Begin(_))
            && other.system_identifier == self.system_identifier
            && other.timeline > self.timeline
    }
}

impl Reached {
    fn is_ahead_of(&self, other: &Reached) -> bool {
        is_ahead((&self.step, &self.identity), (&other.step, &other.identity))
    }
}

/// Whether of two servers the first has gone on further, or is the one that an operator named. Of two that were promoted
/// apart to the same timeline nobody can say which went on, and the hub must not go back and forth between them: the one
/// that it is on is kept as long as it answers.
fn is_ahead(one: (&Step, &Identity), other: (&Step, &Identity)) -> bool {
    let same_system = one.1.system_identifier == other.1.system_identifier;
    match (one.0, other.0) {
        (Step::Stay, Step::Follow(_)) => one.1.timeline >= other.1.timeline,
        (Step::Rebase(_), Step::Stay | Step::Follow(_)) => !same_system,
        (Step::Stay | Step::Follow(_), Step::Rebase(_)) => same_system,
        (Step::Follow(_), Step::Stay) | (Step::Follow(_) | Step::Begin(_), Step::Follow(_) | Step::Begin(_)) => {
            one.1.timeline > other.1.timeline
        }
        _ => false,
    }
}

pub(super) async fn one(options: &Options, connect: &ConnectOptions, journal: &Journal) -> Result<Reached, Error> {
    let sql = Arc::new(Sql::connect(connect).await?);
    sql.wait_for_locks(LONGEST_LOCK).await?;
    if server::in_recovery(&sql).await? {
        let message = format!("{} is a standby; it is followed once it has been promoted", sql.server());
        return Err(refused(Reason::SourceUnavailable, message));
    }
    let opened = async {
        let mut replication = Replication::connect(connect, sql.server()).await?;
        let (identity, server) = lineage::read(&mut replication).await?;
        Ok((replication, identity, server))
    };
    let (replication, identity, server) = match opened.await {
        Ok(opened) => opened,
        Err(error) => return Err(prepare::explain(options, &sql, error).await),
    };
    let timeline_begins = lineage::timeline_begins(&server)?;
    let history = journal.history();
    let known = journal.lineage();
    let rebase = course::rebase_asked(&options.rebase);
    let seen = |lineage: &crate::model::Lineage| history.rank(lineage.id()).is_some();
    let step = course::decide(known.as_deref(), server, rebase, seen)?;
    Ok(Reached { sql, replication, identity, step, timeline_begins })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Lineage, postgres::conninfo::Host};

    #[test]
    fn a_server_is_overtaken_by_its_own_history_alone() {
        let at = At {
            server: HostSpec { host: Host::Tcp("one".into()), addr: None, port: 5432 },
            system_identifier: 7,
            timeline: 2,
        };
        let overtaken = |step: fn(Lineage) -> Step, system_identifier, timeline| {
            let history = String::new();
            let lineage = Lineage { system_identifier, timeline, history, epoch: 0, switch_lsn: Lsn::ZERO };
            let identity = Identity { system_identifier, timeline, xlogpos: Lsn::ZERO, dbname: None };
            at.is_overtaken_by(&step(lineage), &identity)
        };
        assert!(overtaken(Step::Follow, 7, 3));
        assert!(overtaken(Step::Begin, 7, 3), "before the journal has begun");
        assert!(!overtaken(Step::Follow, 7, 2), "promoted apart");
        assert!(!overtaken(|_| Step::Stay, 7, 1), "the one that was left, before the journal follows");
        assert!(!overtaken(Step::Follow, 8, 3), "the system that was left, before the journal is rebased");
    }

    #[test]
    fn of_two_primaries_one_is_followed() {
        let server = |system: u64, timeline: u32, step: fn(Lineage) -> Step| {
            let history = String::new();
            let lineage = Lineage { system_identifier: system, timeline, history, epoch: 0, switch_lsn: Lsn::ZERO };
            (step(lineage), Identity { system_identifier: system, timeline, xlogpos: Lsn::ZERO, dbname: None })
        };
        let stay = |_: Lineage| Step::Stay;
        let first_wins = [
            ("a promotion", server(7, 3, Step::Follow), server(7, 2, stay)),
            ("two promotions", server(7, 4, Step::Follow), server(7, 3, Step::Follow)),
            ("promoted apart", server(7, 2, stay), server(7, 2, Step::Follow)),
            ("named by an operator", server(8, 1, Step::Rebase), server(7, 2, stay)),
            ("a word that is not needed", server(7, 2, stay), server(7, 1, Step::Rebase)),
            ("a word that is not needed", server(7, 3, Step::Follow), server(7, 1, Step::Rebase)),
        ];
        for (why, one, other) in &first_wins {
            assert!(is_ahead((&one.0, &one.1), (&other.0, &other.1)), "{why}");
            assert!(!is_ahead((&other.0, &other.1), (&one.0, &one.1)), "{why}, the other way round");
        }
    }
}
