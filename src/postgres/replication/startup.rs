//! [Start-up](https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP) of a session: its kind, the
//! pinned settings, and authentication.

use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::channel::Channel;
use crate::postgres::{
    connect::Server,
    conninfo::{ChannelBinding, ConnectOptions},
    error::{Error, Phase, Result},
};

/// Settings that decide the text form of values. As bare start-up parameters they override `ALTER ROLE ... SET`,
/// `ALTER DATABASE ... SET` and the `options` of the connection string, which the server applies first.
pub(in crate::postgres) const PINNED: [(&str, &str); 8] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("search_path", "pg_catalog"),
    ("lc_monetary", "C"),
];

/// What the server tells about itself.
#[derive(Default)]
pub(in crate::postgres) struct Greeting {
    /// Such as 150018; the minor part is 0 for a development version.
    pub(in crate::postgres) version: u32,
    /// The database declares no encoding: `server_encoding` is SQL_ASCII.
    pub(in crate::postgres) without_encoding: bool,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::postgres) enum Kind {
    /// Replication commands.
    Replication,
    /// SQL.
    Sql,
}

/// Starts the session and authenticates.
pub(in crate::postgres) async fn start(
    channel: &mut Channel,
    options: &ConnectOptions,
    server: &Server,
    kind: Kind,
) -> Result<Greeting> {
    let own = [
        ("user", options.user.as_str()),
        ("database", options.dbname.as_str()),
        ("application_name", options.application_name.as_str()),
    ];
    let replication = (kind == Kind::Replication).then_some(("replication", "database"));
    let command_line = options.options.as_deref().map(|text| ("options", text));
    let parameters = own.into_iter().chain(replication).chain(command_line).chain(PINNED);
    channel.queue_message(|out| frontend::startup_message(parameters, out))?;
    channel.flush().await?;
    authenticate(channel, options, server).await?;
    let mut greeting = Greeting::default();
    loop {
        match channel.expect(Phase::Connecting).await? {
            Message::ParameterStatus(body) if matches!(body.name(), Ok("server_version")) => {
                greeting.version = body.value().map_or(0, version_number);
            }
            Message::ParameterStatus(body) if matches!(body.name(), Ok("server_encoding")) => {
                greeting.without_encoding = matches!(body.value(), Ok("SQL_ASCII"));
            }
            Message::ParameterStatus(_) | Message::BackendKeyData(_) => {}
            Message::ReadyForQuery(_) => return Ok(greeting),
            _ => return Err(Error::Protocol("a message out of place after authentication".into())),
        }
    }
}

/// `server_version_num` of a `server_version` such as `15.18 (Debian 15.18-1)` or `19devel`.
fn version_number(text: &str) -> u32 {
    let number = |text: &str| {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        (text[..digits].parse::<u32>().unwrap_or(0), digits)
    };
    let (major, digits) = number(text);
    let minor = text[digits..].strip_prefix('.').map_or(0, |rest| number(rest).0);
    major.saturating_mul(10_000).saturating_add(minor)
}

async fn authenticate(channel: &mut Channel, options: &ConnectOptions, server: &Server) -> Result<()> {
    let failed = |problem: &str| Error::Authentication {
        server: server.to_string(),
        user: options.user.clone(),
        problem: problem.into(),
    };
    let password =
        || options.password_for(&server.spec).ok_or_else(|| failed("the server asks for a password and none is given"));
    let unbound = || match options.channel_binding {
        ChannelBinding::Require => Err(failed("channel binding is required and the server did not use it")),
        ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
    };
    match channel.expect(Phase::Connecting).await? {
        Message::AuthenticationOk => return unbound(),
        Message::AuthenticationCleartextPassword => {
            unbound()?;
            let password = password()?;
            channel.queue_message(|out| frontend::password_message(password.as_bytes(), out))?;
        }
        Message::AuthenticationMd5Password(body) => {
            unbound()?;
            let hash = md5_hash(options.user.as_bytes(), password()?.as_bytes(), body.salt());
            channel.queue_message(|out| frontend::password_message(hash.as_bytes(), out))?;
        }
        Message::AuthenticationSasl(body) => {
            let password = password()?;
            if !scram(channel, &body, password.as_bytes(), options.channel_binding, &failed).await? {
                unbound()?;
            }
        }
        _ => return Err(failed("the server wants a method that walcast does not know (GSSAPI, SSPI ...)")),
    }
    channel.flush().await?;
    match channel.expect(Phase::Connecting).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(failed("the server did not finish the exchange")),
    }
}

/// SCRAM-SHA-256, bound to the TLS session where both sides can; whether it was. The server's proof is checked.
async fn scram(
    channel: &mut Channel,
    offer: &AuthenticationSaslBody,
    password: &[u8],
    binding: ChannelBinding,
    failed: &impl Fn(&str) -> Error,
) -> Result<bool> {
    let offered: Vec<&str> =
        offer.mechanisms().collect().map_err(|_| Error::Protocol("the list of SASL mechanisms".into()))?;
    let end_point = channel.end_point().filter(|_| binding != ChannelBinding::Disable);
    let plus = offered.contains(&sasl::SCRAM_SHA_256_PLUS);
    if !plus && !offered.contains(&sasl::SCRAM_SHA_256) {
        return Err(failed("the server offers no SASL mechanism that walcast knows"));
    }
    let (mechanism, data) = match end_point {
        Some(hash) if plus => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash)),
        Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    let bound = mechanism == sasl::SCRAM_SHA_256_PLUS;
    if !bound && binding == ChannelBinding::Require {
        return Err(failed("channel binding is required and not possible with this server or certificate"));
    }
    let wrong = |error: std::io::Error| failed(&format!("SCRAM: {error}"));
    let mut exchange = ScramSha256::new(password, data);
    channel.queue_message(|out| frontend::sasl_initial_response(mechanism, exchange.message(), out))?;
    channel.flush().await?;
    let Message::AuthenticationSaslContinue(body) = channel.expect(Phase::Connecting).await? else {
        return Err(failed("the server broke off the SCRAM exchange"));
    };
    exchange.update(body.data()).map_err(wrong)?;
    channel.queue_message(|out| frontend::sasl_response(exchange.message(), out))?;
    channel.flush().await?;
    let Message::AuthenticationSaslFinal(body) = channel.expect(Phase::Connecting).await? else {
        return Err(failed("the server broke off the SCRAM exchange"));
    };
    exchange.finish(body.data()).map_err(wrong)?;
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_texts() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("18.4", 180_004),
            ("19devel", 190_000),
            ("18beta2", 180_000),
            ("", 0),
            ("x", 0),
        ] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }
}
