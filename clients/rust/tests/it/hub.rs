//! Against a real PostgreSQL and a real hub; scripts/test.sh says so where there is none.

use std::{env, path::PathBuf, process::Command};

#[test]
fn the_conformance_scenario() {
    if env::var("WALCAST_BIN").is_err() {
        eprintln!("left out: WALCAST_BIN is not set");
        return;
    }
    let deps = env::current_exe().unwrap();
    let runner: PathBuf = deps.ancestors().nth(2).unwrap().join("examples/conformance_runner");
    let arguments = ["../conformance/run.py", "--runner", runner.to_str().unwrap()];
    let status = Command::new("python3").args(arguments).status().expect("python3");
    assert!(status.success(), "{status}");
}
