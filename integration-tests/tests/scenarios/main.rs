//! The scenarios of docs/scenarios.md with real processes: a coordinator, agents, Postgres, an S3 server over TCP. A name begins with the scenario's number
//! and tells the behaviour; tests without a number hold what the protocol says beyond the scenarios.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests: a failed expectation is a failed test")]

mod activation;
mod activation_cancel;
mod activation_damage;
mod asked_again;
mod bad_input;
mod bursts;
mod clocks;
mod coordinator;
mod database_faults;
mod fail_back;
mod fail_over;
mod feldera;
mod files;
mod garbage;
mod garbage_left;
mod identity;
mod increments;
mod limits;
mod lost_checkpoints;
mod no_space;
mod ownership;
mod pair;
mod paused;
mod push_and_restore;
mod ready;
mod replicas;
mod resync;
mod retired_sources;
mod schedule;
mod solo;
mod sources;
mod standby;
mod start_up;
mod store_errors;
mod store_faults;
mod take_over;
mod telemetry;
mod transfers;
mod unreadable;
mod verification;
