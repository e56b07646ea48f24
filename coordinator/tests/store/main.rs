//! The store against a real Postgres: what it promises to callers, replicas and auditors.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't be set up has failed")]

mod admission;
mod another_database;
mod auditors_guide;
mod conformance;
mod cost;
mod dropped;
mod ends;
mod fail_back;
mod failover;
mod ground;
mod guards;
mod limits;
mod location_operations;
mod location_scene;
mod location_writes;
mod losses;
mod lost_answers;
mod operations;
mod pipelines;
mod ready;
mod retirement;
mod rig;
mod take_over_cancels;
mod trail;
mod trouble;
mod verifications;
mod wire;
