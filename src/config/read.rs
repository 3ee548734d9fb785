//! Step two of two: what the typed values mean. A value that cannot be read becomes a [`Problem`] and reading goes
//! on, so that everything wrong is told in one go.

use std::{
    cmp::Ordering,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use super::{
    Config, Dsn, Error, Grpc, Http, Journal, Layers, Limits, Log, LogFormat, Problem, Source, Tls,
    units::{parse_bytes, parse_duration},
};

/// Reads and checks everything; `problems` are those found before.
pub(super) fn config(layers: &Layers, problems: Vec<Problem>) -> Result<Config, Error> {
    let mut reader = Reader { layers, problems };
    let config = Config {
        source: reader.source(),
        journal: reader.journal(),
        grpc: reader.grpc(),
        limits: reader.limits(),
        http: reader.http(),
        log: reader.log(),
    };
    reader.finish(config)
}

/// The source and the data directory alone.
pub(super) fn source(layers: &Layers, problems: Vec<Problem>) -> Result<(Source, PathBuf), Error> {
    let mut reader = Reader { layers, problems };
    let read = (reader.source(), PathBuf::from(reader.text("journal.data_dir")));
    reader.finish(read)
}

struct Reader<'a> {
    layers: &'a Layers,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn source(&mut self) -> Source {
        let source = Source {
            dsn: self.dsn(),
            slot: self.text("source.slot"),
            publication: self.text("source.publication"),
            create_publication: self.switch("source.create_publication"),
            schemas: self.list("source.schemas"),
            failover_slot: self.switch("source.failover_slot"),
            continue_after_gap: self.text("source.on_slot_lost") == "continue",
            gate: self.list("source.gate"),
        };
        let policy = self.text("source.on_slot_lost");
        if !matches!(policy.as_str(), "stop" | "continue") {
            self.wrong("source.on_slot_lost", &format!("{policy:?} is neither stop nor continue"));
        }
        let slot_bytes = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if source.slot.is_empty() || source.slot.len() > 63 || !source.slot.bytes().all(slot_bytes) {
            self.wrong("source.slot", "a slot's name has 1 to 63 lower-case letters, digits and underscores");
        }
        if source.publication.is_empty() || source.publication.len() > 63 {
            self.wrong("source.publication", "a publication's name has 1 to 63 bytes");
        }
        source
    }

    fn dsn(&mut self) -> Dsn {
        let mut dsn = self.text("source.dsn");
        let mut file = self.text("source.dsn_file");
        let rank = |key| self.layers.get(key).map_or(0, |(_, origin)| origin.rank());
        match rank("source.dsn").cmp(&rank("source.dsn_file")) {
            Ordering::Greater if !dsn.is_empty() => file.clear(),
            Ordering::Less if !file.is_empty() => dsn.clear(),
            _ => {}
        }
        let dsn = match (dsn.is_empty(), file.is_empty()) {
            (false, true) => dsn,
            (true, false) => match std::fs::read_to_string(&file) {
                Ok(text) => text.trim().to_owned(),
                Err(error) => {
                    self.wrong("source.dsn_file", &format!("{file}: {error}"));
                    return Dsn::default();
                }
            },
            (true, true) if self.layers.libpq => return Dsn::default(),
            (true, true) => {
                self.wrong(
                    "source.dsn",
                    "required: how to reach PostgreSQL, such as postgres://user@host:5432/database (or set PGHOST, PGDATABASE ...)",
                );
                return Dsn::default();
            }
            (false, false) => {
                self.wrong("source.dsn", "given together with source.dsn_file: give one of them");
                return Dsn::default();
            }
        };
        let is_url = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://");
        if !is_url && !dsn.contains('=') {
            self.wrong("source.dsn", "expected postgres://user@host:5432/database or host=... user=... dbname=...");
        }
        Dsn::new(dsn)
    }

    fn journal(&mut self) -> Journal {
        let journal = Journal {
            data_dir: PathBuf::from(self.text("journal.data_dir")),
            segment_bytes: self.bytes("journal.segment_bytes"),
            retain_bytes: self.bytes("journal.retain_bytes"),
            retain_age: self.duration("journal.retain_age"),
            ring_bytes: self.bytes("journal.ring_bytes"),
            cache_bytes: self.bytes("journal.cache_bytes"),
            reserve_bytes: self.bytes("journal.reserve_bytes"),
            eager: self.switch("journal.eager"),
        };
        if journal.data_dir.as_os_str().is_empty() {
            self.wrong("journal.data_dir", "must not be empty");
        }
        if !(1 << 20..=4 << 30).contains(&journal.segment_bytes) {
            self.wrong("journal.segment_bytes", "must lie between 1MiB and 4GiB");
        }
        if journal.retain_bytes < journal.segment_bytes.saturating_mul(2) {
            self.wrong("journal.retain_bytes", "must be at least two segments (journal.segment_bytes)");
        }
        if journal.ring_bytes < 1 << 20 {
            self.wrong("journal.ring_bytes", "must be at least 1MiB");
        }
        journal
    }

    fn grpc(&mut self) -> Grpc {
        let grpc = Grpc {
            listen: self.address("grpc.listen").unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            tls: self.tls(),
            tokens_file: self.path("grpc.tokens_file"),
            insecure: self.switch("grpc.insecure"),
            reflection: self.switch("grpc.reflection"),
            web_origins: self.list("grpc.web_origins"),
            drain_timeout: self.duration("grpc.drain_timeout"),
        };
        let authenticated = grpc.tokens_file.is_some() || grpc.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if !grpc.listen.ip().is_loopback() && !authenticated && !grpc.insecure {
            self.wrong(
                "grpc.listen",
                "other machines could read every table without a token: set grpc.tokens_file or grpc.tls_client_ca, \
                 or allow it with grpc.insecure = true",
            );
        }
        for origin in &grpc.web_origins {
            if let Err(problem) = web_origin(origin) {
                self.wrong("grpc.web_origins", &format!("{origin:?} {problem}"));
            }
        }
        if grpc.web_origins.iter().any(|origin| origin == "*") && grpc.tokens_file.is_none() && !grpc.insecure {
            self.wrong(
                "grpc.web_origins",
                "\"*\" without tokens: any page that somebody looks at who reaches the hub could read every table. Name the \
                 origins, set grpc.tokens_file, or allow it with grpc.insecure = true",
            );
        }
        grpc
    }

    fn tls(&mut self) -> Option<Tls> {
        let (cert, key) = (self.path("grpc.tls_cert"), self.path("grpc.tls_key"));
        let client_ca = self.path("grpc.tls_client_ca");
        match (cert, key) {
            (Some(cert), Some(key)) => Some(Tls { cert, key, client_ca }),
            (None, None) if client_ca.is_none() => None,
            (None, None) => {
                self.wrong("grpc.tls_client_ca", "needs grpc.tls_cert and grpc.tls_key");
                None
            }
            (Some(_), None) => {
                self.wrong("grpc.tls_key", "required, since grpc.tls_cert is set");
                None
            }
            (None, Some(_)) => {
                self.wrong("grpc.tls_cert", "required, since grpc.tls_key is set");
                None
            }
        }
    }

    fn limits(&mut self) -> Limits {
        Limits {
            streams: self.count("limits.streams") as usize,
            subscribers: self.count("limits.subscribers") as usize,
            catch_up_readers: self.count("limits.catch_up_readers") as usize,
            catch_up_waiting: self.count("limits.catch_up_waiting") as usize,
            snapshots: self.count("limits.snapshots"),
            projection_bytes: self.bytes("limits.projection_bytes"),
            connections: self.count("limits.connections") as usize,
            streams_per_connection: self.count("limits.streams_per_connection"),
            request_bytes: self.small_bytes("limits.request_bytes") as usize,
            header_bytes: self.small_bytes("limits.header_bytes"),
            pending_resets: self.count("limits.pending_resets") as usize,
            keepalive_interval: self.duration("limits.keepalive_interval"),
            keepalive_timeout: self.duration("limits.keepalive_timeout"),
            snapshot_idle: self.duration("limits.snapshot_idle"),
            snapshot_settle: self.duration("limits.snapshot_settle"),
        }
    }

    fn http(&mut self) -> Http {
        let listen = match self.text("http.listen").as_str() {
            "off" => None,
            _ => self.address("http.listen"),
        };
        Http { listen }
    }

    fn log(&mut self) -> Log {
        let format = match self.text("log.format").as_str() {
            "pretty" => LogFormat::Pretty,
            "compact" => LogFormat::Compact,
            "json" => LogFormat::Json,
            other => {
                self.wrong("log.format", &format!("{other:?} is none of pretty, compact, json"));
                LogFormat::default()
            }
        };
        let filter = self.text("log.filter");
        if let Err(error) = filter.parse::<tracing_subscriber::EnvFilter>() {
            self.wrong("log.filter", &error.to_string());
        }
        Log { format, filter }
    }

    fn finish<T>(self, config: T) -> Result<T, Error> {
        if self.problems.is_empty() { Ok(config) } else { Err(Error { problems: self.problems }) }
    }

    fn wrong(&mut self, key: &str, message: &str) {
        let origin = match self.layers.get(key) {
            Some((_, super::Origin::Default)) | None => String::new(),
            Some((_, origin)) => format!(" (from {origin})"),
        };
        self.problems.push(Problem { key: key.to_owned(), message: format!("{message}{origin}") });
    }

    fn value(&self, key: &str) -> toml::Value {
        self.layers.get(key).map_or_else(|| toml::Value::String(String::new()), |(value, _)| value.clone())
    }

    fn text(&mut self, key: &str) -> String {
        match self.value(key) {
            toml::Value::String(text) => text,
            other => {
                self.wrong(key, &format!("expected text in quotes, found {}", other.type_str()));
                String::new()
            }
        }
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        Some(self.text(key)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn switch(&mut self, key: &str) -> bool {
        match self.value(key) {
            toml::Value::Boolean(value) => value,
            toml::Value::String(text) if matches!(text.as_str(), "true" | "1" | "yes" | "on") => true,
            toml::Value::String(text) if matches!(text.as_str(), "false" | "0" | "no" | "off") => false,
            other => {
                self.wrong(key, &format!("{other} is neither true nor false"));
                false
            }
        }
    }

    fn list(&mut self, key: &str) -> Vec<String> {
        let parts = match self.value(key) {
            toml::Value::String(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
            toml::Value::Array(values) => {
                let texts: Option<Vec<String>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
                texts.unwrap_or_else(|| {
                    self.wrong(key, "expected a list of texts");
                    Vec::new()
                })
            }
            other => {
                self.wrong(key, &format!("expected a list, found {}", other.type_str()));
                Vec::new()
            }
        };
        parts.into_iter().filter(|part: &String| !part.is_empty()).collect()
    }

    fn bytes(&mut self, key: &str) -> u64 {
        let parsed = match self.value(key) {
            toml::Value::Integer(number) => u64::try_from(number).map_err(|_| "must not be negative".to_owned()),
            toml::Value::String(text) => parse_bytes(&text).map_err(|error| error.to_string()),
            other => Err(format!("expected a size such as \"10GiB\", found {}", other.type_str())),
        };
        parsed.unwrap_or_else(|message| {
            self.wrong(key, &message);
            0
        })
    }

    fn small_bytes(&mut self, key: &str) -> u32 {
        let bytes = self.bytes(key);
        if !(1 << 10..=1 << 30).contains(&bytes) {
            self.wrong(key, "must lie between 1KiB and 1GiB");
        }
        bytes.min(1 << 30) as u32
    }

    fn duration(&mut self, key: &str) -> Duration {
        let parsed = match self.value(key) {
            toml::Value::String(text) => parse_duration(&text).map_err(|error| error.to_string()),
            other => Err(format!("expected a duration such as \"30s\", found {}", other.type_str())),
        };
        let parsed = parsed.and_then(|duration| match duration.is_zero() {
            true => Err("must be longer than nothing".to_owned()),
            false => Ok(duration),
        });
        parsed.unwrap_or_else(|message| {
            self.wrong(key, &message);
            Duration::ZERO
        })
    }

    fn count(&mut self, key: &str) -> u32 {
        let number = match self.value(key) {
            toml::Value::Integer(number) => u32::try_from(number).ok(),
            toml::Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.filter(|number| *number > 0).unwrap_or_else(|| {
            self.wrong(key, "expected a whole number from 1 to 4294967295");
            1
        })
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let text = self.text(key);
        let address = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        if address.is_none() {
            self.wrong(key, &format!("{text:?} is not an address: expected host:port, such as 127.0.0.1:50051"));
        }
        address
    }
}

/// `*`, or exactly what browsers send as `Origin`
/// ([RFC 6454, 6.2](https://www.rfc-editor.org/rfc/rfc6454#section-6.2)): nothing behind the host and a port that is not the
/// scheme's own. Anything else would never match.
fn web_origin(origin: &str) -> Result<(), &'static str> {
    if origin == "*" {
        return Ok(());
    }
    let Some((scheme, host)) = origin.split_once("://").filter(|(scheme, _)| !scheme.is_empty()) else {
        return Err("is not an origin: expected scheme://host[:port], such as https://app.example.com, or *");
    };
    if host.is_empty() || host.contains(['/', '?', '#', '@']) || host.contains(char::is_whitespace) {
        return Err("is not an origin: nothing may follow the host and its port, no slash either");
    }
    if origin.contains(|c: char| c.is_uppercase() || !c.is_ascii()) {
        return Err("would match nothing: browsers send origins in lower case, and names as xn--");
    }
    if (scheme == "https" && host.ends_with(":443")) || (scheme == "http" && host.ends_with(":80")) {
        return Err("would match nothing: browsers leave out the scheme's own port");
    }
    Ok(())
}
