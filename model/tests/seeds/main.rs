//! The seeded simulation: invariants hold in every seed, every class of fault is met, and planted bugs are caught.
#![expect(clippy::unwrap_used, reason = "a test's own threads")]

mod bugs;
mod replay;
mod report;
mod sweep;
