//! The one seam to S3, its in-memory twin with faults, and the part of the protocol that reads and writes a location.
//!
//! Everything Lockstep asks of an object store is the trait [`ObjectStore`], bound to one location. Its answers keep three things apart: it
//! happened, it did not, nobody knows. No type of the AWS SDK leaves this crate, and nothing in it retries behind its caller's back.
//!
//! - [`store`]: the trait, its outcomes, and [`Connector`], which opens locations; [`Payload`]: what is sent, [`Pace`]: how fast
//! - [`error`]: [`StoreError`], mapped by HTTP status first and S3 code second to the error table
//! - [`aws`]: the real thing; [`Insisting`]: what asks it again, for those who read much
//! - [`decide`]: a push round's decision (push steps 4 to 6); [`fences`]: who owns a location; [`catalog`]: which checkpoints it holds;
//!   [`parts`]: what a host's share of one holds; [`verify`]: whether they are whole
//! - [`garbage`]: what a collector reads, and the tombstones it puts; [`pins`]: what keeps a checkpoint from it
//! - [`mod@probe`]: whether a store can hold checkpoints at all
//! - [`memory`]: the twin in memory, with faults; [`conformance`] holds it and real servers to one behaviour

pub mod aws;
pub mod catalog;
pub mod conformance;
pub mod damage;
pub mod decide;
mod document;
pub mod error;
pub mod fences;
pub mod garbage;
mod insist;
pub mod memory;
mod pace;
pub mod parts;
mod payload;
pub mod pins;
pub mod probe;
pub mod store;
pub mod verify;

pub use aws::{AwsConnector, AwsOptions, StaticCredentials};
pub use catalog::{
    Access, Checkpoint, Entry, Newest, Selector, Unreadable, find, latest, list_checkpoints, look_up, newest, whole,
};
pub use damage::{is_marked, is_retired, put_mark, still_stands};
pub use decide::{DecisionFound, DecisionOutcome, acknowledge, put_decision, read_decision, retired_commit, successor};
pub use error::{Operation, StoreError, StoreErrorKind};
pub use fences::{Claim, FenceOutcome, claim_first, finish_base, location_owned, owner, put_fence};
pub use insist::Insisting;
pub use memory::{MemoryBuckets, MemoryStore};
pub use pace::Pace;
pub use payload::Payload;
pub use probe::{ProbeCheck, ProbeReport, probe, probe_as};
pub use store::{
    ByteStream, Connector, CreateOutcome, ListPage, Listed, Lookup, MAX_DELETES, MAX_PAGE, ObjectMeta, ObjectStore,
    OpenUpload, PartTag, UploadId, WriteOutcome,
};
pub use verify::{Read, fetch_part, verify_checkpoint, verify_part, verify_some, verify_structure};
