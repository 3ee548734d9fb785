//! The real binary's other commands, run to their end.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use super::process::{self, Account};

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }
}

/// Runs `walcast` with these arguments and these variables; no variable of walcast or libpq is inherited.
pub fn walcast(args: &[&str], env: &[(&str, &str)]) -> Outcome {
    run(Path::new(env!("CARGO_BIN_EXE_walcast")), args, env)
}

/// The same for any program.
pub fn run(program: &Path, args: &[&str], env: &[(&str, &str)]) -> Outcome {
    let mut command = process::command(program, Account::Own, "KILL");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WALCAST_") || name.starts_with("PG")) {
        command.env_remove(name);
    }
    command.args(args).envs(env.iter().copied()).current_dir(process::scratch());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::spawn(command).and_then(Child::wait_with_output).expect("the command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}
