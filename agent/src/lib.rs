//! Pushes and pulls the checkpoints of one host as a coordinator orders. A library that an engine embeds, and the sidecar `lockstep-agent`.
//!
//! ```no_run
//! use std::sync::Arc;
//! use lockstep_agent::{Agent, store::{CheckpointStore, directory::DirectoryStore}};
//!
//! # fn main() -> Result<(), lockstep_protocol::problem::Problem> {
//! let store: Arc<dyn CheckpointStore> = Arc::new(DirectoryStore::open("/var/lib/engine")?);
//! let agent = Agent::builder("orders".parse()?, Agent::slot(0, 3)?, store)
//!     .allow("s3://acme-ckpt/orders?region=eu-west-1".parse()?)
//!     .listen(([0, 0, 0, 0], 7402).into())
//!     .start()?;
//! println!("orders are taken on {}", agent.addr());
//! // ... the engine runs ...
//! agent.shutdown();
//! # Ok(())
//! # }
//! ```
//!
//! An agent does nothing by itself, but where nobody coordinates it: [`AgentHandle::sync`], [`AgentHandle::pull_at_start`]. An order is compared with what the agent was started with and with the highest order it has accepted,
//! before S3 or the disk is touched; then it runs as the one transfer of this agent, in the background, and status calls tell how it goes.
//! A failure, a panic in the engine's [`store::CheckpointStore`] included, is a state of the transfer and never the end of the process.
//!
//! Everything runs on threads named `lockstep-agent*`, at low priority: hashing must not starve the engine. Memory is bounded by
//! [`TransferLimits::memory`], whatever the size of a checkpoint.
//!
//! Modules: [`store`] (what an engine implements, and two implementations), [`agent`] (builder and handle), [`args`], [`wait`] and [`allocator`] (flags and memory of the sidecar);
//! inside `service` and `convert` (gRPC), `admission` (order checks, status, cancel), `marks` (highest order on disk), `register` (the one transfer and its
//! state), `core` (runs a transfer to its end), `work` (what a transfer may use and how it stops), `blocks` (its memory), `window` (its
//! requests in flight), `remote` (a location as a transfer uses it), `tree` (digests of pieces), `digests` (of files that were hashed before), `push`, `pull`, `install`, `ready` (what the engine was told); without a coordinator `alone`, `sync`, `start`; and
//! `progress`, `space`, `durable`.
//!
//! Metrics: `lockstep_agent_transfers_total{kind,outcome}`, `lockstep_agent_transfers_running{kind}`,
//! `lockstep_agent_transferred_bytes_total{kind}`, `lockstep_agent_transfer_duration_seconds{kind}`, `lockstep_agent_request_retries_total`,
//! `lockstep_agent_ready_hooks_total{outcome}`.

mod admission;
pub mod agent;
pub mod allocator;
mod alone;
pub mod args;
mod blocks;
mod convert;
mod core;
mod digests;
mod durable;
mod install;
mod marks;
mod order;
mod progress;
mod pull;
mod push;
mod ready;
mod register;
mod remote;
mod service;
mod space;
mod start;
pub mod store;
mod sync;
mod tree;
pub mod wait;
mod window;
mod work;

pub use agent::{Agent, AgentBuilder, AgentHandle};
pub use lockstep_protocol::ready::{Role, Word};
pub use order::TransferLimits;
pub use start::Started;

/// The example of the embedding guide is compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/embedding.md")]
struct EmbeddingGuide;
