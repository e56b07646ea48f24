//! A location as a transfer uses it: requests counted and limited, retried inside the attempt where the failure passes by itself, and failures
//! named as problems.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use lockstep_bucket::{
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
use rand::Rng;

use crate::{order::PartRef, work::Work};

/// Tries of one request. The coordinator's attempts come on top: these are for hiccups, those for trouble.
const TRIES: u32 = 4;

/// Before the second try; doubles each time.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);

/// Longest back-off.
const MAX_BACK_OFF: Duration = Duration::from_secs(2);

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

    /// Repeats `request` while its failure may pass, with jittered back-off.
    async fn retried<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut back_off = FIRST_BACK_OFF;
        for _ in 1..TRIES {
            match request().await {
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, "trying again");
                    metrics::counter!("lockstep_agent_request_retries_total").increment(1);
                    tokio::time::sleep(jittered(back_off)).await;
                    back_off = (back_off * 2).min(MAX_BACK_OFF);
                }
                outcome => return outcome,
            }
        }
        request().await
    }

    /// PUT of a data object. Its key belongs to this attempt alone, so an unknown outcome is repeated and the last one counts (S7).
    pub(crate) async fn put(&self, key: &str, bytes: Bytes) -> Result<(), Problem> {
        let length = bytes.len() as u64;
        self.retried(async || {
            let Some(_place) = self.place(length).await else { return Ok(false) };
            self.bucket.put(key, bytes.clone().into()).await.done().map(|()| true)
        })
        .await
        .map_err(Problem::from)
        .and_then(alive)?;
        self.work.progress.transferred(length);
        Ok(())
    }

    /// None: the transfer is over.
    async fn place(&self, bytes: u64) -> Option<tokio::sync::OwnedSemaphorePermit> {
        self.work.request(bytes).await.ok()
    }

    /// Create-only PUT of a document; identical bytes that stand there are as good (R2).
    pub(crate) async fn create(&self, key: &str, bytes: Bytes) -> Result<(), Problem> {
        let stands = self
            .retried(async || {
                let Some(_place) = self.place(bytes.len() as u64).await else { return Ok(false) };
                match self.bucket.create(key, bytes.clone()).await {
                    CreateOutcome::Done => Ok(true),
                    CreateOutcome::Exists => match self.bucket.get(key, MAX_DOCUMENT_BYTES).await {
                        Lookup::Found(found) => Ok(found == bytes),
                        Lookup::Absent => Ok(false),
                        Lookup::Unknown(error) => Err(error),
                    },
                    CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => Err(error),
                }
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
        let upload = self.retried(|| self.bucket.create_multipart(key)).await?;
        self.work.upload_opened(key, &upload.0);
        Ok(upload)
    }

    pub(crate) async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u16,
        bytes: Bytes,
    ) -> Result<PartTag, Problem> {
        let length = bytes.len() as u64;
        let part = self
            .retried(async || {
                let Some(_place) = self.place(length).await else { return Ok(None) };
                self.bucket.upload_part(key, upload, number, bytes.clone().into()).await.map(Some)
            })
            .await?
            .ok_or_else(over)?;
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
        let mut back_off = FIRST_BACK_OFF;
        for tries_left in (0..TRIES).rev() {
            let error = match self.bucket.complete_multipart(key, upload, &parts).await {
                WriteOutcome::Done => {
                    self.work.upload_closed(key, &upload.0);
                    return Ok(());
                }
                WriteOutcome::Unknown(error) => {
                    doubtful = true;
                    error
                }
                WriteOutcome::Refused(error) => error,
            };
            if doubtful && matches!(self.bucket.head(key).await, Lookup::Found(meta) if meta.size == size) {
                self.work.upload_closed(key, &upload.0);
                return Ok(());
            }
            if tries_left == 0 || !error.is_retryable() {
                return Err(error.into());
            }
            tokio::time::sleep(jittered(back_off)).await;
            back_off = (back_off * 2).min(MAX_BACK_OFF);
        }
        Err(over())
    }

    pub(crate) async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), Problem> {
        let upload = UploadId(upload.to_owned());
        self.retried(async || self.bucket.abort_multipart(key, &upload).await.done()).await.map_err(Problem::from)
    }

    /// `length` bytes of an object in memory; the caller has made room for them. What a commit names and the store proves absent is damage.
    pub(crate) async fn range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, Problem> {
        let capacity = usize::try_from(length).map_err(|_| too_large(key, length))?;
        let read = async || {
            let Some(_place) = self.place(length).await else { return Ok(None) };
            let mut chunks = self.bucket.get_range(key, offset, length).await?;
            let mut bytes = BytesMut::with_capacity(capacity);
            while let Some(chunk) = chunks.try_next().await? {
                bytes.extend_from_slice(&chunk);
            }
            Ok(Some(bytes.freeze()))
        };
        let bytes = self.retried(read).await.map_err(|error| self.missing(key, error))?.ok_or_else(over)?;
        if bytes.len() as u64 != length {
            return Err(Problem::new(
                Reason::Integrity,
                format!("{key} gave {} of the {length} bytes from {offset} on", bytes.len()),
            )
            .with("key", key)
            .with("expected", length)
            .with("found", bytes.len()));
        }
        self.work.progress.transferred(length);
        Ok(bytes)
    }

    fn missing(&self, key: &str, error: StoreError) -> Problem {
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
        let _room = self.work.memory(part.length).await?;
        let bytes = self
            .retried(async || match self.bucket.get(&key, MAX_DOCUMENT_BYTES).await {
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

/// Half of it to all of it.
fn jittered(back_off: Duration) -> Duration {
    back_off.mul_f64(rand::rng().random_range(0.5..1.0))
}

fn over() -> Problem {
    Problem::new(Reason::Cancelled, "the transfer is over")
}

fn alive(went_on: bool) -> Result<(), Problem> {
    if went_on { Ok(()) } else { Err(over()) }
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
