//! Rounds driven to their ends: a real Postgres, real gRPC to agents that follow a script, a bucket in memory whose answers can be lost.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't be set up has failed")]

mod activation;
mod agent;
mod bad_rows;
mod budget;
mod claims;
mod pins;
mod pull;
mod push;
mod ready;
mod replicas;
mod requests;
mod rig;
mod silence;
