//! The other configured servers, looked at while the slot streams: standbys, whether they could take over with the slot;
//! and a primary that has gone on, because then the one that is streamed from is stale although it still answers.

use std::time::Duration;

use super::{Error, course::Step, reach, refused, watch::Watch};
use crate::{
    feed::{Feed as _, Source as _, StandbyStatus},
    lsn::Lsn,
    metrics,
    postgres::{
        shadow,
        standby::{self, Seen},
    },
    reason::Reason,
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while a standby waits for something that the primary can bring about.
const SOON: Duration = Duration::from_secs(1);

impl Watch<'_> {
    /// Returns why streaming must end.
    pub(super) async fn look_around(&self) -> Error {
        let here = &self.sql.server().spec;
        let others: Vec<_> = self.options.connect.hosts.iter().filter(|spec| *spec != here).collect();
        if others.is_empty() {
            return std::future::pending().await;
        }
        // One that was looked at before its promotion is no standby any more, and not one that is not ready either.
        if self.state.status().standbys.iter().any(|standby| standby.server == here.to_string()) {
            metrics::retire(&::metrics::gauge!(metrics::STANDBY_SLOT_READY, "standby" => here.to_string()));
        }
        loop {
            let mut standbys = Vec::new();
            let mut waiting = false;
            for spec in &others {
                let confirmed = self.state.confirmed();
                let kept = self.keep(spec, confirmed).await;
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
            tokio::time::sleep(if helps { SOON } else { INTERVAL }).await;
        }
    }

    /// On 16, where servers do not keep the slot in step, a slot of our own serves; why it does not, if it does not.
    async fn keep(&self, spec: &crate::postgres::conninfo::HostSpec, confirmed: Option<Lsn>) -> Result<(), String> {
        let wanted = self.options.failover_slot && (160_000..170_000).contains(&self.sql.version());
        let Some(confirmed) = confirmed.filter(|_| wanted) else { return Ok(()) };
        let (connect, slot) = (&self.options.connect, &self.options.slot);
        let keeping = shadow::keep(connect, spec, slot, confirmed, self.sql);
        match tokio::time::timeout(INTERVAL, keeping).await {
            Ok(kept) => kept.map_err(|error| format!("a slot cannot be kept there: {error}")),
            Err(_) => Err("a slot is being made there, which waits for open transactions".to_owned()),
        }
    }

    /// Whether another primary went on where this one's history ended.
    async fn gone_on(&self, spec: &crate::postgres::conninfo::HostSpec) -> Option<Error> {
        let connect = reach::only(&self.options.connect, spec);
        let found = reach::one(self.options, &connect, self.journal).await.ok()?;
        let known = self.journal.lineage().map_or(0, |lineage| lineage.timeline);
        let further = matches!(found.step, Step::Follow(_)) && found.identity.timeline > known;
        further.then(|| {
            let message = format!("{spec} has gone on on timeline {}", found.identity.timeline);
            refused(Reason::SourceStalePrimary, message)
        })
    }
}
