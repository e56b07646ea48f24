//! The store's own tests of pipelines, rounds and connections once more, through Debian's PgBouncer in transaction mode, and what is different there. Writes about locations take the
//! same way to the database and are tested without it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't be set up has failed")]

#[path = "../store/admission.rs"]
mod admission;
#[path = "../store/cost.rs"]
mod cost;
#[path = "../store/dropped.rs"]
mod dropped;
#[path = "../store/failover.rs"]
mod failover;
mod ground;
#[path = "../store/guards.rs"]
mod guards;
#[path = "../store/limits.rs"]
mod limits;
#[path = "../store/lost_answers.rs"]
mod lost_answers;
#[path = "../store/pipelines.rs"]
mod pipelines;
mod pooler;
#[path = "../store/rig.rs"]
mod rig;
#[path = "../store/trail.rs"]
mod trail;
#[path = "../store/trouble.rs"]
mod trouble;
#[path = "../store/wire.rs"]
mod wire;
