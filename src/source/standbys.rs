//! The other configured servers, looked at while the slot streams: standbys, whether they could take over with the slot;
//! and a primary that has gone on, because then the one that is streamed from is stale although it still answers.

use std::time::Duration;

use super::{Error, course::Step, reach, refused, watch::Watch};
use crate::{
    feed::StandbyStatus,
    metrics,
    postgres::standby::{self, Seen},
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
        loop {
            let mut standbys = Vec::new();
            let mut waiting = false;
            for spec in &others {
                let confirmed = self.state.confirmed();
                let seen = standby::look(&self.options.connect, spec, &self.options.slot, confirmed).await;
                let (ready, detail) = match seen {
                    Seen::Standby(Ok(())) => (true, String::new()),
                    Seen::Standby(Err(why)) => {
                        waiting = true;
                        (false, why)
                    }
                    Seen::Away(why) => (false, why),
                    Seen::Primary => match self.gone_on(spec).await {
                        Some(error) => return error,
                        None => (false, "takes writes, on a history that was left".to_owned()),
                    },
                };
                ::metrics::gauge!(metrics::STANDBY_SLOT_READY, "standby" => spec.to_string())
                    .set(f64::from(u8::from(ready)));
                standbys.push(StandbyStatus { server: spec.to_string(), ready, detail });
            }
            self.state.update(|status| status.standbys = standbys);
            let helps = waiting && self.options.failover_slot && self.sql.version() >= 170_000;
            if helps && let Err(error) = standby::log_snapshot(self.sql).await {
                tracing::debug!(%error, "pg_log_standby_snapshot");
            }
            tokio::time::sleep(if helps { SOON } else { INTERVAL }).await;
        }
    }

    /// Whether another primary went on where this one's history ended.
    async fn gone_on(&self, spec: &crate::postgres::conninfo::HostSpec) -> Option<Error> {
        let connect = reach::only(&self.options.connect, spec);
        let found = reach::one(self.options, &connect, self.journal).await.ok()?;
        matches!(found.step, Step::Follow(_)).then(|| {
            let message = format!("{spec} has gone on on timeline {}", found.identity.timeline);
            refused(Reason::SourceStalePrimary, message)
        })
    }
}
