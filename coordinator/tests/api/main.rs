//! The coordinator's API against a real Postgres and a real S3 server, and the binary's refusals.

mod agents;
mod binary;
mod checkpoints;
mod harness;
mod pipelines;
mod rounds;
mod serving;
