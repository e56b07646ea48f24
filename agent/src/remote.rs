//! A location as a transfer uses it: requests counted and limited, retried inside the attempt where the failure passes by itself, and failures
//! named as problems.

mod incoming;
mod patience;

use std::sync::Arc;

use bytes::Bytes;
use lockstep_bucket::{
    Payload,
    error::{StoreError, StoreErrorKind},
    parts,
    store::{Connector, CreateOutcome, Lookup, ObjectStore, PartTag, UploadId, WriteOutcome},
};
use lockstep_protocol::{
    document::MAX_DOCUMENT_BYTES,
    location::Location,
    manifest::{Inherited, PartDocument, PartManifest},
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
        Patience::new(Arc::clone(&self.work.budget), Arc::clone(&self.work.progress))
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
        let body = self.metered(body.into());
        self.retried(body.length(), async || self.bucket.put(key, body.clone()).await.done()).await
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
        let body = self.metered(body.into());
        self.retried(body.length(), async || self.bucket.upload_part(key, upload, number, body.clone()).await).await
    }

    /// Under the bandwidth limit, and seen by status calls as it goes.
    fn metered(&self, body: Payload) -> Payload {
        body.with_pace(self.work.pace.clone()).with_meter(self.work.progress.meter())
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

    /// Names the problem of a failed read.
    pub(crate) fn missing(&self, key: &str, error: StoreError) -> Problem {
        if error.kind == StoreErrorKind::NotFound && error.s3_code.as_deref() == Some("NoSuchKey") {
            return damaged(self.bucket.location(), key, "is missing");
        }
        error.problem()
    }

    /// Reads a part manifest with what it inherits; each document is compared with what names it before it is parsed.
    pub(crate) async fn part(&self, part: &PartRef) -> Result<PartManifest, Problem> {
        let name = Inherited { key: part.key(), length: part.length, blake3: part.blake3 };
        match self.document(&name, parts::judge).await? {
            PartDocument::Full(part) => Ok(part),
            PartDocument::Delta(delta) => {
                let inherited = self.document(delta.inherits(), parts::judge_full).await?;
                delta.resolve(&inherited)
            }
        }
    }

    async fn document<T>(
        &self,
        name: &Inherited,
        judge: fn(&Location, &Inherited, Lookup<Bytes>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let read = async || {
            self.retried(name.length, async || self.bucket.get(&name.key, parts::allowed(name.length)).await.known())
                .await
        };
        let judged = |bytes| judge(self.bucket.location(), name, Lookup::from_known(Ok(bytes)));
        match judged(read().await?) {
            // Bits that flipped on the way don't make a checkpoint damaged.
            Err(problem) if problem.reason == Reason::CheckpointDamaged => judged(read().await?),
            outcome => outcome,
        }
        .map_err(|problem| match problem.reason {
            // There, but other bytes than its name says.
            Reason::CheckpointDamaged if problem.metadata.contains_key("expected") => {
                Problem { reason: Reason::Integrity, ..problem }.with("file", &name.key)
            }
            _ => problem,
        })
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

fn damaged(location: &Location, key: &str, how: &str) -> Problem {
    Problem::new(
        Reason::CheckpointDamaged,
        format!("{key} in {location} {how}: the checkpoint can't be restored, choose another one"),
    )
    .with("key", key)
    .with("location", location)
    .with("how", how)
}
