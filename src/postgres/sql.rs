//! The SQL connection: tokio-postgres over our own [`connect`](super::connect), which knows every `sslmode` and
//! `target_session_attrs`, and remembers which server it found.

use std::{
    future::{Ready, ready},
    io,
    time::Duration,
};

use tokio_postgres::{
    Client, Row, SimpleQueryMessage, Statement,
    config::{SslMode, SslNegotiation},
    tls::{TlsConnect, TlsStream},
    types::{ToSql, Type},
};

use super::{
    connect::{self, Server, Stream},
    conninfo::{ChannelBinding, ConnectOptions, HostSpec, TargetSessionAttrs},
    error::{Error, Notice, Phase, Result, with_causes},
};

/// A parameter with its type, so that a statement needs one round trip and no prepared name.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// One SQL session. Statements may be issued from several places at once; the server runs them in order.
pub struct Sql {
    client: Client,
    server: Server,
    version: u32,
    connection: tokio::task::AbortHandle,
}

impl Sql {
    /// Connects to the first server of the kind that `target_session_attrs` asks for. A server that is away, starting
    /// up, full or of the wrong kind makes it try the next; one that rejects the login ends it, as in libpq.
    pub async fn connect(options: &ConnectOptions) -> Result<Sql> {
        use TargetSessionAttrs::{Any, PreferStandby, Standby};
        if options.target_session_attrs != PreferStandby {
            return Sql::first(options, options.target_session_attrs).await;
        }
        match Sql::first(options, Standby).await {
            Err(error) if error.retryable() => Sql::first(options, Any).await,
            outcome => outcome,
        }
    }

    async fn first(options: &ConnectOptions, wanted: TargetSessionAttrs) -> Result<Sql> {
        let mut hosts: Vec<&HostSpec> = options.hosts.iter().collect();
        if options.load_balance {
            fastrand::shuffle(&mut hosts);
        }
        let mut errors = Vec::new();
        for spec in hosts {
            let addresses = match connect::resolve(options, spec).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            for address in &addresses {
                let begin = |stream, server| Sql::begin(options, wanted, stream, server);
                match connect::at(options, spec, address, begin).await {
                    Err(error) if error.retryable() => errors.push(error),
                    outcome => return outcome,
                }
            }
        }
        match errors.len() {
            1 => Err(errors.remove(0)),
            _ => Err(Error::NoServer(errors)),
        }
    }

    async fn begin(
        options: &ConnectOptions,
        wanted: TargetSessionAttrs,
        stream: Stream,
        server: Server,
    ) -> Result<Sql> {
        let mut config = tokio_postgres::Config::new();
        config.user(&options.user).dbname(&options.dbname).application_name(&options.application_name);
        config.channel_binding(match options.channel_binding {
            ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
            ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
            ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
        });
        if let Some(options) = &options.options {
            config.options(options);
        }
        if let Some(password) = options.password_for(&server.spec) {
            config.password(password);
        }
        // The stream is encrypted already, or is not to be. "Direct" makes tokio-postgres ask no SSLRequest of its own.
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        let (client, connection) =
            config.connect_raw(stream, Handshaken).await.map_err(|error| at_connect(error, &server, &options.user))?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = with_causes(&error), "SQL connection ended");
            }
        });
        let mut sql = Sql { client, server, version: 0, connection: connection.abort_handle() };
        // What is asked here is short and looks expensive to the planner: compiling it (JIT) takes a hundred times as long.
        let state = sql
            .one(
                "SELECT pg_catalog.current_setting('server_version_num')::int4,
                        pg_catalog.pg_is_in_recovery(),
                        pg_catalog.current_setting('transaction_read_only')::bool,
                        pg_catalog.set_config('jit', 'off', false)",
                &[],
            )
            .await?;
        sql.version = get::<i32>(&state, 0)?.unsigned_abs();
        match unsuitable(wanted, get(&state, 1)?, get(&state, 2)?) {
            Some(problem) => Err(Error::WrongKind { server: sql.server.to_string(), problem }),
            None => Ok(sql),
        }
    }

    /// The server that was reached; a replication connection goes to the same.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `server_version_num`, such as 150018.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Closes the socket at once, in the middle of whatever the server sends. Dropping the session instead lets a COPY that
    /// nobody reads any more run to its end first.
    pub fn hang_up(&self) {
        self.connection.abort();
    }

    /// From now on no statement of this session waits longer than this (milliseconds count) for a lock; then it fails, and
    /// [`Error::is_locked`].
    pub async fn wait_for_locks(&self, longest: Duration) -> Result<()> {
        self.batch(&format!("SET lock_timeout = {}", longest.as_millis())).await
    }

    /// All rows of a statement.
    pub async fn query(&self, statement: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        Ok(self.client.query_typed(statement, params).await?)
    }

    /// The only row of a statement.
    pub async fn one(&self, statement: &str, params: &[Param<'_>]) -> Result<Row> {
        Ok(self.client.query_typed_one(statement, params).await?)
    }

    /// The only row of a statement, if it gives one.
    pub async fn optional(&self, statement: &str, params: &[Param<'_>]) -> Result<Option<Row>> {
        Ok(self.client.query_typed_opt(statement, params).await?)
    }

    /// Statements without parameters or results, in one implicit transaction.
    pub async fn batch(&self, statements: &str) -> Result<()> {
        Ok(self.client.batch_execute(statements).await?)
    }

    /// Statements without parameters, in one implicit transaction; of all rows the first column, NULL aside.
    pub(super) async fn texts(&self, statements: &str) -> Result<Vec<String>> {
        let texts = |message: SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(self.client.simple_query(statements).await?.into_iter().filter_map(texts).collect())
    }

    /// A prepared statement, for those who run one often.
    pub async fn prepare(&self, statement: &str) -> Result<Statement> {
        Ok(self.client.prepare(statement).await?)
    }

    /// The driver's client, for what is not wrapped here: transactions, COPY, prepared statements.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The driver's client for transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// A column of a row.
pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T> {
    Ok(row.try_get(column)?)
}

/// A name or text as a parameter.
pub(super) fn text<'a>(value: &'a &str) -> Param<'a> {
    (value, Type::TEXT)
}

/// What is wrong with a server for these `target_session_attrs`.
fn unsuitable(wanted: TargetSessionAttrs, in_recovery: bool, read_only: bool) -> Option<&'static str> {
    use TargetSessionAttrs::*;
    match wanted {
        ReadWrite | Primary if in_recovery => Some("is a standby, not the primary"),
        ReadWrite if read_only => Some("is read-only (default_transaction_read_only)"),
        Standby if !in_recovery => Some("is a primary, not a standby"),
        ReadOnly if !in_recovery && !read_only => Some("is not read-only"),
        _ => None,
    }
}

fn at_connect(error: tokio_postgres::Error, server: &Server, user: &str) -> Error {
    if let Some(db) = error.as_db_error() {
        return Error::Server { phase: Phase::Connecting, notice: Notice::of(db) };
    }
    // tokio-postgres keeps its kinds of error to itself; their texts are fixed.
    let text = with_causes(&error);
    match ["authentication error: ", "invalid configuration: "].iter().find_map(|kind| text.strip_prefix(kind)) {
        Some(problem) => {
            Error::Authentication { server: server.to_string(), user: user.to_owned(), problem: problem.to_owned() }
        }
        None => error.into(),
    }
}

/// The "handshake" of a stream that had its handshake before.
struct Handshaken;

impl TlsConnect<Stream> for Handshaken {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Ready<io::Result<Stream>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> tokio_postgres::tls::ChannelBinding {
        use tokio_postgres::tls::ChannelBinding;
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_server() {
        use TargetSessionAttrs::*;
        let accepted = |in_recovery, read_only| {
            [Any, ReadWrite, ReadOnly, Primary, Standby]
                .map(|wanted| unsuitable(wanted, in_recovery, read_only).is_none())
        };
        assert_eq!(accepted(false, false), [true, true, false, true, false]);
        assert_eq!(accepted(false, true), [true, false, true, true, false]);
        assert_eq!(accepted(true, true), [true, false, true, false, true]);
    }
}
