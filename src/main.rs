//! The `walcast` binary.

use std::process::ExitCode;

#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    return_memory();
    walcast::cli::run(std::env::args_os())
}

/// jemalloc gives back what has been free for ten seconds, but looks only when something is allocated: a hub that has nothing
/// more to do would keep what it needed last. A thread of its own
/// [looks then too](https://jemalloc.net/jemalloc.3.html#background_thread).
fn return_memory() {
    #[cfg(not(target_env = "msvc"))]
    let _ = tikv_jemalloc_ctl::background_thread::write(true); // only where the system has no such threads
}
