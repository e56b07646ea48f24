//! The pure protocol, tried with tables and with random input. Proptest prints the seed of a failure and replays it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests: a failed expectation is a failed test")]

mod deltas;
mod documents;
mod errors;
mod errors_page;
mod garbage;
mod keys;
mod looks;
mod lost_manifests;
mod orders;
mod retired_sources;
mod reuse;
mod rounds;
mod sample;
mod schedules;
mod selection;
mod specs;
mod standbys;
mod starts;
mod takeovers;
