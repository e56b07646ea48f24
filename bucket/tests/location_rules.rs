//! Decisions, fences, the catalog and verification against the twin in memory, with and without faults.

#![expect(clippy::unwrap_used, reason = "fixtures of tests may panic")]

#[path = "location/catalog.rs"]
mod catalog;
#[path = "location/decisions.rs"]
mod decisions;
#[path = "location/fences.rs"]
mod fences;
#[path = "location/insist.rs"]
mod insist;
#[path = "location/probes.rs"]
mod probes;
#[path = "location/sample.rs"]
mod sample;
#[path = "location/simulation.rs"]
mod simulation;
#[path = "location/unreadable.rs"]
mod unreadable;
#[path = "location/verification.rs"]
mod verification;
