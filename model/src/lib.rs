//! The protocol put to the proof: a breadth-first explorer, and worlds around the *production* decisions of `lockstep-protocol` for it to explore.
//!
//! - [`explore`]: every reachable state of a bounded world, the shortest trace to a violation, and whether the goal stays reachable
//! - [`rounds`]: push and pull rounds
//! - [`takeover`]: fences, their bases, take-overs and readers

pub mod explore;
mod interned;
pub mod rounds;
pub mod takeover;
