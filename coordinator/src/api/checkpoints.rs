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
use lockstep_bucket::{Access, DecisionFound, Entry, ObjectStore, Selector};
use lockstep_failpoint::{Point, reached};
use lockstep_proto::v1;
use lockstep_protocol::{
    commit::CommitRef,
    id::{Generation, PipelineId, RoundId, Seq, Step},
    location::Location,
    pin::Pin,
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
        let mut rest =
            all.iter().filter(|one| after.is_none_or(|after| one.commit().place() < (after.generation, after.seq)));
        let shown: Vec<&Entry> = rest.by_ref().take(size).collect();
        let next = shown
            .last()
            .filter(|_| rest.next().is_some())
            .map(|last| Cursor { generation: last.commit().generation, seq: last.commit().seq }.token());
        let pins = pins(&store).await?;
        let verifications = self.verifications(row.id, shown.iter().map(|one| one.commit().round).collect()).await?;
        Ok(v1::ListCheckpointsResponse {
            checkpoints: shown
                .into_iter()
                .map(|one| with_pins(message_of(one, verifications.get(&one.commit().round)), &one.commit(), &pins))
                .collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }

    pub(super) async fn do_get_checkpoint(&self, message: v1::GetCheckpointRequest) -> Result<v1::Checkpoint, Problem> {
        let (row, store, found) = self.checkpoint(&message.pipeline, &message.checkpoint).await?;
        let commit = found.commit();
        let verifications = self.verifications(row.id, vec![commit.round]).await?;
        let shown = message_of(&found, verifications.get(&commit.round));
        Ok(with_pins(shown, &commit, &pins(&store).await?))
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
        let (row, bucket, found) = self.checkpoint(&message.pipeline, &message.checkpoint).await?;
        let (sender, receiver) = mpsc::channel(2);
        let scope = if message.structure_only { Scope::Structure } else { Scope::All };
        let reading = Reading { pipeline: row.id, bucket, found, scope, started_at: self.store.now().await? };
        let api = self.clone();
        let verifying = async move { api.verify(caller, reading, sender).await };
        tokio::spawn(verifying.in_current_span());
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    /// Also one that can't be read, if it is named by its place or stand-in.
    pub(super) async fn checkpoint(
        &self,
        pipeline: &str,
        name: &str,
    ) -> Result<(PipelineRow, Arc<dyn ObjectStore>, Entry), Problem> {
        let selector = selector_of(name)?;
        let row = self.pipeline(pipeline).await?;
        let store = self.connector.connect(&row.spec.location).await?;
        match find(&store, selector).await? {
            Some(found) => Ok((row, store, found)),
            None => Err(not_found(name, &row.spec.location)),
        }
    }
}

// Boxed where their lifetimes are named: inside a handler's future the compiler forgets these and then can't see that they are Send.

fn list(store: &Arc<dyn ObjectStore>, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, Problem>> {
    Box::pin(patiently(PATIENCE, move || lockstep_bucket::list_checkpoints(store.as_ref(), Access::ReadOnly, limit)))
}

fn find(store: &Arc<dyn ObjectStore>, selector: Selector) -> BoxFuture<'_, Result<Option<Entry>, Problem>> {
    Box::pin(patiently(PATIENCE, move || async move {
        lockstep_bucket::look_up(store.as_ref(), selector, Access::ReadOnly).await.known()
    }))
}

fn read<'a>(
    reading: &'a Reading,
    progress: &'a (dyn Fn(u64) + Send + Sync),
) -> BoxFuture<'a, Result<Vec<Problem>, Problem>> {
    Box::pin(async move {
        let bucket = reading.bucket.as_ref();
        let document = match &reading.found {
            Entry::Whole(checkpoint) => &checkpoint.document,
            Entry::Unreadable(unreadable) => {
                return still_unreadable(bucket, &unreadable.commit, &unreadable.problem).await;
            }
        };
        let broken = match reading.scope {
            Scope::All => lockstep_bucket::verify_checkpoint(bucket, document, progress).await?,
            Scope::Structure => lockstep_bucket::verify_structure(bucket, document).await?,
        };
        if !broken.is_empty() {
            lockstep_bucket::still_stands(bucket, &reading.found.commit()).await?;
        }
        Ok(broken)
    })
}

/// What is wrong with a commit document, if the same bytes are read once more: for what was an accident on the way nothing is given up.
async fn still_unreadable(
    bucket: &dyn ObjectStore,
    commit: &CommitRef,
    why: &Problem,
) -> Result<Vec<Problem>, Problem> {
    // One that a newer version has written is whole.
    if why.metadata.contains_key("format") {
        return Err(why.clone());
    }
    let found = match lockstep_bucket::read_decision(bucket, commit.generation, commit.seq).await.known()? {
        Some(DecisionFound::Unreadable(again, _)) => Some(again.digest),
        // It can be read, and is another one than the next generation's base names.
        Some(DecisionFound::Decision(_, digest)) => Some(digest),
        Some(DecisionFound::Retired) | None => None,
    };
    if found == Some(commit.digest) {
        return Ok(vec![why.clone()]);
    }
    Err(Problem::new(
        Reason::StoreUnavailable,
        format!("{} in {} was changed while it was read: verify it again", commit.key(), bucket.location()),
    )
    .with("key", commit.key())
    .with("location", bucket.location()))
}

pub(super) fn pins(store: &Arc<dyn ObjectStore>) -> BoxFuture<'_, Result<Vec<Pin>, Problem>> {
    Box::pin(patiently(PATIENCE, move || lockstep_bucket::pins::list_pins(store.as_ref())))
}

fn with_pins(shown: v1::Checkpoint, commit: &CommitRef, pins: &[Pin]) -> v1::Checkpoint {
    let own = pins.iter().filter(|pin| pin.commit.place() == commit.place());
    v1::Checkpoint { pins: own.map(convert::upkeep::pin).collect(), ..shown }
}

pub(super) fn message_of(found: &Entry, last: Option<&Verification>) -> v1::Checkpoint {
    v1::Checkpoint {
        last_verification: last.map(convert::checkpoint::verification),
        ..convert::checkpoint::entry(found)
    }
}

fn not_found(name: &str, location: &Location) -> Problem {
    Problem::new(Reason::CheckpointNotFound, format!("{location} holds no checkpoint {name}"))
        .with("checkpoint", name)
        .with("location", location)
}

/// UUID, step in decimal, place as GENERATION-SEQ, or `latest`.
fn selector_of(name: &str) -> Result<Selector, Problem> {
    if name == "latest" {
        return Ok(Selector::Latest);
    }
    if !name.is_empty() && name.bytes().all(|c| c.is_ascii_digit()) {
        let step =
            name.parse().map_err(|_| request::refuse("checkpoint", name, "is no step: the greatest is 2^63-1"))?;
        return Ok(Selector::Step(Step::new(step)?));
    }
    if let Some((generation, seq)) = place_of(name) {
        return Ok(Selector::Place(generation, seq));
    }
    name.parse().map(Selector::Round).map_err(|_| {
        let why = "is neither latest nor a step in decimal nor a UUID nor a place GENERATION-SEQ";
        request::refuse("checkpoint", format!("{name:?}"), why)
    })
}

fn place_of(name: &str) -> Option<(Generation, Seq)> {
    let (generation, seq) = name.split_once('-')?;
    Some((Generation::new(generation.parse().ok()?).ok()?, Seq::new(seq.parse().ok()?).ok()?))
}

/// What is verified for a caller.
struct Reading {
    pipeline: PipelineId,
    bucket: Arc<dyn ObjectStore>,
    found: Entry,
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
        let (bytes_total, files_total) = match &reading.found {
            Entry::Whole(checkpoint) => (checkpoint.document.bytes(), checkpoint.document.files()),
            Entry::Unreadable(_) => (0, 0),
        };
        let counters = || {
            let elapsed = begun.elapsed();
            let bytes = read_so_far.load(Ordering::Relaxed);
            v1::Progress {
                bytes_done: bytes,
                bytes_total,
                files_total,
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
            commit: reading.found.commit(),
            scope: reading.scope,
            rolling: false,
            bytes: progress.bytes_done,
            problems,
            started_at: reading.started_at,
        };
        let mut changes = self.store.changes();
        reached(Point::VerifyRead);
        let mut kept = self.store.keep_verification(finding, caller).await?;
        reached(Point::VerifyKept);
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
        let files_done = if all_files { progress.files_total } else { 0 };
        Ok(v1::VerifyCheckpointResponse {
            progress: Some(v1::Progress { files_done, ..progress }),
            done: true,
            problems: shown,
            checkpoint: Some(v1::Checkpoint {
                damaged: reading.found.damaged() || !intact,
                ..message_of(&reading.found, Some(&kept))
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
        let place = Selector::Place(Generation::new(2).unwrap(), Seq::new(17).unwrap());
        assert_eq!(selector_of("2-17"), Ok(place));
        for wrong in
            ["", "newest", "-1", "1.5", "2-", "-17", "2-17-1", "9223372036854775808", "99999999999999999999999"]
        {
            assert_eq!(selector_of(wrong).unwrap_err().reason, Reason::SpecInvalid, "{wrong}");
        }
    }
}
