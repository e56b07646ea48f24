//! What a pipeline's location holds, read from the bucket. Nothing is written to the bucket, so an open take-over is `TAKE_OVER_IN_PROGRESS`; and what could
//! not be found out is an error, never an empty list.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use lockstep_bucket::{Access, Checkpoint, ObjectStore, Selector};
use lockstep_proto::v1;
use lockstep_protocol::{
    id::{PipelineId, RoundId, Step},
    location::Location,
    problem::{Problem, Reason},
    verification::Scope,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;

use super::{Api, Messages, cursor::Cursor, request};
use crate::{
    convert,
    convert::status::status,
    plan::patiently,
    store::{Caller, Change, Finding, PipelineRow, Verification, VerificationsOf},
};

/// A store that fails in a way that may pass is asked again for this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a verification tells how far it is.
const PROGRESS: Duration = Duration::from_millis(500);

impl Api {
    pub(super) async fn do_list_checkpoints(
        &self,
        message: v1::ListCheckpointsRequest,
    ) -> Result<v1::ListCheckpointsResponse, Problem> {
        let page = request::page(message.page_size, message.page_token)?;
        let after = page.token.as_deref().map(Cursor::parse).transpose()?;
        let size = usize::try_from(page.size).unwrap_or(usize::MAX);
        let row = self.pipeline(&message.pipeline).await?;
        let store = self.connector.connect(&row.spec.location).await?;
        // One more than shown tells whether another page follows. Later pages read from the newest on: what counts is decided from there.
        let limit = if after.is_some() { usize::MAX } else { size.saturating_add(1) };
        let all = list(&store, limit).await?;
        let mut rest = all.iter().filter(|checkpoint| {
            after.is_none_or(|after| {
                (checkpoint.commit.generation, checkpoint.commit.seq) < (after.generation, after.seq)
            })
        });
        let shown: Vec<&Checkpoint> = rest.by_ref().take(size).collect();
        let next = shown
            .last()
            .filter(|_| rest.next().is_some())
            .map(|last| Cursor { generation: last.commit.generation, seq: last.commit.seq }.token());
        let verifications = self.verifications(row.id, shown.iter().map(|one| one.commit.round).collect()).await?;
        Ok(v1::ListCheckpointsResponse {
            checkpoints: shown.into_iter().map(|one| message_of(one, verifications.get(&one.commit.round))).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }

    pub(super) async fn do_get_checkpoint(&self, message: v1::GetCheckpointRequest) -> Result<v1::Checkpoint, Problem> {
        let (row, _, checkpoint) = self.checkpoint(&message.pipeline, &message.checkpoint).await?;
        let round = checkpoint.commit.round;
        let verifications = self.verifications(row.id, vec![round]).await?;
        Ok(message_of(&checkpoint, verifications.get(&round)))
    }

    async fn verifications(
        &self,
        pipeline: PipelineId,
        checkpoints: Vec<RoundId>,
    ) -> Result<BTreeMap<RoundId, Verification>, Problem> {
        let found = self.store.verifications(VerificationsOf { pipeline, checkpoints, scope: None }).await?;
        Ok(found.into_iter().map(|one| (one.finding.commit.round, one)).collect())
    }

    /// The result is kept whether or not anybody still listens then; a reading that nobody waits for ends without one.
    pub(super) async fn do_verify_checkpoint(
        &self,
        caller: Caller,
        message: v1::VerifyCheckpointRequest,
    ) -> Result<Messages<v1::VerifyCheckpointResponse>, Problem> {
        let (row, bucket, checkpoint) = self.checkpoint(&message.pipeline, &message.checkpoint).await?;
        let (sender, receiver) = mpsc::channel(2);
        let scope = if message.structure_only { Scope::Structure } else { Scope::All };
        let reading = Reading { pipeline: row.id, bucket, checkpoint, scope, started_at: self.store.now().await? };
        let api = self.clone();
        let verifying = async move { api.verify(caller, reading, sender).await };
        tokio::spawn(verifying.in_current_span());
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn checkpoint(
        &self,
        pipeline: &str,
        name: &str,
    ) -> Result<(PipelineRow, Arc<dyn ObjectStore>, Checkpoint), Problem> {
        let selector = selector_of(name)?;
        let row = self.pipeline(pipeline).await?;
        let store = self.connector.connect(&row.spec.location).await?;
        match find(&store, selector).await? {
            Some(checkpoint) => Ok((row, store, checkpoint)),
            None => Err(not_found(name, &row.spec.location)),
        }
    }
}

// Boxed where their lifetimes are named: inside a handler's future the compiler forgets these and then can't see that they are Send.

fn list(store: &Arc<dyn ObjectStore>, limit: usize) -> BoxFuture<'_, Result<Vec<Checkpoint>, Problem>> {
    Box::pin(patiently(PATIENCE, move || lockstep_bucket::list_checkpoints(store.as_ref(), Access::ReadOnly, limit)))
}

fn find(store: &Arc<dyn ObjectStore>, selector: Selector) -> BoxFuture<'_, Result<Option<Checkpoint>, Problem>> {
    Box::pin(patiently(PATIENCE, move || async move {
        lockstep_bucket::find(store.as_ref(), selector, Access::ReadOnly).await.known()
    }))
}

fn read<'a>(
    reading: &'a Reading,
    progress: &'a (dyn Fn(u64) + Send + Sync),
) -> BoxFuture<'a, Result<Vec<Problem>, Problem>> {
    Box::pin(async move {
        let (bucket, document) = (reading.bucket.as_ref(), &reading.checkpoint.document);
        let broken = match reading.scope {
            Scope::All => lockstep_bucket::verify_checkpoint(bucket, document, progress).await?,
            Scope::Structure => lockstep_bucket::verify_structure(bucket, document).await?,
        };
        if !broken.is_empty() {
            lockstep_bucket::still_stands(bucket, &reading.checkpoint.commit).await?;
        }
        Ok(broken)
    })
}

fn message_of(checkpoint: &Checkpoint, last: Option<&Verification>) -> v1::Checkpoint {
    v1::Checkpoint {
        last_verification: last.map(convert::checkpoint::verification),
        ..convert::checkpoint::checkpoint(&checkpoint.commit, &checkpoint.document, checkpoint.damaged)
    }
}

fn not_found(name: &str, location: &Location) -> Problem {
    Problem::new(Reason::CheckpointNotFound, format!("{location} holds no checkpoint {name}"))
        .with("checkpoint", name)
        .with("location", location)
}

/// UUID, step in decimal, or `latest`.
fn selector_of(name: &str) -> Result<Selector, Problem> {
    if name == "latest" {
        return Ok(Selector::Latest);
    }
    if !name.is_empty() && name.bytes().all(|c| c.is_ascii_digit()) {
        let step =
            name.parse().map_err(|_| request::refuse("checkpoint", name, "is no step: the greatest is 2^63-1"))?;
        return Ok(Selector::Step(Step::new(step)?));
    }
    name.parse().map(Selector::Round).map_err(|_| {
        request::refuse("checkpoint", format!("{name:?}"), "is neither latest nor a step in decimal nor a UUID")
    })
}

/// What is verified for a caller.
struct Reading {
    pipeline: PipelineId,
    bucket: Arc<dyn ObjectStore>,
    checkpoint: Checkpoint,
    scope: Scope,
    started_at: DateTime<Utc>,
}

impl Api {
    /// Reads everything once and tells how far it is. Ends early when nobody listens or the process stops: until it is kept, it has no effect.
    async fn verify(
        &self,
        caller: Caller,
        reading: Reading,
        sender: mpsc::Sender<Result<v1::VerifyCheckpointResponse, tonic::Status>>,
    ) {
        let begun = Instant::now();
        let read_so_far = AtomicU64::new(0);
        let progress = |bytes: u64| {
            read_so_far.fetch_add(bytes, Ordering::Relaxed);
        };
        let document = &reading.checkpoint.document;
        let counters = || {
            let elapsed = begun.elapsed();
            let bytes = read_so_far.load(Ordering::Relaxed);
            v1::Progress {
                bytes_done: bytes,
                bytes_total: document.bytes(),
                files_total: document.files(),
                bytes_transferred: bytes,
                bytes_per_second: u64::try_from(u128::from(bytes) * 1000 / elapsed.as_millis().max(1))
                    .unwrap_or(u64::MAX),
                ..Default::default()
            }
        };
        let mut verifying = read(&reading, &progress);
        let outcome = loop {
            tokio::select! {
                outcome = &mut verifying => break outcome,
                () = sender.closed() => return,
                () = self.stopping.cancelled() => break Err(super::watch::stopping()),
                () = tokio::time::sleep(PROGRESS) => {
                    let message = v1::VerifyCheckpointResponse { progress: Some(counters()), ..Default::default() };
                    // A slow reader misses a step; the last message always comes.
                    let _ = sender.try_send(Ok(message));
                }
            }
        };
        let progress = counters();
        let last = match outcome {
            Ok(problems) => self.kept(&caller, &reading, progress, problems).await,
            Err(problem) => Err(problem),
        };
        let _ = sender.send(last.map_err(status)).await;
    }

    /// Keeps what was found, and waits until the mark of a damaged one stands: whoever asks for latest after the answer gets another.
    async fn kept(
        &self,
        caller: &Caller,
        reading: &Reading,
        progress: v1::Progress,
        problems: Vec<Problem>,
    ) -> Result<v1::VerifyCheckpointResponse, Problem> {
        let shown = problems.iter().map(convert::status::problem).collect();
        let finding = Finding {
            pipeline: reading.pipeline,
            commit: reading.checkpoint.commit,
            scope: reading.scope,
            rolling: false,
            bytes: progress.bytes_done,
            problems,
            started_at: reading.started_at,
        };
        let mut changes = self.store.changes();
        let mut kept = self.store.keep_verification(finding, caller).await?;
        let until = Instant::now() + self.options.create_wait;
        let concerns = |change| change == Change::Pipeline(reading.pipeline) || change == Change::Anything;
        while kept.owes_mark() && !self.stopping.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.sleep_until_change(&mut changes, concerns, left).await;
            kept = self.store.get_verification(kept.id).await?;
        }
        let intact = kept.finding.problems.is_empty();
        let all_files = intact && reading.scope == Scope::All;
        let files_done = if all_files { reading.checkpoint.document.files() } else { 0 };
        Ok(v1::VerifyCheckpointResponse {
            progress: Some(v1::Progress { files_done, ..progress }),
            done: true,
            problems: shown,
            checkpoint: Some(v1::Checkpoint {
                damaged: reading.checkpoint.damaged || !intact,
                ..message_of(&reading.checkpoint, Some(&kept))
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_named_by_uuid_step_or_latest() {
        assert_eq!(selector_of("latest"), Ok(Selector::Latest));
        assert_eq!(selector_of("310"), Ok(Selector::Step(Step::new(310).unwrap())));
        let id = "0b54a5c0-3c1d-4c1b-9a53-0d6f3f3f2a11";
        assert_eq!(selector_of(id), Ok(Selector::Round(id.parse().unwrap())));
        for wrong in ["", "newest", "-1", "1.5", "9223372036854775808", "99999999999999999999999"] {
            assert_eq!(selector_of(wrong).unwrap_err().reason, Reason::SpecInvalid, "{wrong}");
        }
    }
}
