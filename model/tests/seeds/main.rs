//! The seeded simulation: invariants hold in every seed, every class of fault is met, and planted bugs are caught.
mod bugs;
mod replay;
mod report;
mod sweep;
