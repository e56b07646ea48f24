//! The client a pipeline manager uses to talk to a Lockstep coordinator.
//!
//! ```no_run
//! use lockstep_client::{ClientError, LockstepClient, v1};
//!
//! # async fn run() -> Result<(), ClientError> {
//! let client = LockstepClient::builder("http://lockstep:7400").actor("orders-manager").connect()?;
//! let push = v1::StartPushRequest { pipeline: "orders".into(), ..Default::default() };
//! let admitted = client.start_push(push).await?;
//! let round = client.wait_round(&admitted.id).await?;
//! println!("{}: {:?} at step {:?}", round.id, round.phase(), round.step);
//! # Ok(())
//! # }
//! ```
//!
//! [`LockstepClient::connect`] does not need the coordinator to be up: the connection is made with the first call and
//! again whenever it was lost. The client is cheap to clone and its clones share one connection. The vocabulary of all
//! calls is the protocol's own, re-exported as [`v1`].
//!
//! # One logical call, however often it is sent
//!
//! A call whose answer was lost may or may not have happened, and is sent again by the [`RetryPolicy`]. That is safe
//! because calls that admit something carry a `request_id`: the client draws a fresh UUID for each logical call where
//! the caller gave none, and sends the same one with each try. A manager that wants to survive its *own* restart stores
//! an id of its own before the call and passes it; the same id always gives the same round.
//!
//! Which errors are worth another try is the coordinator's word ([`Retryable`]): only `yes` and lost connections are.
//! `after_fix` and `no` come back at once. Two reasons are `yes` and still not retried: `ETAG_MISMATCH`, where the very
//! same call can't succeed, and `ROUND_IN_PROGRESS`, which may take an hour; [`RetryPolicy::wait_for_round`] turns the
//! latter into waiting.
//!
//! # Watching
//!
//! [`LockstepClient::watch_round`] is a stream of the round as it is now, then of each change, and ends after a terminal
//! phase. It survives coordinator restarts: it opens the watch again and leaves out what it has shown before (by the
//! round's `version`). [`LockstepClient::wait_round`] is the last item of it. Dropping either changes nothing for the
//! round: it goes on.
//!
//! A round that ended `FAILED` or `CANCELLED` is not an error of these calls: it is their answer. Look at `phase` and
//! `problem`.
//!
//! Modules: `client` (connecting, and how each call is made), `pipelines`, `rounds`, `checkpoints` (the calls), `watch`,
//! `retry`, `error`, `phase` (which phases are final).

mod checkpoints;
mod client;
mod error;
mod phase;
mod pipelines;
mod retry;
mod rounds;
mod upkeep;
mod watch;

pub use checkpoints::Verification;
pub use client::{ACTOR_METADATA, Builder, LockstepClient};
pub use error::ClientError;
pub use lockstep_proto::v1;
pub use lockstep_rpc::{Retryable, RpcProblem};
pub use phase::{is_terminal, succeeded};
pub use retry::RetryPolicy;
pub use watch::RoundWatch;
