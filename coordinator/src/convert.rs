//! Between generated proto types and the domain's. Nothing else in this crate builds or reads a field of a message that stands for a domain value.
//!
//! - [`status`]: a [`Problem`](lockstep_protocol::problem::Problem) as gRPC status and as message
//! - [`time`]: timestamps and durations
//! - [`pipeline`]: specs and locations, [`update`]: update masks
//! - [`round`], [`checkpoint`], [`audit`], [`standby`], [`ready`]: what callers are shown
//! - [`agent`]: orders to agents and their answers

pub mod agent;
pub mod audit;
pub mod checkpoint;
pub mod pipeline;
pub mod ready;
pub mod round;
pub mod standby;
pub mod status;
pub mod time;
pub mod update;
pub mod upkeep;
