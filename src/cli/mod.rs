//! The person's side: commands, what they print, and their exit codes: 0 done, 1 failed, 2 wrong usage.

mod advice;
pub mod args;
pub mod client;
mod demo;
#[cfg(test)]
mod docs;
mod doctor;
pub mod error;
mod health;
mod journal;
mod logtables;
pub mod output;
mod parquet;
mod rebase;
mod retracted;
pub mod rows;
mod serve;
mod signals;
mod slot;
mod snapshot;
mod source;
pub mod start;
mod status;
mod subscribers;
pub mod tail;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;

use std::{ffi::OsString, future::Future, process::ExitCode};

use clap::{CommandFactory, Parser};

use self::{
    args::{Cli, Command},
    client::Hub,
    error::{Error, explain},
    output::Output,
};

/// Runs one command line, program name first, and says how it went.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    // Fails only when the process has chosen one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, Error::OutputClosed) {
                let style = anstyle::AnsiColor::Red.on_default().bold();
                anstream::eprintln!("{style}error:{style:#} {}", explain(&error));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: Command) -> Result<(), Error> {
    match command {
        Command::Serve(args) => many_threads(serve::run(&args)),
        Command::Demo(args) => many_threads(demo::run(&args)),
        Command::Tail(args) => one_thread(async {
            let stop = signals::drain_on_signal()?;
            let hub = Hub::named(&args.hub)?;
            tail::run(&hub, &tail::Options::new(&args), &Output::with_status(), &stop).await.map(drop)
        }),
        Command::Snapshot(args) => one_thread(async {
            let stop = signals::drain_on_signal()?;
            snapshot::run(&args, &stop).await
        }),
        Command::Status(args) => one_thread(status::run(&args)),
        Command::Slot(args) => one_thread(slot::run(args.command)),
        Command::Logtables(args) => one_thread(logtables::run(args.command)),
        Command::Subscribers(args) => one_thread(subscribers::run(args.command)),
        Command::Journal(args) => journal::run(args.command),
        Command::Rebase(args) => rebase::run(&args),
        Command::Doctor(args) => one_thread(doctor::run(&args)),
        Command::Health(args) => one_thread(health::run(&args)),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "walcast", &mut script);
            Output::plain().print(&String::from_utf8_lossy(&script))
        }
    }
}

fn one_thread<T>(command: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::io("starting the runtime"))?.block_on(command)
}

fn many_threads<T>(command: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Error::io("starting the runtime"))?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command) {
            let mut leaves = true;
            for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
                leaves = false;
                check(inner);
            }
            if leaves {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(&format!(" {}", command.get_name())), "{} has no example", command.get_name());
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn wrong_usage_is_told_from_success() {
        let code = |args: &[&str]| format!("{:?}", run(args.iter().map(OsString::from)));
        let of = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(&["walcast", "--version"]), of(0));
        assert_eq!(code(&["walcast", "tail", "--from", "soon"]), of(2));
        assert_eq!(code(&["walcast", "tail", "--ack"]), of(2));
        assert_eq!(code(&["walcast", "nonsense"]), of(2));
        assert_eq!(code(&["walcast", "serve", "--dsn", "x", "--set", "a.b=c"]), of(2));
    }
}
