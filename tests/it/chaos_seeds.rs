//! Random failovers by the seed, several at a time.
//!
//! `WALCAST_CHAOS_SEEDS` is how many seeds, `WALCAST_TEST_SEED` the first one, `WALCAST_CHAOS_PARALLEL` how many at a time.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    chaos::{Course, Family, Went},
    harness::{versions, workload::Report},
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs each of the courses on a thread with a runtime of its own. Panics with all that failed.
fn run(courses: &[Course]) {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let went = Mutex::new((Report::default(), BTreeMap::<&str, u32>::new()));
    let parallel = number("WALCAST_CHAOS_PARALLEL").unwrap_or(3) as usize;
    std::thread::scope(|scope| {
        for _ in 0..parallel.min(courses.len()) {
            scope.spawn(|| {
                while let Some(course) = courses.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    match outcome(course) {
                        Ok(ended) => {
                            let mut went = went.lock().expect("reports");
                            went.0 = went.0 + ended.report;
                            ended.aborted.into_iter().for_each(|place| *went.1.entry(place).or_default() += 1);
                        }
                        Err(why) => failed.lock().expect("failures").push(format!("{course:?}\n{why}")),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("failures");
    let again = "repeat with WALCAST_TEST_SEED=<seed> WALCAST_CHAOS_SEEDS=1 and the name of this test";
    assert!(failed.is_empty(), "{} of {} failed; {again}\n{}", failed.len(), courses.len(), failed.join("\n\n"));
    let (report, aborted) = went.into_inner().expect("reports");
    println!("{} courses: {report:?}; killed at {aborted:?}", courses.len());
    assert!(courses.len() < 10 || report.has_everything(), "something was never tried: {report:?}");
}

/// How a course ended: with the message of its panic, if there was one.
pub fn outcome(course: &Course) -> Result<Went, String> {
    let course = course.clone();
    let ended = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(course.run())
    });
    ended.join().map_err(|panic| match panic.downcast_ref::<String>() {
        Some(text) => text.clone(),
        None => panic.downcast_ref::<&str>().map_or_else(|| "a panic".to_owned(), |text| (*text).to_owned()),
    })
}

fn seeds(versions: &[u32], family: Family, default: u64) {
    let mut courses = Vec::new();
    for major in versions {
        let first = number("WALCAST_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
        let seeds = first..first + number("WALCAST_CHAOS_SEEDS").unwrap_or(default);
        courses.extend(seeds.map(|seed| Course::random(seed, *major, family)));
    }
    run(&courses);
}

fn matrix() -> Vec<u32> {
    versions::matrix().into_iter().filter(|major| *major >= 17).collect()
}

#[test]
fn chaos_with_the_slot_copied() {
    seeds(&[versions::default_major()], Family::Copied, 10);
}

#[test]
fn chaos_with_log_tables() {
    seeds(&[versions::default_major()], Family::LogTables, 10);
}

#[test]
fn chaos_with_synchronized_slots_on_every_version_of_the_matrix() {
    seeds(&matrix(), Family::Synced, 3);
}

#[test]
fn chaos_with_log_tables_on_every_version_of_the_matrix() {
    seeds(&matrix(), Family::LogTables, 3);
}
