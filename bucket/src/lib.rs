//! The one seam to S3, its in-memory twin with faults, and the part of the protocol that reads and writes a location.
//!
//! Everything Lockstep asks of an object store is the trait [`ObjectStore`], bound to one location. Its answers keep three things apart: it
//! happened, it did not, nobody knows. No type of the AWS SDK leaves this crate, and nothing in it retries behind its caller's back.
//!
//! - [`store`]: the trait, its outcomes, and [`Connector`], which opens locations
//! - [`error`]: [`StoreError`], mapped by HTTP status first and S3 code second to the error table
//! - [`aws`]: the real thing

pub mod aws;
pub mod error;
pub mod store;

pub use aws::{AwsConnector, AwsOptions, StaticCredentials};
pub use error::{Operation, StoreError, StoreErrorKind};
pub use store::{
    ByteStream, Connector, CreateOutcome, ListPage, Listed, Lookup, MAX_PAGE, ObjectMeta, ObjectStore, OpenUpload,
    PartTag, UploadId, WriteOutcome,
};
