//! The one table of settings: key, environment variable, default. The loader, the annotated example file and
//! `walcast serve --help` all follow it, and tests hold them together.

/// One setting of the hub.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Section and key in the file.
    pub key: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// Default, as a TOML value.
    pub default: &'static str,
}

const fn setting(key: &'static str, env: &'static str, default: &'static str) -> Setting {
    Setting { key, env, default }
}

/// Every setting, in the order of the example file.
pub const SETTINGS: &[Setting] = &[
    setting("source.dsn", "WALCAST_DSN", r#""""#),
    setting("source.dsn_file", "WALCAST_DSN_FILE", r#""""#),
    setting("source.slot", "WALCAST_SLOT", r#""walcast""#),
    setting("source.publication", "WALCAST_PUBLICATION", r#""walcast""#),
    setting("source.create_publication", "WALCAST_CREATE_PUBLICATION", "false"),
    setting("source.schemas", "WALCAST_SCHEMAS", "[]"),
    setting("source.failover_slot", "WALCAST_FAILOVER_SLOT", "true"),
    setting("source.on_slot_lost", "WALCAST_ON_SLOT_LOST", r#""stop""#),
    setting("source.gate", "WALCAST_GATE", "[]"),
    setting("journal.data_dir", "WALCAST_DATA_DIR", r#""./walcast-data""#),
    setting("journal.segment_bytes", "WALCAST_SEGMENT_BYTES", r#""64MiB""#),
    setting("journal.retain_bytes", "WALCAST_RETAIN_BYTES", r#""10GiB""#),
    setting("journal.retain_age", "WALCAST_RETAIN_AGE", r#""7d""#),
    setting("journal.ring_bytes", "WALCAST_RING_BYTES", r#""32MiB""#),
    setting("journal.cache_bytes", "WALCAST_CACHE_BYTES", r#""32MiB""#),
    setting("journal.reserve_bytes", "WALCAST_RESERVE_BYTES", r#""64MiB""#),
    setting("journal.eager", "WALCAST_EAGER", "false"),
    setting("grpc.listen", "WALCAST_LISTEN", r#""127.0.0.1:50051""#),
    setting("grpc.tls_cert", "WALCAST_TLS_CERT", r#""""#),
    setting("grpc.tls_key", "WALCAST_TLS_KEY", r#""""#),
    setting("grpc.tls_client_ca", "WALCAST_TLS_CLIENT_CA", r#""""#),
    setting("grpc.tokens_file", "WALCAST_TOKENS_FILE", r#""""#),
    setting("grpc.insecure", "WALCAST_INSECURE", "false"),
    setting("grpc.reflection", "WALCAST_REFLECTION", "true"),
    setting("grpc.web_origins", "WALCAST_WEB_ORIGINS", "[]"),
    setting("grpc.drain_timeout", "WALCAST_DRAIN_TIMEOUT", r#""8s""#),
    setting("limits.streams", "WALCAST_LIMITS_STREAMS", "10000"),
    setting("limits.subscribers", "WALCAST_LIMITS_SUBSCRIBERS", "10000"),
    setting("limits.catch_up_readers", "WALCAST_LIMITS_CATCH_UP_READERS", "16"),
    setting("limits.catch_up_waiting", "WALCAST_LIMITS_CATCH_UP_WAITING", "10000"),
    setting("limits.snapshots", "WALCAST_LIMITS_SNAPSHOTS", "8"),
    setting("limits.projection_bytes", "WALCAST_LIMITS_PROJECTION_BYTES", r#""32MiB""#),
    setting("limits.connections", "WALCAST_LIMITS_CONNECTIONS", "10000"),
    setting("limits.streams_per_connection", "WALCAST_LIMITS_STREAMS_PER_CONNECTION", "128"),
    setting("limits.request_bytes", "WALCAST_LIMITS_REQUEST_BYTES", r#""64KiB""#),
    setting("limits.header_bytes", "WALCAST_LIMITS_HEADER_BYTES", r#""16KiB""#),
    setting("limits.pending_resets", "WALCAST_LIMITS_PENDING_RESETS", "20"),
    setting("limits.keepalive_interval", "WALCAST_LIMITS_KEEPALIVE_INTERVAL", r#""30s""#),
    setting("limits.keepalive_timeout", "WALCAST_LIMITS_KEEPALIVE_TIMEOUT", r#""20s""#),
    setting("limits.snapshot_idle", "WALCAST_LIMITS_SNAPSHOT_IDLE", r#""10m""#),
    setting("limits.snapshot_settle", "WALCAST_LIMITS_SNAPSHOT_SETTLE", r#""20s""#),
    setting("http.listen", "WALCAST_HTTP", r#""127.0.0.1:8080""#),
    setting("log.format", "WALCAST_LOG_FORMAT", r#""pretty""#),
    setting("log.filter", "WALCAST_LOG", r#""info""#),
];

/// What other variables begin with that are not settings: of tests, and what Kubernetes sets for a service of this name
/// ([its names](https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables)).
const FOREIGN: [&str; 4] = ["WALCAST_TEST_", "WALCAST_FAILPOINT", "WALCAST_SERVICE_", "WALCAST_PORT"];

/// The names of these variables that look like settings and are none, `known` and those of tests and of Kubernetes aside.
pub fn unknown_variables(names: impl Iterator<Item = String>, known: &[&str]) -> Vec<String> {
    let is_setting = |name: &str| SETTINGS.iter().any(|setting| setting.env == name);
    let is_foreign = |name: &str| FOREIGN.iter().any(|prefix| name.starts_with(prefix));
    let looks = |name: &String| name.starts_with("WALCAST_") && !is_foreign(name);
    names.filter(|name| looks(name) && !is_setting(name) && !known.contains(&name.as_str())).collect()
}

/// The setting with this key.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}
