//! Places at which a test lets a process die, stop, panic or wait: `failpoint::reached(Point::CommitBeforePut)`.
//!
//! A process that is started with `LOCKSTEP_FAILPOINTS="commit.before_put=kill;round.claimed=stop@2"` does so when it comes there the first (or second) time: see
//! [`Plan`] for the grammar. In builds without debug assertions [`reached`] is an empty function, nothing here reads the environment, and no process can be told to
//! die. No cargo feature switches this, because a feature that is on in one build and off in another builds everything twice (docs/adr/0013-own-failpoints.md).
//!
//! A place can't be misspelt, and none exists that is not listed: they are the variants of [`Point`]. The other way round, that each listed one is
//! reached, is shown by the test binary `failpoints` of the integration tests, which goes through [`Point::ALL`].
#![forbid(unsafe_code)]

mod plan;
mod point;
#[cfg(debug_assertions)]
mod switch;

pub use plan::{Action, Order, Plan, PlanError};
pub use point::{Point, Process};
#[cfg(debug_assertions)]
pub use switch::reached;

/// Environment variable with a [`Plan`].
pub const VARIABLE: &str = "LOCKSTEP_FAILPOINTS";

/// Nothing, in a build without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn reached(_: Point) {}
