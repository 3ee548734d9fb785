//! Against a real PostgreSQL and a real hub; scripts/test.sh says so where there is none.

use std::{env, path::PathBuf, process::Command};

fn example(name: &str) -> String {
    let deps = env::current_exe().unwrap();
    let directory: PathBuf = deps.ancestors().nth(2).unwrap().join("examples");
    directory.join(name).to_str().unwrap().to_owned()
}

fn run(arguments: &[&str]) {
    if env::var("WALCAST_BIN").is_err() {
        eprintln!("left out: WALCAST_BIN is not set");
        return;
    }
    let status = Command::new("python3").args(arguments).status().expect("python3");
    assert!(status.success(), "{arguments:?}");
}

#[test]
fn the_conformance_scenario() {
    run(&["../conformance/run.py", "--runner", &example("conformance_runner")]);
}

#[test]
fn the_quick_start_of_the_readme() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let program = std::fs::read_to_string("examples/quickstart.rs").unwrap();
    let (_, program) = program.split_once("\n\n").unwrap();
    assert!(
        readme.contains(&format!("<!-- tested -->\n```rust\n{program}```")),
        "README.md has examples/quickstart.rs"
    );
    run(&["scripts/quickstart.py", &example("quickstart")]);
}
