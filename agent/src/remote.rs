//! A location as a transfer uses it: requests counted and limited, retried inside the attempt where the failure passes by itself, and failures
//! named as problems.

mod incoming;
mod patience;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lockstep_bucket::{
    Payload,
    error::{StoreError, StoreErrorKind},
    store::{Connector, CreateOutcome, Lookup, ObjectStore, PartTag, UploadId, WriteOutcome},
};
use lockstep_protocol::{
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    location::Location,
    manifest::PartManifest,
    problem::{Problem, Reason},
};

pub(crate) use incoming::Incoming;
pub(crate) use patience::{Budget, Patience};

use crate::{order::PartRef, window::Signal, work::Work};

/// A location bound to one transfer.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    bucket: Arc<dyn ObjectStore>,
    work: Work,
}

impl Remote {
    pub(crate) async fn connect(connector: &dyn Connector, location: &Location, work: &Work) -> Result<Self, Problem> {
        Ok(Self { bucket: connector.connect(location).await?, work: work.clone() })
    }

    pub(crate) const fn work(&self) -> &Work {
        &self.work
    }

    pub(crate) const fn bucket(&self) -> &Arc<dyn ObjectStore> {
        &self.bucket
    }

    /// Of one request and its repetitions.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(Arc::clone(&self.work.budget))
    }

    /// Makes one request that moves `bytes`, in its place among those in flight, and repeats it while its failure may pass.
    async fn retried<T, F>(&self, bytes: u64, mut request: impl FnMut() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut patience = self.patience();
        loop {
            let place = self.work.window.enter().await;
            let error = match request().await {
                Ok(answer) => {
                    let took = place.held();
                    place.leave(Signal::Answered { bytes, took });
                    self.work.budget.earn();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            place.leave(signal_of(&error));
            patience.after(error).await?;
        }
    }

    /// PUT of a data object. Its key belongs to this attempt alone, so an unknown outcome is repeated and the last one counts (S7).
    pub(crate) async fn put(&self, key: &str, body: impl Into<Payload>) -> Result<(), Problem> {
        let body = body.into().with_pace(self.work.pace.clone());
        let length = body.length();
        self.retried(length, async || self.bucket.put(key, body.clone()).await.done()).await?;
        self.work.progress.transferred(length);
        Ok(())
    }

    /// Create-only PUT of a document; identical bytes that stand there are as good (R2).
    pub(crate) async fn create(&self, key: &str, bytes: Bytes) -> Result<(), Problem> {
        let stands = self
            .retried(bytes.len() as u64, async || match self.bucket.create(key, bytes.clone()).await {
                CreateOutcome::Done => Ok(true),
                CreateOutcome::Exists => match self.bucket.get(key, MAX_DOCUMENT_BYTES).await {
                    Lookup::Found(found) => Ok(found == bytes),
                    Lookup::Absent => Ok(false),
                    Lookup::Unknown(error) => Err(error),
                },
                CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => Err(error),
            })
            .await?;
        if stands {
            return Ok(());
        }
        Err(Problem::new(
            Reason::Integrity,
            format!("{key} holds other bytes than this attempt's: no other may write it"),
        )
        .with("key", key)
        .with("location", self.bucket.location()))
    }

    pub(crate) async fn start_upload(&self, key: &str) -> Result<UploadId, Problem> {
        let upload = self.retried(0, || self.bucket.create_multipart(key)).await?;
        self.work.upload_opened(key, &upload.0);
        Ok(upload)
    }

    pub(crate) async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        body: impl Into<Payload>,
    ) -> Result<PartTag, Problem> {
        let body = body.into().with_pace(self.work.pace.clone());
        let length = body.length();
        let part =
            self.retried(length, async || self.bucket.upload_part(key, upload, number, body.clone()).await).await?;
        self.work.progress.transferred(length);
        Ok(part)
    }

    /// Makes the object of its parts. An outcome that got lost shows in the object: after it the store no longer knows the upload.
    pub(crate) async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        size: u64,
        parts: Vec<PartTag>,
    ) -> Result<(), Problem> {
        let mut doubtful = false;
        let mut patience = self.patience();
        loop {
            let error = match self.bucket.complete_multipart(key, upload, &parts).await {
                WriteOutcome::Done => break,
                WriteOutcome::Unknown(error) => {
                    doubtful = true;
                    error
                }
                WriteOutcome::Refused(error) => error,
            };
            if doubtful && matches!(self.bucket.head(key).await, Lookup::Found(meta) if meta.size == size) {
                break;
            }
            patience.after(error).await?;
        }
        self.work.upload_closed(key, &upload.0);
        Ok(())
    }

    pub(crate) async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), Problem> {
        let upload = UploadId(upload.to_owned());
        self.retried(0, async || self.bucket.abort_multipart(key, &upload).await.done()).await
    }

    /// One try to read `length` bytes from `offset` on.
    pub(crate) async fn open(&self, key: &str, offset: u64, length: u64) -> Result<Incoming, StoreError> {
        let place = self.work.window.enter().await;
        match self.bucket.get_range(key, offset, length).await {
            Ok(chunks) => {
                let answered = place.held();
                Ok(Incoming::new(chunks, place, answered, self.work.clone()))
            }
            Err(error) => {
                place.leave(signal_of(&error));
                Err(error)
            }
        }
    }

    /// `length` bytes of an object in memory; the caller has made room for them. What a commit names and the store proves absent is damage.
    pub(crate) async fn range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, Problem> {
        let mut patience = self.patience();
        loop {
            match self.range_once(key, offset, length).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => patience.after(error).await.map_err(|error| self.missing(key, error))?,
            }
        }
    }

    async fn range_once(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let mut incoming = self.open(key, offset, length).await?;
        let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
        while let Some(chunk) = incoming.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes.freeze())
    }

    /// Names the problem of a failed read.
    pub(crate) fn missing(&self, key: &str, error: StoreError) -> Problem {
        if error.kind == StoreErrorKind::NotFound && error.s3_code.as_deref() == Some("NoSuchKey") {
            return damaged(self.bucket.location(), key, "is missing");
        }
        error.problem()
    }

    /// Reads a part manifest and compares it with what the commit says of it before it is parsed.
    pub(crate) async fn part(&self, part: &PartRef) -> Result<PartManifest, Problem> {
        let key = part.key();
        if part.length > MAX_DOCUMENT_BYTES as u64 {
            return Err(too_large(&key, part.length));
        }
        let bytes = self
            .retried(part.length, async || match self.bucket.get(&key, MAX_DOCUMENT_BYTES).await {
                Lookup::Found(bytes) => Ok(Some(bytes)),
                Lookup::Absent => Ok(None),
                Lookup::Unknown(error) => Err(error),
            })
            .await?
            .ok_or_else(|| damaged(self.bucket.location(), &key, "is missing"))?;
        let found = Digest::of(&bytes);
        if bytes.len() as u64 != part.length || found != part.blake3 {
            return Err(Problem::new(
                Reason::Integrity,
                format!(
                    "part manifest {key} has {} bytes with digest {found}, the commit says {} bytes with {}",
                    bytes.len(),
                    part.length,
                    part.blake3
                ),
            )
            .with("file", &key)
            .with("expected", part.blake3)
            .with("found", found)
            .with("expected_length", part.length)
            .with("found_length", bytes.len()));
        }
        PartManifest::parse(&key, &bytes)
    }
}

/// What the end of a request tells of the store's state.
fn signal_of(error: &StoreError) -> Signal {
    match error.kind {
        StoreErrorKind::Throttled => Signal::Throttled,
        StoreErrorKind::Unavailable => Signal::Failed,
        _ => Signal::Silent,
    }
}

fn too_large(key: &str, length: u64) -> Problem {
    Problem::new(Reason::ManifestInvalid, format!("{key} is said to have {length} bytes, more than can be read"))
        .with("key", key)
        .with("length", length)
}

fn damaged(location: &Location, key: &str, how: &str) -> Problem {
    Problem::new(
        Reason::CheckpointDamaged,
        format!("{key} in {location} {how}: the checkpoint can't be restored, choose another one"),
    )
    .with("key", key)
    .with("location", location)
    .with("how", how)
}
