//! The protocol, pure: identifiers, keys, documents, rounds and decisions. No clock, no randomness, no I/O and no logging: `now` and new
//! ids are arguments, and what shall happen comes back as a value.
//!
//! Rules are cited by number (S safety, F fences, G garbage, L liveness, R race); they stand in `docs/protocol.md`.
//!
//! - [`id`], [`host`], [`location`], [`digest`], [`key`]: what things are called; impossible values can't be built
//! - [`problem`]: the one error table
//! - [`manifest`], [`commit`], [`fence`], [`tombstone`], [`damage`], [`pin`]: the documents in S3, parsed strictly because their bytes may be hostile
//! - [`takeover`]: taking a location over as `decide(take_over, event) -> Decision`; [`finish`]: the base of a fence, request by request (F3)
//! - [`latest`]: which checkpoints count, request by request (F2)
//! - [`garbage`]: what may be retired (G1), swept (G2) and collected as an orphan (G3)
//! - [`upkeep`]: pins, retirements and collections as rows that end
//! - [`verification`]: which checkpoint is re-read next, within so many bytes a day
//! - [`order`]: what an agent checks before it touches S3 or its disk
//! - [`selection`]: the newest step that all hosts share
//! - [`reuse`]: which contents of its base a push uses again, so that garbage stays bounded
//! - [`planted`]: bugs that tests plant, in builds with debug assertions only
//! - [`schedule`]: when a pipeline is pushed by itself; [`standby`]: how a standby follows, and how far behind it is
//! - [`start`]: what a solo engine starts from where no coordinator decides it
//! - [`ready`]: what hosts are told when a pull has ended well, and whom it is still owed
//! - [`round`]: push and pull as `decide(round, event) -> Decision`

pub mod commit;
pub mod damage;
pub mod digest;
pub mod document;
pub mod fence;
pub mod finish;
pub mod garbage;
pub mod host;
pub mod id;
pub mod key;
pub mod latest;
pub mod location;
pub mod manifest;
pub mod order;
pub mod pin;
pub mod planted;
pub mod problem;
pub mod ready;
pub mod reuse;
pub mod round;
pub mod schedule;
pub mod selection;
pub mod spec;
pub mod standby;
pub mod start;
pub mod takeover;
pub mod tombstone;
pub mod unit;
pub mod upkeep;
pub mod verification;
