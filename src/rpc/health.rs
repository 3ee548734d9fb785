//! `grpc.health.v1.Health`. The empty name says that the process lives; the services' names say that streams are
//! served, and keep saying so while the source is away, since an outage of PostgreSQL must not get the hub killed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::wire::pb::{admin_service_server, change_stream_service_server};

const SERVICES: [&str; 2] = [change_stream_service_server::SERVICE_NAME, admin_service_server::SERVICE_NAME];

/// Sets what health says. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    serving: Arc<AtomicBool>,
}

impl Health {
    /// `""` serves, the services do not yet. Every name is known from the beginning: a watch on a name that is not
    /// known ends with NOT_FOUND instead of waiting.
    pub async fn new() -> Self {
        let health = Health { reporter: HealthReporter::new(), serving: Arc::default() };
        health.serving(false).await;
        health
    }

    /// Whether the services are served; call it with `true` when the slot first streams.
    pub async fn serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// As last told.
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    pub(super) fn server(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }
}
