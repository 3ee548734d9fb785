//! One cluster, one hub on it, the oracle's slot: what nearly every scenario begins with.

use std::time::Duration;

use walcast::lsn::Lsn;

use super::{
    Cluster, Db,
    client::{Client, Request},
    eventually,
    history::{End, History},
    hub::{Hub, READY},
    parsed::Parsed,
    truth::{self, Truth},
    validators, versions,
};

/// A running stage.
pub struct Stage {
    // The hub ends before its source: the order of the fields is the order of dropping.
    pub hub: Hub,
    pub db: Db,
    pub cluster: Cluster,
    pub publication: String,
    pub database: String,
}

/// How a stage is set up.
pub struct Setup {
    major: u32,
    settings: Vec<(String, String)>,
    sql: String,
    publication: Option<String>,
    args: Vec<String>,
    config: Option<String>,
    env: Vec<(String, String)>,
    create_database: Option<String>,
    dsn: Option<String>,
    oracle: bool,
}

/// The default stage: publication `walcast` for all tables, made before the hub starts.
pub fn stage() -> Setup {
    Setup {
        major: versions::default_major(),
        settings: vec![("deadlock_timeout".into(), "50ms".into())],
        sql: String::new(),
        publication: Some("CREATE PUBLICATION walcast FOR ALL TABLES".into()),
        args: Vec::new(),
        config: None,
        env: Vec::new(),
        create_database: None,
        dsn: None,
        oracle: true,
    }
}

impl Setup {
    pub fn version(mut self, major: u32) -> Self {
        self.major = major;
        self
    }

    /// A setting of the server.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Without the oracle's slot, where slots are to be lost.
    pub fn no_oracle(mut self) -> Self {
        self.oracle = false;
        self
    }

    /// Statements before the slot exists.
    pub fn sql(mut self, sql: &str) -> Self {
        self.sql += sql;
        self.sql += ";\n";
        self
    }

    /// Another CREATE PUBLICATION; empty for none.
    pub fn publication(mut self, sql: &str) -> Self {
        self.publication = (!sql.is_empty()).then(|| sql.into());
        self
    }

    /// Arguments of `walcast serve`.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// A configuration file of the hub.
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.into());
        self
    }

    /// A setting of the hub by its variable, such as `WALCAST_SEGMENT_BYTES`.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Another connection string for the hub, in which `{port}` and `{socket}` stand for the cluster's; empty for none.
    pub fn dsn(mut self, dsn: &str) -> Self {
        self.dsn = Some(dsn.into());
        self
    }

    /// Runs in a database of its own, made with these words behind CREATE DATABASE.
    pub fn database(mut self, create: &str) -> Self {
        self.create_database = Some(create.into());
        self
    }

    /// Starts the server and prepares the database, not the hub.
    pub async fn prepare(self) -> Stage {
        let settings: Vec<(&str, &str)> = self.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let cluster = Cluster::with(self.major, &settings);
        let database = match &self.create_database {
            Some(create) => {
                cluster.connect().await.run(&format!("CREATE DATABASE {create}")).await;
                create.split_whitespace().next().expect("a name").to_owned()
            }
            None => "postgres".to_owned(),
        };
        let db = cluster.connect_to(&database).await;
        db.run(&self.sql).await;
        if let Some(publication) = &self.publication {
            db.run(publication).await;
        }
        if self.oracle {
            truth::watch(&db).await;
        }
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let fill = |text: &str| {
            let socket = cluster.socket_dir().display().to_string();
            text.replace("{port}", &cluster.port().to_string()).replace("{socket}", &socket)
        };
        let dsn = self.dsn.as_deref().map_or_else(|| cluster.dsn_of(&database), fill);
        let mut hub = Hub::new(&dsn).args(&args);
        if let Some(toml) = &self.config {
            hub = hub.config(toml);
        }
        for (name, value) in &self.env {
            hub.env(name, &fill(value));
        }
        Stage { hub, db, cluster, publication: "walcast".into(), database }
    }

    /// Starts everything and waits until the hub streams from its slot.
    pub async fn start(self) -> Stage {
        let mut stage = self.prepare().await;
        stage.hub.start().await;
        stage.streaming().await;
        stage
    }
}

impl Stage {
    /// A new connection to the hub.
    pub fn client(&self) -> Client {
        Client::new(self.hub.grpc_port())
    }

    /// Waits until the hub's slot is in use.
    pub async fn streaming(&self) {
        let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = 'walcast'";
        eventually(READY, || async {
            let db = self.cluster.connect_to(&self.database).await;
            match db.text(sql).await.as_deref() {
                Some("t") => Ok(()),
                other => Err(format!("active = {other:?}")),
            }
        })
        .await;
    }

    /// Opens a new connection for `db`, after a restart of the server.
    pub async fn reconnect(&mut self) {
        self.db = self.cluster.connect_to(&self.database).await;
    }

    /// What the source has committed so far, as the oracle sees it.
    pub async fn truth(&self) -> Truth {
        truth::read(&self.cluster, &self.database, &self.publication).await
    }

    /// Where the source's WAL ends: everything committed before the call lies at or before it.
    pub async fn flushed(&self) -> Lsn {
        self.db.lsn("pg_current_wal_flush_lsn()").await
    }

    /// The end of the last published transaction, which every complete stream reaches.
    pub async fn goal(&self) -> Lsn {
        self.truth().await.end()
    }

    /// A field of the hub's slot in text form.
    pub async fn slot(&self, field: &str) -> Option<String> {
        self.db.text(&format!("SELECT {field} FROM pg_replication_slots WHERE slot_name = 'walcast'")).await
    }

    /// Everything that a request selects up to now.
    pub async fn collect(&self, request: Request) -> History {
        self.client().collect(request).await
    }

    /// Everything from the beginning, checked.
    pub async fn everything(&self) -> History {
        let history = self.collect(Request::new().earliest()).await;
        self.check(&history).await;
        history
    }

    /// Holds a history against every guarantee; panics with the events around a violation.
    pub async fn check<'a>(&self, history: &'a History) -> Parsed<'a> {
        let truth = self.truth().await;
        held(history, validators::all(history, &truth))
    }

    /// Waits until the hub has journaled everything committed so far.
    pub async fn journaled(&self) {
        let goal = self.flushed().await;
        let client = self.client();
        eventually(Duration::from_secs(30), || async {
            let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
            let tail = status.journal.and_then(|journal| journal.tail).ok_or("no tail")?;
            let tail = super::history::lsn(&tail.lsn);
            if tail >= goal { Ok(()) } else { Err(format!("tail {tail}, source {goal}")) }
        })
        .await;
    }
}

/// The value, or a panic that shows the violation and what reproduces the run.
#[track_caller]
pub fn held<T>(history: &History, checked: Result<T, validators::Broken>) -> T {
    match checked {
        Ok(value) => value,
        Err(violation) => {
            let before = violation.stream.and_then(|number| number.checked_sub(1));
            let before = before.and_then(|number| history.streams.iter().find(|stream| stream.number == number));
            let before = before.map_or_else(String::new, |stream| {
                format!("the stream before it ended so ({:?}):\n{}", stream.end, stream.last_lines(12))
            });
            let kept = history.keep();
            panic!("subscriber {:?} ({}): {violation}{before}history: {kept}", history.subscriber, history.note)
        }
    }
}
