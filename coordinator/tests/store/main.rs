//! The store against a real Postgres: what it promises to callers, replicas and auditors.

mod admission;
mod guards;
mod pipelines;
mod rig;
mod trail;
mod trouble;
