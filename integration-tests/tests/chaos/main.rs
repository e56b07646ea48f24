//! Chaos: real processes, real servers, random faults from a seed, and an auditor with code of its own that looks at what is left.
//!
//! `LOCKSTEP_FAULTS=2000` says how many faults (`make chaos`), `LOCKSTEP_SEED=7` replays the faults of seed 7, as near as clocks and processes allow. A run that
//! breaks a promise prints its seed and keeps everything on the disk.
//!
//! - `schedule`: what a seed says
//! - `world`: processes and servers; `keeper`: keeps one of them running
//! - `strike`: faults, carried out
//! - `crew`: who uses a pipeline meanwhile; `engine`: makes its checkpoints
//! - `run`: one run, `report`: its figures
//! - `story`: a longer life, with retention and a standby that goes on when its primary is lost
//! - `auditor`: the auditor finds nothing in a sound system, and finds each thing that is broken on purpose
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests: what fails here fails the test, with the cause")]

mod auditor;
mod crew;
mod engine;
mod keeper;
mod report;
mod run;
mod schedule;
mod story;
mod strike;
mod world;

use std::{env, str::FromStr};

/// Of `make test`, so that it can't rot; CI and people ask for more.
const FAULTS: usize = 3;

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_stops_or_is_lost_everything_ends_works_again_and_is_true() {
    let seed = from_env("LOCKSTEP_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let report = run::run(seed, from_env("LOCKSTEP_FAULTS").unwrap_or(FAULTS)).await;
    println!("{report}");
}
