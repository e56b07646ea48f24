//! The protocol put to the proof: a breadth-first explorer, and worlds around the *production* decisions of `lockstep-protocol` for it to explore;
//! and a seeded simulation of whole pipelines.
//!
//! - [`explore`]: every reachable state of a bounded world, the shortest trace to a violation, and whether the goal stays reachable
//! - [`rounds`]: push and pull rounds
//! - [`simulate`]: seeded runs of whole pipelines with faults of every class, in virtual time
//! - [`takeover`]: fences, their bases, take-overs and readers

pub mod explore;
mod interned;
pub mod rounds;
pub mod simulate;
pub mod takeover;
