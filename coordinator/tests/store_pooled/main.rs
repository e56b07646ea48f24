//! The store's own tests once more, through Debian's PgBouncer in transaction mode, and what is different there.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't be set up has failed")]

#[path = "../store/admission.rs"]
mod admission;
mod ground;
#[path = "../store/guards.rs"]
mod guards;
#[path = "../store/limits.rs"]
mod limits;
#[path = "../store/pipelines.rs"]
mod pipelines;
mod pooler;
#[path = "../store/rig.rs"]
mod rig;
#[path = "../store/trail.rs"]
mod trail;
#[path = "../store/trouble.rs"]
mod trouble;
