//! What measures Lockstep: two programs and what they share.
//!
//! - `lockstep-bench` moves files, beside other movers: wall time, CPU, memory, requests of an agent. Its modules are the binary's own.
//! - `lockstep-load` ([`load`]) puts a coordinator under many pipelines with simulated agents: what coordination costs.
//!
//! Shared: [`child`] starts servers and ends them, [`proc`] looks at them from outside, [`access`] names who may use the S3 server.

pub mod access;
pub mod child;
pub mod load;
pub mod proc;
