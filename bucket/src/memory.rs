//! The in-memory twin of [`ObjectStore`], for tests and simulation: one [`MemoryBuckets`] is a whole object store that any number of
//! [`MemoryStore`]s look into, with faults on request ([`fault`]) and, for the probe, servers that are not quite S3 ([`Flaws`]).
//!
//! Its behaviour is held to that of real servers by [`crate::conformance`].

mod buckets;
pub mod fault;
mod state;

pub use buckets::{Flaws, MemoryBuckets};

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use lockstep_protocol::{location::Location, problem::Problem};

use crate::{
    error::{Operation, StoreError, StoreErrorKind},
    store::{
        ByteStream, Connector, CreateOutcome, ListPage, Lookup, ObjectMeta, ObjectStore, OpenUpload, PartTag, Payload,
        UploadId, WriteOutcome,
    },
};
use fault::Fault;
use state::{Change, State};

#[async_trait]
impl Connector for MemoryBuckets {
    async fn connect(&self, location: &Location) -> Result<Arc<dyn ObjectStore>, Problem> {
        Ok(Arc::new(self.store(location.clone())))
    }
}

/// One location of [`MemoryBuckets`].
#[derive(Clone, Debug)]
pub struct MemoryStore {
    buckets: MemoryBuckets,
    location: Location,
}

impl MemoryStore {
    const fn new(buckets: MemoryBuckets, location: Location) -> Self {
        Self { buckets, location }
    }

    fn error(&self, op: Operation, full: &str, status: Option<u16>, code: Option<&str>, why: &str) -> StoreError {
        StoreError::answered(op, (self.location.bucket(), full), status, code, why)
    }

    /// One request: waits its turn, draws a fault, does it or not. `late` is what a late or second landing would do.
    async fn request<T>(
        &self,
        op: Operation,
        key: &str,
        late: Option<Change>,
        act: impl FnOnce(&mut State, Flaws, &str) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        // Lets others in between, as a network does.
        let turns = self.buckets.inner().faults.turns();
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let full = self.location.full_key(key);
        let mut inner = self.buckets.inner();
        let fault = inner.faults.draw(op, &full, late.is_some());
        let flaws = inner.flaws;
        let failed = |status, code, why| Err(self.error(op, &full, status, code, why));
        if !inner.state.has_bucket(self.location.bucket()) {
            return failed(Some(404), Some("NoSuchBucket"), "the bucket does not exist");
        }
        match fault {
            None | Some(Fault::Truncate) => act(&mut inner.state, flaws, &full),
            Some(Fault::FailBefore) => failed(Some(503), Some("ServiceUnavailable"), "fault: failed before"),
            Some(Fault::Throttle) => failed(Some(503), Some("SlowDown"), "fault: throttled"),
            Some(Fault::Deny) => failed(Some(403), Some("AccessDenied"), "fault: denied"),
            Some(Fault::Conflict) => failed(Some(409), Some("ConditionalRequestConflict"), "fault: conflict"),
            Some(Fault::LoseAnswer) => {
                let _ = act(&mut inner.state, flaws, &full);
                failed(None, None, "fault: the answer was lost")
            }
            Some(Fault::LandLate) => {
                inner.state.late.extend(late);
                failed(None, None, "fault: the request is late")
            }
            Some(Fault::Duplicate) => {
                let result = act(&mut inner.state, flaws, &full);
                inner.state.late.extend(late);
                result
            }
        }
    }

    fn truncates(&self, op: Operation, key: &str) -> bool {
        let full = self.location.full_key(key);
        self.buckets.inner().faults.truncates(op, &full)
    }

    async fn read(&self, op: Operation, key: &str) -> Result<Bytes, StoreError> {
        let bucket = self.location.bucket();
        self.request(op, key, None, |state, flaws, full| {
            if flaws.stale_read && state.fresh_to_read.remove(full) {
                return Err(self.error(op, full, Some(404), Some("NoSuchKey"), "no such key"));
            }
            match state.get(bucket, full) {
                Some(bytes) => Ok(bytes.clone()),
                None if flaws.missing_is_denied => {
                    Err(self.error(op, full, Some(403), Some("AccessDenied"), "no right to list"))
                }
                None => Err(self.error(op, full, Some(404), Some("NoSuchKey"), "no such key")),
            }
        })
        .await
    }

    async fn write(&self, op: Operation, key: &str, change: Change) -> WriteOutcome {
        let result = self
            .request(op, key, Some(change.clone()), |state, flaws, _| {
                state.apply(&change, flaws.create_overwrites);
                Ok(())
            })
            .await;
        outcome(result)
    }

    /// Keys of a batch that the store doesn't let go of, by the faults of single deletes: denied, or not done this time.
    fn refused_of(&self, keys: &[String]) -> BTreeMap<String, StoreError> {
        let mut inner = self.buckets.inner();
        let refused = keys.iter().filter_map(|key| {
            let full = self.location.full_key(key);
            let code = match inner.faults.draw(Operation::Delete, &full, false)? {
                Fault::Deny => "AccessDenied",
                _ => "InternalError",
            };
            let error = self.error(Operation::DeleteMany, &full, Some(200), Some(code), "fault: this key of a batch");
            Some((key.clone(), error))
        });
        refused.collect()
    }

    fn of_key(&self, error: &StoreError, key: &str) -> StoreError {
        StoreError { key: self.location.full_key(key), ..error.clone() }
    }

    fn no_such_upload(&self, op: Operation, full: &str) -> StoreError {
        self.error(op, full, Some(404), Some("NoSuchUpload"), "no such upload")
    }

    fn place(&self, key: &str) -> (String, String) {
        (self.location.bucket().to_owned(), self.location.full_key(key))
    }
}

fn outcome(result: Result<(), StoreError>) -> WriteOutcome {
    match result {
        Ok(()) => WriteOutcome::Done,
        Err(error) if error.is_refusal() => WriteOutcome::Refused(error),
        Err(error) => WriteOutcome::Unknown(error),
    }
}

fn lookup<T>(result: Result<T, StoreError>) -> Lookup<T> {
    match result {
        Ok(value) => Lookup::Found(value),
        Err(error) if error.s3_code.as_deref() == Some("NoSuchKey") => Lookup::Absent,
        Err(error) => Lookup::Unknown(error),
    }
}

/// Chunks as small as a network's, so that readers are tested with boundaries in odd places.
const CHUNK: usize = 8191;

#[async_trait]
impl ObjectStore for MemoryStore {
    fn location(&self) -> &Location {
        &self.location
    }

    async fn create(&self, key: &str, body: Bytes) -> CreateOutcome {
        let flaws = self.buckets.inner().flaws;
        let (bucket, full) = self.place(key);
        if flaws.create_races {
            // Looks first and writes later, unconditionally.
            if self.buckets.inner().state.get(&bucket, &full).is_some() {
                return CreateOutcome::Exists;
            }
            tokio::task::yield_now().await;
            self.buckets.inner().state.set(&bucket, &full, Some(body));
            return CreateOutcome::Done;
        }
        let change = Change::Create { bucket, key: full, body };
        let result = self
            .request(Operation::Create, key, Some(change.clone()), |state, flaws, _| {
                Ok(state.apply(&change, flaws.create_overwrites))
            })
            .await;
        match result {
            Ok(true) => CreateOutcome::Done,
            Ok(false) => CreateOutcome::Exists,
            Err(error) if error.is_refusal() => CreateOutcome::Refused(error),
            Err(error) => CreateOutcome::Unknown(error),
        }
    }

    async fn put(&self, key: &str, body: Payload) -> WriteOutcome {
        let (bucket, full) = self.place(key);
        let body = body.into_bytes();
        self.write(Operation::Put, key, Change::Put { bucket, key: full, body }).await
    }

    async fn get(&self, key: &str, max_bytes: usize) -> Lookup<Bytes> {
        let truncated = self.truncates(Operation::Get, key);
        let result = self.read(Operation::Get, key).await;
        let full = self.location.full_key(key);
        lookup(result.and_then(|bytes| {
            if truncated {
                return Err(self.error(Operation::Get, &full, None, None, "fault: truncated"));
            }
            if bytes.len() > max_bytes {
                let why = format!("has {} bytes, more than the {max_bytes} allowed", bytes.len());
                let error = self.error(Operation::Get, &full, Some(200), None, &why);
                return Err(StoreError { kind: StoreErrorKind::TooLarge, ..error });
            }
            Ok(bytes)
        }))
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<ByteStream, StoreError> {
        let op = Operation::GetRange;
        if length == 0 {
            return Ok(futures::stream::empty().boxed());
        }
        let truncated = self.truncates(op, key);
        let bytes = self.read(op, key).await?;
        let full = self.location.full_key(key);
        let range =
            usize::try_from(offset).ok().zip(offset.checked_add(length).and_then(|end| usize::try_from(end).ok()));
        let Some((start, end)) = range.filter(|&(_, end)| end <= bytes.len()) else {
            let why = format!("asked for {length} bytes from {offset} on, the object has {}", bytes.len());
            let error = self.error(op, &full, Some(416), Some("InvalidRange"), &why);
            return Err(StoreError { kind: StoreErrorKind::Integrity, ..error });
        };
        let end = if truncated { start + (end - start) / 2 } else { end };
        let mut left = bytes.slice(start..end);
        let mut chunks = Vec::new();
        while !left.is_empty() {
            chunks.push(Ok(left.split_to(left.len().min(CHUNK))));
        }
        if truncated {
            chunks.push(Err(self.error(op, &full, None, None, "fault: truncated")));
        }
        Ok(futures::stream::iter(chunks).boxed())
    }

    async fn head(&self, key: &str) -> Lookup<ObjectMeta> {
        lookup(self.read(Operation::Head, key).await).map(|bytes| ObjectMeta {
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            etag: Some(state::etag(&bytes)),
        })
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>, max: u16) -> Result<ListPage, StoreError> {
        let bucket = self.location.bucket();
        let after = start_after.map(|key| self.location.full_key(key));
        self.request(Operation::List, prefix, None, |state, flaws, full| {
            let page = state.page(bucket, full, after.as_deref(), max, flaws.stale_listing);
            // Every key of the page begins with the location's prefix, since `full` does.
            let relative = |key: &str| self.location.relative_key(key).unwrap_or(key).to_owned();
            Ok(ListPage {
                objects: page
                    .objects
                    .into_iter()
                    .map(|listed| crate::store::Listed { key: relative(&listed.key), size: listed.size })
                    .collect(),
                next: page.next.as_deref().map(relative),
            })
        })
        .await
    }

    async fn delete(&self, key: &str) -> WriteOutcome {
        let (bucket, full) = self.place(key);
        self.write(Operation::Delete, key, Change::Delete { bucket, key: full }).await
    }

    async fn delete_many(&self, keys: &[String]) -> Vec<WriteOutcome> {
        let bucket = self.location.bucket();
        let mut refused = self.refused_of(keys);
        let whole = self
            .request(Operation::DeleteMany, "", None, |state, _, _| {
                for key in keys.iter().filter(|key| !refused.contains_key(*key)) {
                    state.set(bucket, &self.location.full_key(key), None);
                }
                Ok(())
            })
            .await;
        match whole {
            Ok(()) => keys.iter().map(|key| outcome(refused.remove(key).map_or(Ok(()), Err))).collect(),
            Err(error) => keys.iter().map(|key| outcome(Err(self.of_key(&error, key)))).collect(),
        }
    }

    async fn create_multipart(&self, key: &str) -> Result<UploadId, StoreError> {
        let bucket = self.location.bucket();
        self.request(Operation::CreateMultipart, key, None, |state, _, full| Ok(state.create_upload(bucket, full)))
            .await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        body: Payload,
    ) -> Result<PartTag, StoreError> {
        let op = Operation::UploadPart;
        let crc32 = crate::aws::checksum::crc32(&body);
        let body = body.into_bytes();
        let etag = state::etag(&body);
        self.request(op, key, None, |state, _, full| {
            if state.add_part(full, upload, number, body) { Ok(()) } else { Err(self.no_such_upload(op, full)) }
        })
        .await
        .map(|()| PartTag { number, etag, crc32 })
    }

    async fn complete_multipart(&self, key: &str, upload: &UploadId, parts: &[PartTag]) -> WriteOutcome {
        let op = Operation::CompleteMultipart;
        let (bucket, full) = self.place(key);
        let result = self
            .request(op, key, None, |state, _, _| match state.assemble(&full, upload, parts) {
                Some(Some(body)) => {
                    state.complete(&bucket, &full, upload, body);
                    Ok(())
                }
                Some(None) => {
                    Err(self.error(op, &full, Some(400), Some("InvalidPart"), "a part is missing or differs"))
                }
                None if state.became(&bucket, &full, upload) => Ok(()),
                None => Err(self.no_such_upload(op, &full)),
            })
            .await;
        match result {
            Err(error) if error.s3_code.as_deref() == Some("NoSuchUpload") => WriteOutcome::Unknown(error),
            result => outcome(result),
        }
    }

    async fn abort_multipart(&self, key: &str, upload: &UploadId) -> WriteOutcome {
        let result = self
            .request(Operation::AbortMultipart, key, None, |state, _, _| {
                state.drop_upload(upload);
                Ok(())
            })
            .await;
        outcome(result)
    }

    async fn list_multipart(&self, prefix: &str) -> Result<Vec<OpenUpload>, StoreError> {
        let bucket = self.location.bucket();
        self.request(Operation::ListMultipart, prefix, None, |state, _, full| {
            let uploads = state.uploads(bucket, full).into_iter();
            Ok(uploads
                .map(|(key, upload)| {
                    let key = self.location.relative_key(&key).unwrap_or(&key).to_owned();
                    OpenUpload { key, upload }
                })
                .collect())
        })
        .await
    }
}
