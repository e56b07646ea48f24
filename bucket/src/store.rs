//! The seam: everything Lockstep asks of an object store, with outcomes that keep "it did not happen" and "nobody knows" apart.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lockstep_protocol::{
    location::Location,
    problem::{Problem, Reason},
};

pub use crate::{pace::Pace, payload::Payload};

use crate::error::StoreError;

/// Three answers to "is it there?". Only [`Lookup::Absent`] permits to act as if nothing were there (protocol.md, "Pull" 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T, E = StoreError> {
    /// It is there.
    Found(T),
    /// Proven: the store answered, and has no such key. A 403 is never this.
    Absent,
    /// Not known: refused, no answer, damaged.
    Unknown(E),
}

impl<T, E> Lookup<T, E> {
    /// Maps what was found.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Lookup<U, E> {
        match self {
            Self::Found(value) => Lookup::Found(map(value)),
            Self::Absent => Lookup::Absent,
            Self::Unknown(error) => Lookup::Unknown(error),
        }
    }

    /// Parses what was found; what can't be parsed is unknown, never absent.
    pub fn and_parse<U>(self, parse: impl FnOnce(T) -> Result<U, E>) -> Lookup<U, E> {
        match self {
            Self::Found(value) => match parse(value) {
                Ok(parsed) => Lookup::Found(parsed),
                Err(error) => Lookup::Unknown(error),
            },
            Self::Absent => Lookup::Absent,
            Self::Unknown(error) => Lookup::Unknown(error),
        }
    }

    /// `Ok(None)` for proven absent, so that `?` passes on what is unknown.
    pub fn known(self) -> Result<Option<T>, E> {
        match self {
            Self::Found(value) => Ok(Some(value)),
            Self::Absent => Ok(None),
            Self::Unknown(error) => Err(error),
        }
    }

    /// From the form with `?`.
    pub fn from_known(known: Result<Option<T>, E>) -> Self {
        match known {
            Ok(Some(value)) => Self::Found(value),
            Ok(None) => Self::Absent,
            Err(error) => Self::Unknown(error),
        }
    }
}

impl<T> Lookup<T, StoreError> {
    /// The unknown as a typed problem.
    pub fn or_problem(self) -> Lookup<T, Problem> {
        match self {
            Self::Found(value) => Lookup::Found(value),
            Self::Absent => Lookup::Absent,
            Self::Unknown(error) => Lookup::Unknown(error.problem()),
        }
    }
}

/// What came of a create-only PUT.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum CreateOutcome {
    /// It was absent and holds our bytes now.
    Done,
    /// Something stands there. It may be our own earlier try: compare bytes before judging (R2).
    Exists,
    /// This try changed nothing and the same try will fail again until somebody acts. An earlier try may still have landed.
    Refused(StoreError),
    /// It may have happened, may happen later, or may not (time-out, reset, 5xx, 409): read the key, retry the same bytes.
    Unknown(StoreError),
}

/// What came of an unconditional write or a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum WriteOutcome {
    /// It happened.
    Done,
    /// It did not happen and won't until somebody acts.
    Refused(StoreError),
    /// It may have happened or happen later.
    Unknown(StoreError),
}

impl WriteOutcome {
    /// For callers that retry or give up either way: [`StoreError::is_retryable`] says which.
    pub fn done(self) -> Result<(), StoreError> {
        match self {
            Self::Done => Ok(()),
            Self::Refused(error) | Self::Unknown(error) => Err(error),
        }
    }
}

/// What HEAD tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes.
    pub size: u64,
    /// As the store gave it, if it did. Compare for equality only.
    pub etag: Option<String>,
}

/// One key of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the location's prefix.
    pub key: String,
    /// Bytes.
    pub size: u64,
}

/// One page of a listing, in the byte order of keys.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ListPage {
    /// Keys on this page.
    pub objects: Vec<Listed>,
    /// Where to go on: the `start_after` of the next page. None: this was the last.
    pub next: Option<String>,
}

/// Names a multipart upload under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(pub String);

/// One uploaded part, to be given back on completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartTag {
    /// From 1 to 10,000.
    pub number: u16,
    /// As the store gave it.
    pub etag: String,
    /// CRC-32 of its bytes, base64, as it was sent.
    pub crc32: String,
}

/// A multipart upload that was neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    /// Relative to the location's prefix.
    pub key: String,
    /// Its id.
    pub upload: UploadId,
}

/// Bytes of an object, chunk by chunk. Ends with an error if the store sent less or more than it said; never silently.
pub type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// An object store, bound to one [`Location`]: keys are relative to its prefix. Nothing here retries by itself: what is worth a second
/// try, and for how long, is the caller's to say, who may open locations through [`Insisting`](crate::Insisting).
#[async_trait]
pub trait ObjectStore: fmt::Debug + Send + Sync {
    /// Where keys are relative to.
    fn location(&self) -> &Location;

    /// PUT with `If-None-Match: *`. For documents: the body is signed and carries a digest, so that the server verifies it.
    async fn create(&self, key: &str, body: Bytes) -> CreateOutcome;

    /// PUT that overwrites. For data objects and hints; a body of any size that fits into one PUT (5 GiB).
    async fn put(&self, key: &str, body: Payload) -> WriteOutcome;

    /// A whole document of at most `max_bytes`, usually `protocol::document::MAX_DOCUMENT_BYTES`; a longer one is unknown.
    async fn get(&self, key: &str, max_bytes: usize) -> Lookup<Bytes>;

    /// `length` bytes from `offset` on, exactly these. `length` 0 asks the store nothing. A missing key is an error of kind
    /// [`StoreErrorKind::NotFound`](crate::StoreErrorKind::NotFound).
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<ByteStream, StoreError>;

    /// Size without content.
    async fn head(&self, key: &str) -> Lookup<ObjectMeta>;

    /// Keys that begin with `prefix`, after `start_after`, at most `max` (at most 1,000 a page).
    async fn list(&self, prefix: &str, start_after: Option<&str>, max: u16) -> Result<ListPage, StoreError>;

    /// Deletes; a key that is not there counts as done.
    async fn delete(&self, key: &str) -> WriteOutcome;

    /// Deletes these keys, at most [`MAX_DELETES`], none twice. One outcome a key, in their order: as of [`Self::delete`]. One request where the store takes batches.
    async fn delete_many(&self, keys: &[String]) -> Vec<WriteOutcome>;

    /// Begins a multipart upload.
    async fn create_multipart(&self, key: &str) -> Result<UploadId, StoreError>;

    /// Sends one part; all but the last have at least 5 MiB.
    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        body: Payload,
    ) -> Result<PartTag, StoreError>;

    /// Makes the object of its parts, given in rising order. Repeated after it was done, it is done still.
    async fn complete_multipart(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> WriteOutcome;

    /// Gives up an upload; one that is not there counts as done.
    async fn abort_multipart(&self, key: &str, upload: &UploadId) -> WriteOutcome;

    /// Every open upload whose key begins with `prefix`.
    async fn list_multipart(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError>;

    /// All pages of a listing.
    async fn list_all(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.list(prefix, after.as_deref(), MAX_PAGE).await?;
            all.extend(page.objects);
            match page.next {
                None => return Ok(all),
                Some(next) => after = Some(next),
            }
        }
    }
}

/// Most keys of one page of a listing (S3's own limit).
pub const MAX_PAGE: u16 = 1000;

/// Most keys of one batch of deletes (S3's own limit).
pub const MAX_DELETES: usize = 1000;

/// Opens stores for locations.
#[async_trait]
pub trait Connector: fmt::Debug + Send + Sync {
    /// A store bound to `location`; no request is made yet.
    async fn connect(&self, location: &Location) -> Result<Arc<dyn ObjectStore>, Problem>;

    /// Endpoint of locations that name none (`AWS_ENDPOINT_URL`); None: AWS itself. For `Location::or_endpoint`.
    fn default_endpoint(&self) -> Option<&str> {
        None
    }
}

/// What a store did that it must not: the first line of defence against servers that are nearly S3.
pub fn unsuitable(location: &Location, why: impl fmt::Display) -> Problem {
    Problem::new(Reason::LocationUnsuitable, format!("{location} can't hold checkpoints: {why}"))
        .with("location", location)
        .with("why", why)
}
