//! kill -9 of agents, and now and then of the coordinator, at random points of pushes and pulls: every round ends as it was asked to, with identical
//! files on every host, nothing in staging and no upload of a living process open.
//!
//! Each run follows from its seed, which a failure prints. `LOCKSTEP_SEED=7` replays the run of seed 7, as near as clocks allow, `LOCKSTEP_RUNS=100` makes a
//! hundred runs (two deaths each), and `LOCKSTEP_LANES` says how many run at a time.
//!
//! - `plan`: what a seed says
//! - `lane`: the processes
//! - `run`: one run
#![expect(clippy::expect_used, reason = "tests: what fails here fails the test, with the cause")]

mod lane;
mod plan;
mod run;

use std::{
    env,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use futures::FutureExt as _;

use lane::Lane;
use plan::Plan;
use run::Outcome;

/// Runs of `make test`; `.ci/run` asks for more.
const RUNS: usize = 12;
const LANES: usize = 4;

fn from_env<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn seeds() -> Vec<u64> {
    match from_env("LOCKSTEP_SEED") {
        Some(seed) => vec![seed],
        None => {
            let runs = from_env("LOCKSTEP_RUNS").unwrap_or(RUNS);
            (0..runs).map(|_| u64::from(rand::random::<u32>())).collect()
        }
    }
}

#[derive(Debug, Default)]
struct Results {
    good: Vec<Outcome>,
    bad: Vec<u64>,
}

async fn follow(seeds: &[u64], next: &AtomicUsize, results: &Mutex<Results>) {
    let mut lane = Lane::open().await;
    while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
        let plan = Plan::of(seed);
        let began = Instant::now();
        let outcome = AssertUnwindSafe(run::run(&mut lane, &plan)).catch_unwind().await;
        let failed = match outcome {
            Ok(outcome) => {
                println!("seed {seed}: {:.1} s, {outcome:?}", began.elapsed().as_secs_f64());
                results.lock().expect("nobody panics with it").good.push(outcome);
                false
            }
            Err(_) => {
                println!("seed {seed} FAILED: {plan:?}\n{}", lane.logs());
                results.lock().expect("nobody panics with it").bad.push(seed);
                true
            }
        };
        if failed {
            // What a failed run leaves behind is nobody else's trouble.
            lane = Lane::open().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_and_pulls_that_are_killed_at_random_points_end_in_identical_files() {
    let seeds: Arc<[u64]> = seeds().into();
    let lanes = from_env("LOCKSTEP_LANES").unwrap_or(LANES).min(seeds.len());
    let (next, results, began) = (AtomicUsize::new(0), Mutex::new(Results::default()), Instant::now());
    futures::future::join_all((0..lanes).map(|_| follow(&seeds, &next, &results))).await;
    let Results { good, bad } = results.into_inner().expect("nobody panics with it");
    let replay = "replay one with LOCKSTEP_SEED=<seed> cargo test --workspace --test kill -- --nocapture";
    assert!(bad.is_empty(), "{} of {} runs failed, seeds {bad:?}: {replay}", bad.len(), seeds.len());
    let deaths: Vec<_> = good.iter().flat_map(|run| [run.push, run.pull]).filter(|death| death.agent).collect();
    let middle = deaths.iter().filter(|death| death.in_the_middle).count();
    let orphans: usize = good.iter().map(|run| run.orphaned_uploads).sum();
    println!(
        "{} runs in {:.0} s: {} agents killed, {middle} of them in the middle of their transfer; {orphans} uploads left open by the dead",
        good.len(),
        began.elapsed().as_secs_f64(),
        deaths.len()
    );
    // Of a few runs nothing follows.
    if seeds.len() >= 8 {
        assert!(middle * 10 >= deaths.len() * 6, "only {middle} of {} deaths hit a transfer", deaths.len());
    }
}
