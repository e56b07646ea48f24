//! Rounds driven to their ends: a real Postgres, real gRPC to agents that follow a script, a bucket in memory whose answers can be lost.

#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

mod agent;
mod claims;
mod pull;
mod push;
mod replicas;
mod requests;
mod rig;
mod silence;
