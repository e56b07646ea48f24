//! The protocol put to the proof: a breadth-first explorer, and worlds around the *production* decisions of `lockstep-protocol` for it to explore.
//!
//! - [`explore`]: every reachable state of a bounded world, the shortest trace to a violation, and whether the goal stays reachable
//! - [`rounds`]: push and pull rounds

pub mod explore;
pub mod rounds;
