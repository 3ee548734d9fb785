//! The other configured servers, looked at from the beginning of a connection to its end: standbys, whether they could take
//! over with the slot; and a primary that has gone on, because then the one that the hub is on is stale although it still
//! answers. It may never let the hub begin: with `synchronized_standby_slots` it waits for the standby that has left it, and
//! a new slot waits for transactions that nobody ends.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{Error, Options, SourceState, reach, refused};
use crate::{
    feed::{Source as _, StandbyStatus},
    journal::Journal,
    lsn::Lsn,
    metrics,
    postgres::{
        self,
        conninfo::HostSpec,
        shadow,
        sql::Sql,
        standby::{self, Seen},
    },
    reason::Reason,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while a standby waits for something that the primary can bring about, and until the slot streams.
const SOON: Duration = Duration::from_secs(1);

/// The making of a slot of our own; empty when there is none.
type Making = JoinSet<postgres::Result<()>>;

/// Looks at the other servers from one connection's beginning to its end.
pub(super) struct Around<'a> {
    pub sql: &'a Arc<Sql>,
    pub at: &'a reach::At,
    pub options: &'a Options,
    pub state: &'a SourceState,
    pub journal: &'a Journal,
}

impl Around<'_> {
    /// Returns why the server must be left.
    pub async fn look(&self) -> Error {
        let here = &self.sql.server().spec;
        let others: Vec<_> = self.options.connect.hosts.iter().filter(|spec| *spec != here).collect();
        if others.is_empty() {
            return std::future::pending().await;
        }
        // One that was looked at before its promotion is no standby any more, and not one that is not ready either.
        if self.state.status().standbys.iter().any(|standby| standby.server == here.to_string()) {
            metrics::retire(&::metrics::gauge!(metrics::STANDBY_SLOT_READY, "standby" => here.to_string()));
        }
        let mut others: Vec<(&HostSpec, Making)> = others.into_iter().map(|spec| (spec, Making::new())).collect();
        loop {
            let mut standbys = Vec::new();
            let confirmed = self.state.confirmed();
            let mut waiting = false;
            for (spec, making) in &mut others {
                let kept = self.keep(spec, confirmed, making).await;
                let seen = standby::look(&self.options.connect, spec, &self.options.slot, confirmed).await;
                let (ready, detail) = match seen {
                    Seen::Standby(Ok(())) => (true, String::new()),
                    Seen::Standby(Err(why)) => {
                        waiting = true;
                        (false, kept.err().unwrap_or(why))
                    }
                    Seen::Away(why) => (false, why),
                    Seen::Primary => match self.gone_on(spec).await {
                        Some(error) => return error,
                        None => (false, "takes writes, on a history that is not followed".to_owned()),
                    },
                };
                ::metrics::gauge!(metrics::STANDBY_SLOT_READY, "standby" => spec.to_string())
                    .set(f64::from(u8::from(ready)));
                standbys.push(StandbyStatus { server: spec.to_string(), ready, detail });
            }
            self.state.update(|status| status.standbys = standbys);
            let helps = waiting && self.options.failover_slot && self.sql.version() >= 160_000;
            if helps && let Err(error) = standby::log_snapshot(self.sql).await {
                tracing::debug!(%error, "pg_log_standby_snapshot");
            }
            tokio::time::sleep(if helps || confirmed.is_none() { SOON } else { INTERVAL }).await;
        }
    }

    /// On 16, where servers do not keep the slot in step, a slot of our own serves; why it does not, if it does not.
    async fn keep(&self, spec: &HostSpec, confirmed: Option<Lsn>, making: &mut Making) -> Result<(), String> {
        let wanted = self.options.failover_slot && (160_000..170_000).contains(&self.sql.version());
        let Some(confirmed) = confirmed.filter(|_| wanted) else { return Ok(()) };
        let (connect, slot) = (&self.options.connect, &self.options.slot);
        let failed = |error: &dyn std::fmt::Display| format!("a slot cannot be kept there: {error}");
        match making.try_join_next() {
            Some(Ok(made)) => made.map_err(|error| failed(&error))?,
            Some(Err(error)) => return Err(failed(&error)),
            None => {}
        }
        if making.is_empty() {
            let keeping = shadow::keep(connect, spec, slot, confirmed);
            match tokio::time::timeout(INTERVAL, keeping).await {
                Ok(Ok(true)) => {
                    making.spawn(shadow::make(connect.clone(), spec.clone(), slot.clone(), self.sql.clone()))
                }
                Ok(kept) => return kept.map(drop).map_err(|error| failed(&error)),
                Err(_) => return Err(failed(&"no answer")),
            };
        }
        Err("a slot is being made there, which waits for open transactions".to_owned())
    }

    /// Whether another primary went on where this one's history ended.
    async fn gone_on(&self, spec: &HostSpec) -> Option<Error> {
        let connect = reach::only(&self.options.connect, spec);
        let found = reach::one(self.options, &connect, self.journal).await.ok()?;
        self.at.is_overtaken_by(&found.step, &found.identity).then(|| {
            let message = format!("{spec} has gone on on timeline {}", found.identity.timeline);
            refused(Reason::SourceStalePrimary, message)
        })
    }
}
