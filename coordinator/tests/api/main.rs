//! The coordinator's API against a real Postgres and a real S3 server, and the binary's refusals.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking; outside of test functions too")]

mod agents;
mod binary;
mod checkpoints;
mod database;
mod harness;
mod pipelines;
mod refusals;
mod rounds;
mod serving;
