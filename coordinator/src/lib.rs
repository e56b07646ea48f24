//! The coordinator: keeps each pipeline's push and pull rounds as a persisted state machine in Postgres and drives them.
//!
//! A round moves like this: load, `lockstep_protocol::round::decide`, one guarded transaction, commit, and only then the effects; what comes of
//! them are the next events. Any number of replicas run over one database. None is special: whoever claims a round raises its `term`, and
//! every write repeats version and term.
//!
//! Inside, dependencies point one way: [`store`] (all SQL) ← [`dispatch`] (drives what was admitted) ← [`app`] (the process). [`api`] answers callers
//! from [`store`] and from reads of agents and bucket ([`plan`]); it never drives anything itself: what writes S3 is a row that [`dispatch`]
//! picks up, so that it survives the crash of the replica that was asked.
//!
//! Generated proto types stop at [`convert`].

pub mod agents;
pub mod api;
pub mod app;
pub mod chance;
pub mod config;
pub mod convert;
pub mod dispatch;
pub mod plan;
pub mod store;
