//! Cases over clusters: several lanes, each with a cluster of its own, take one case after the other.

use std::{
    collections::VecDeque,
    env,
    fmt::Display,
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt as _;

/// What cases run on, one at a time.
pub(crate) trait Lane: Sized {
    type Case: Display + Sync;

    /// A new cluster for this case and those like it.
    fn open(case: &Self::Case) -> impl Future<Output = Self>;

    /// Whether a case can run here.
    fn fits(&self, case: &Self::Case) -> bool;

    /// Runs a case; how it ended. Goes wrong with a panic.
    fn run(&mut self, case: &Self::Case) -> impl Future<Output = Outcome>;
}

/// How a case ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// In a few words.
    pub(crate) end: String,
    /// From the death to the end of the round.
    pub(crate) recovery: Duration,
}

/// Lanes at a time: cases mostly wait for leases and processes.
const LANES: usize = 6;

/// Runs all cases, prints a line each, and fails with those that failed.
pub(crate) async fn go_through<L: Lane>(what: &str, cases: Vec<L::Case>) {
    let only = env::var("LOCKSTEP_FAILPOINTS_CASE").unwrap_or_default();
    let cases: VecDeque<L::Case> = cases.into_iter().filter(|case| case.to_string().contains(&only)).collect();
    let (all, began) = (cases.len(), Instant::now());
    let lanes = number("LOCKSTEP_LANES").unwrap_or(LANES).min(all.max(1));
    let (cases, bad, times) = (Mutex::new(cases), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let follow = || async {
        let mut lane: Option<L> = None;
        loop {
            let Some(case) = next(&cases, lane.as_ref()) else { return };
            let began = Instant::now();
            let run = async {
                let mut here = match lane.take().filter(|lane| lane.fits(&case)) {
                    Some(lane) => lane,
                    None => L::open(&case).await,
                };
                let outcome = here.run(&case).await;
                (here, outcome)
            };
            let seconds = || began.elapsed().as_secs_f64();
            match AssertUnwindSafe(run).catch_unwind().await {
                Ok((here, outcome)) => {
                    let recovery = outcome.recovery.as_secs_f64();
                    println!("{what} {case}: {}, recovered in {recovery:.2} s ({:.1} s)", outcome.end, seconds());
                    locked(&times).push(outcome.recovery);
                    lane = Some(here);
                }
                // What a failed case leaves behind is nobody else's trouble: its lane is gone.
                Err(_) => {
                    println!("{what} {case}: FAILED ({:.1} s)", seconds());
                    locked(&bad).push(case.to_string());
                }
            }
        }
    };
    futures::future::join_all((0..lanes).map(|_| follow())).await;
    let (bad, mut times) = (locked(&bad).clone(), locked(&times).clone());
    times.sort();
    let share = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default().as_secs_f64();
    println!(
        "{what}: {all} cases in {:.0} s; recovery p50 {:.2} s, p99 {:.2} s, longest {:.2} s",
        began.elapsed().as_secs_f64(),
        share(50),
        share(99),
        times.last().copied().unwrap_or_default().as_secs_f64()
    );
    assert!(
        bad.is_empty(),
        "{} of {all} cases failed: {bad:?}; run one with LOCKSTEP_FAILPOINTS_CASE=<name>",
        bad.len()
    );
}

/// One that fits where it is to run, if there is one.
fn next<L: Lane>(cases: &Mutex<VecDeque<L::Case>>, lane: Option<&L>) -> Option<L::Case> {
    let mut cases = locked(cases);
    let fitting = lane.and_then(|lane| cases.iter().position(|case| lane.fits(case)));
    cases.remove(fitting.unwrap_or_default())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number from the environment.
pub(crate) fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Whether everything runs, or what fits into `make test`.
pub(crate) fn everything() -> bool {
    env::var("LOCKSTEP_FAILPOINTS_ALL").is_ok_and(|value| value == "1")
}
