//! `walcast serve`: settings from everywhere, then the hub until a signal.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use super::{advice, args::ServeArgs, error::Error, signals};
use crate::{
    app,
    config::{self, Config, Log, LogFormat, Override},
};

pub async fn run(args: &ServeArgs) -> Result<(), Error> {
    let config = Config::load(args.config.as_deref(), |name| std::env::var(name).ok(), &overrides(args)?)?;
    log(&config.log)?;
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in config::unknown_variables(names, &NO_SETTINGS) {
        tracing::warn!(name, "no setting has this variable: walcast.example.toml names those that there are");
    }
    let drain = signals::drain_on_signal()?;
    app::serve(config, drain).await.map_err(|error| advice::hub(&error))
}

/// Variables of the commands that are not settings of the hub.
const NO_SETTINGS: [&str; 9] = [
    "WALCAST_CONFIG",
    "WALCAST_HUB",
    "WALCAST_TOKEN",
    "WALCAST_TOKEN_FILE",
    "WALCAST_CA",
    "WALCAST_CERT",
    "WALCAST_KEY",
    "WALCAST_TLS_NAME",
    "WALCAST_PG_BIN",
];

/// The flags that were given, as settings.
fn overrides(args: &ServeArgs) -> Result<Vec<Override>, Error> {
    let on = |given: bool| given.then(|| "true".to_owned());
    let schemas = (!args.schemas.is_empty()).then(|| args.schemas.join(","));
    let web_origins = (!args.web_origins.is_empty()).then(|| args.web_origins.join(","));
    let named = [
        ("source.dsn", "--dsn", args.dsn.clone()),
        ("source.slot", "--slot", args.slot.clone()),
        ("source.publication", "--publication", args.publication.clone()),
        ("source.create_publication", "--create-publication", on(args.create_publication)),
        ("source.schemas", "--schema", schemas),
        ("journal.data_dir", "--data-dir", args.data_dir.clone()),
        ("journal.retain_bytes", "--retain-bytes", args.retain_bytes.clone()),
        ("journal.retain_age", "--retain-age", args.retain_age.clone()),
        ("grpc.listen", "--listen", args.listen.clone()),
        ("grpc.tls_cert", "--tls-cert", args.tls_cert.clone()),
        ("grpc.tls_key", "--tls-key", args.tls_key.clone()),
        ("grpc.tls_client_ca", "--tls-client-ca", args.tls_client_ca.clone()),
        ("grpc.tokens_file", "--tokens-file", args.tokens_file.clone()),
        ("journal.eager", "--eager", on(args.eager)),
        ("grpc.web_origins", "--web-origin", web_origins),
        ("grpc.insecure", "--insecure", on(args.insecure)),
        ("http.listen", "--http", args.http.clone()),
        ("log.format", "--log-format", args.log_format.clone()),
        ("log.filter", "--log", args.log.clone()),
    ];
    let mut overrides: Vec<Override> = named
        .into_iter()
        .filter_map(|(key, flag, value)| Some(Override { key: key.to_owned(), value: value?, flag: flag.to_owned() }))
        .collect();
    for set in &args.set {
        let Some((key, value)) = set.split_once('=') else {
            return Err(Error::Usage(format!("--set {set}: expected section.key=value")));
        };
        overrides.push(Override { key: key.trim().to_owned(), value: value.to_owned(), flag: "--set".to_owned() });
    }
    Ok(overrides)
}

/// Installs the process's log, on stderr.
pub fn log(log: &Log) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| Error::Usage(error.to_string()))?;
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    let installed = match log.format {
        LogFormat::Pretty => builder.try_init(),
        LogFormat::Compact => builder.compact().without_time().with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| Error::Failed(format!("the log cannot be installed: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        cli::args::{Cli, Command},
        config::SETTINGS,
    };

    fn serve(args: &[&str]) -> ServeArgs {
        let cli = Cli::try_parse_from(["walcast", "serve"].iter().chain(args)).expect("parses");
        let Command::Serve(args) = cli.command else { panic!("another command") };
        args
    }

    #[test]
    fn flags_become_settings() {
        let args = serve(&[
            "--dsn",
            "postgres://x/y",
            "--create-publication",
            "--schema",
            "a",
            "--schema",
            "b",
            "--listen",
            "127.0.0.1:7",
            "--set",
            "limits.streams=5",
        ]);
        let env = |name: &str| (name == "WALCAST_DSN_FILE").then(|| "/nowhere".to_owned());
        let config = Config::load(None, env, &overrides(&args).expect("overrides")).expect("valid");
        assert_eq!(config.source.dsn.expose(), "postgres://x/y");
        assert!(config.source.create_publication);
        assert_eq!(config.source.schemas, ["a", "b"]);
        assert_eq!((config.grpc.listen.port(), config.limits.streams), (7, 5));
    }

    #[test]
    fn help_names_the_environment_and_default_of_every_flag() {
        let help = <Cli as clap::CommandFactory>::command()
            .find_subcommand_mut("serve")
            .map(|serve| serve.clone().term_width(1000).render_help().to_string())
            .expect("serve");
        let every = serve(&[
            "--dsn",
            "x",
            "--slot",
            "x",
            "--publication",
            "x",
            "--create-publication",
            "--schema",
            "x",
            "--data-dir",
            "x",
            "--retain-bytes",
            "x",
            "--retain-age",
            "x",
            "--listen",
            "x",
            "--http",
            "x",
            "--tls-cert",
            "x",
            "--tls-key",
            "x",
            "--tls-client-ca",
            "x",
            "--tokens-file",
            "x",
            "--eager",
            "--web-origin",
            "x",
            "--insecure",
            "--log-format",
            "x",
            "--log",
            "x",
        ]);
        for setting in overrides(&every).expect("overrides") {
            let Some(known) = SETTINGS.iter().find(|known| known.key == setting.key) else {
                panic!("{} is no setting", setting.key)
            };
            let default = known.default.trim_matches('"');
            let line = help
                .lines()
                .find(|line| line.contains(&format!("{} ", setting.flag)) || line.trim_end().ends_with(&setting.flag));
            let line = line.unwrap_or_else(|| panic!("{} is not in the help", setting.flag));
            assert!(line.contains(&format!("[env: {}=]", known.env)), "{line}");
            if !matches!(default, "" | "[]" | "false") {
                assert!(line.contains(&format!("[default: {default}]")), "{line}");
            }
        }
    }
}
