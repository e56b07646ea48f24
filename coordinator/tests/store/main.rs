//! The store against a real Postgres: what it promises to callers, replicas and auditors.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't be set up has failed")]

mod admission;
mod conformance;
mod cost;
mod dropped;
mod failover;
mod ground;
mod guards;
mod limits;
mod lost_answers;
mod operations;
mod pipelines;
mod ready;
mod retirement;
mod rig;
mod trail;
mod trouble;
mod verifications;
mod wire;
