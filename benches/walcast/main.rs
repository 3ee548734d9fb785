//! Benchmarks that put every figure beside its peer in the same run: `make bench`, `make bench-quick`, or
//! `cargo bench --bench walcast -- [--quick] [SUITE ...]`. docs/benchmarks.md says what is measured and why.

mod client;
mod events;
mod guarantees;
mod h2;
mod harness;
mod naive;
mod pgoutput;
mod proc;
mod rawtcp;
mod report;
mod shared;
mod stage;
mod suites;

use suites::Suites;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.first().map(String::as_str) {
        Some("client") => return client::main(&args[1]),
        Some("raw") => return rawtcp::main(&args[1]),
        Some("stamps") => return rawtcp::stamps(&args[1]),
        Some("naive") => return naive::main(&args[1]),
        _ => {}
    }
    let (flags, names): (Vec<&str>, Vec<&str>) = args.iter().map(String::as_str).partition(|arg| arg.starts_with('-'));
    let quick = flags.contains(&"--quick");
    if flags.iter().any(|flag| *flag != "--quick") || names.iter().any(|name| !suites::NAMES.contains(name)) {
        eprintln!("usage: cargo bench --bench walcast -- [--quick] [SUITE ...]\nsuites: {}", suites::NAMES.join(" "));
        std::process::exit(if flags.iter().any(|flag| matches!(*flag, "-h" | "--help")) { 0 } else { 2 });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    runtime.block_on(async {
        Suites::new(quick).await.run(&names).await;
    });
}
