//! A real agent over gRPC and TCP, against the embedded S3 server.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up does not hold")]

mod harness;
mod install;
mod orders;
mod packs;
mod process;
mod pull;
mod pull_packs;
mod pull_trouble;
mod push;
mod push_increments;
mod push_resume;
mod push_sources;
mod ready;
mod start;
mod sync;
mod watched;
