//! A session that does nothing but COPY, spoken by hand. tokio-postgres reads a socket 8 KiB at a time and hands each row to
//! another task; here rows are borrowed from one large receive buffer, as changes are
//! ([`replication`](super::replication)).

use postgres_protocol::message::{backend::Message, frontend};
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::{
    connect,
    conninfo::ConnectOptions,
    copy::SETTINGS,
    error::{Error, Phase, Result},
    replication::{
        channel::{Answer, Channel},
        frame,
        startup::{self, Kind},
    },
    sql::Sql,
};

/// After an error it can only be dropped, which closes the socket in the middle of whatever the server sends.
pub struct Copier {
    channel: Channel,
}

/// What comes of statements with a COPY among them.
#[derive(Debug, PartialEq, Eq)]
pub enum Copied<'a> {
    /// A row with its newline; the server sends
    /// [one per message](https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY).
    Row(&'a [u8]),
    /// All statements are done.
    End,
}

impl Copier {
    /// Connects to the very server that `sql` has reached, with the settings of [`copy::connect`](super::copy::connect).
    pub async fn beside(sql: &Sql, options: &ConnectOptions) -> Result<Copier> {
        let server = sql.server();
        connect::at(options, &server.spec, &server.address, |stream, server| async move {
            let mut channel = Channel::new(stream);
            let greeting = startup::start(&mut channel, options, &server, Kind::Sql).await?;
            let mut copier = Copier { channel };
            copier.run(SETTINGS).await?;
            if greeting.without_encoding {
                copier.run("SET client_encoding = 'SQL_ASCII'").await?;
            }
            Ok(copier)
        })
        .await
    }

    /// Runs statements; the rows of all of them, values in text form.
    pub async fn run(&mut self, statements: &str) -> Result<Vec<Vec<Option<Vec<u8>>>>> {
        self.send(statements).await?;
        let mut rows = Vec::new();
        loop {
            match self.channel.answer().await? {
                Answer::Message(Message::DataRow(body)) => {
                    let value = |range: std::ops::Range<usize>| body.buffer()[range].to_vec();
                    let row = body.ranges().map(|range| Ok(range.map(value))).collect();
                    rows.push(row.map_err(|error| Error::Protocol(error.to_string()))?);
                }
                Answer::Message(Message::ReadyForQuery(_)) => return Ok(rows),
                Answer::Message(_) => {}
                Answer::Error(notice) => return Err(Error::Server { phase: Phase::Sql, notice }),
                Answer::CopyBoth => return Err(Error::Protocol("CopyBothResponse out of place".into())),
            }
        }
    }

    /// Sends statements, of which one is a COPY TO STDOUT. Take everything with [`Copier::copied`].
    pub async fn send(&mut self, statements: &str) -> Result<()> {
        self.channel.queue_message(|out| frontend::query(statements, out))?;
        self.channel.flush().await
    }

    /// Waits until more has come. Cancel-safe.
    pub async fn fill(&mut self) -> Result<()> {
        self.channel.fill().await
    }

    /// What is complete in the receive buffer; `None` means [`Copier::fill`].
    pub fn copied(&mut self) -> Result<Option<Copied<'_>>> {
        while let Some(tag) = self.channel.peek().filter(|tag| *tag != b'd') {
            match self.channel.next()? {
                None => return Ok(None),
                Some(_) if tag == b'Z' => return Ok(Some(Copied::End)),
                Some((_, body)) if tag == b'E' => {
                    return Err(Error::Server { phase: Phase::Sql, notice: frame::notice(body) });
                }
                Some(_) => {}
            }
        }
        Ok(self.channel.next()?.map(|(_, row)| Copied::Row(row)))
    }
}
