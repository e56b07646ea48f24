//! The production coordinator, simulated: replicas, agents, bucket and database in one thread, under a clock that stands still until everything waits.
//!
//! All that is left to chance follows from a seed, so a run can be had again, with its log:
//! `LOCKSTEP_SEED=17 cargo test --workspace --test simulation dispatch -- --nocapture`. docs/reliability/simulation.md says what is simulated and what is checked.

#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

mod agent;
mod bucket;
mod check;
mod damage;
mod dispatch;
mod fail_back;
mod figures;
mod gate;
mod log;
mod network;
mod pins;
mod planted;
mod restore;
mod retirer;
mod rival;
mod schedule;
mod story;
mod told;
mod weather;
mod wire;
mod world;

/// A number from the environment.
fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap())
}
