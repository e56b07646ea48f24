//! Pins, deletion of one checkpoint, collection of garbage. The calls admit rows that dispatch drives and wait for their end; what they asked for happens
//! whether or not anybody waits. Dry runs read what dispatch would.

use std::time::Duration;

use lockstep_proto::v1;
use lockstep_protocol::{
    commit::{CommitRef, DecisionObject},
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    garbage::{LandedTombstone, Plan},
    id::Generation,
    key::Key,
    pin::Pin,
    problem::{Problem, Reason},
    upkeep::{Phase, Upkeep, Work},
};
use tokio::time::Instant;

use super::{Api, checkpoints, request};
use crate::{
    chance, convert,
    plan::{
        garbage::{Collector, Ground, NO_LIMITS, check_may_go},
        losses,
    },
    store::{AdmitUpkeep, Caller, Change, ClaimState, PipelineRow},
};

/// Objects that one answer lists.
const LISTED: usize = 10_000;

/// Longest name of a pin.
const NAME: usize = 64;

impl Api {
    pub(super) async fn do_pin_checkpoint(
        &self,
        caller: Caller,
        message: v1::PinCheckpointRequest,
    ) -> Result<v1::Pin, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        let name = pin_name(message.name)?;
        let work = match self.asked_before(&row, &message.request_id).await? {
            Some(work) => work,
            None => {
                let (_, _, found) = self.checkpoint(&message.pipeline, &message.checkpoint).await?;
                let checkpoint = found.whole()?;
                let pin = Pin {
                    name,
                    id: chance::id(),
                    commit: checkpoint.commit,
                    pinned_by: caller.actor.clone(),
                    pinned_at: self.store.now().await?,
                };
                Work::Pin { commit: pin.commit, key: pin.key().to_string(), bytes: text_of(&pin)? }
            }
        };
        let ended = self.kept_up(&row, work, &message.request_id, &caller).await?;
        // An earlier call with this request id may have made another one.
        match &ended.work {
            Work::Pin { key, bytes, .. } => Ok(convert::upkeep::pin(&Pin::parse(key, bytes.as_bytes())?)),
            other => Err(answered_another(&ended, other)),
        }
    }

    pub(super) async fn do_unpin_checkpoint(
        &self,
        caller: Caller,
        message: v1::UnpinCheckpointRequest,
    ) -> Result<v1::UnpinCheckpointResponse, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        if message.pin.is_empty() {
            return Err(request::refuse("pin", "\"\"", "is missing: the UUID of one pin, or the name of some"));
        }
        // When it is done, the pins are gone: who asks again is told of those that the row names.
        let work = match self.asked_before(&row, &message.request_id).await? {
            Some(work) => work,
            None => self.unpin(&row, &message.pin).await?,
        };
        let ended = self.kept_up(&row, work, &message.request_id, &caller).await?;
        let Work::Unpin { keys, documents } = &ended.work else { return Err(answered_another(&ended, &ended.work)) };
        let pins = keys.iter().zip(documents).map(|(key, bytes)| Pin::parse(key, bytes.as_bytes()));
        let pins = pins.map(|pin| Ok(convert::upkeep::pin(&pin?))).collect::<Result<_, Problem>>()?;
        Ok(v1::UnpinCheckpointResponse { pins })
    }

    async fn unpin(&self, row: &PipelineRow, pin: &str) -> Result<Work, Problem> {
        let store = self.connector.connect(&row.spec.location).await?;
        let mut pins = checkpoints::pins(&store).await?;
        pins.retain(|known| known.name == pin || known.id.to_string() == pin);
        if pins.is_empty() {
            return Err(Problem::new(
                Reason::CheckpointNotFound,
                format!("{} holds no pin {pin:?}; checkpoint show lists those of a checkpoint", row.spec.location),
            )
            .with("pin", pin)
            .with("location", &row.spec.location));
        }
        let keys = pins.iter().map(|pin| pin.key().to_string()).collect();
        Ok(Work::Unpin { keys, documents: pins.iter().map(text_of).collect::<Result<_, _>>()? })
    }

    pub(super) async fn do_delete_checkpoint(
        &self,
        caller: Caller,
        message: v1::DeleteCheckpointRequest,
    ) -> Result<v1::DeleteCheckpointResponse, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        if !message.validate_only
            && let Some(work) = self.asked_before(&row, &message.request_id).await?
        {
            let ended = self.kept_up(&row, work, &message.request_id, &caller).await?;
            let Work::Retire { commit } = &ended.work else { return Err(answered_another(&ended, &ended.work)) };
            return Ok(v1::DeleteCheckpointResponse { checkpoint: Some(self.retired(&row, commit).await?) });
        }
        let (_, _, found) = self.checkpoint(&message.pipeline, &message.checkpoint).await?;
        let commit = found.commit();
        if message.validate_only {
            let survey = self.collector(&row).await?.survey(Some(NO_LIMITS)).await?;
            check_may_go(&survey, &commit)?;
        } else {
            let work = Work::Retire { commit };
            self.kept_up(&row, work, &message.request_id, &caller).await?;
        }
        Ok(v1::DeleteCheckpointResponse { checkpoint: Some(checkpoints::message_of(&found, None)) })
    }

    /// For who asks again: what it is, as long as its commit is not swept; then which it was.
    async fn retired(&self, row: &PipelineRow, commit: &CommitRef) -> Result<v1::Checkpoint, Problem> {
        let store = self.connector.connect(&row.spec.location).await?;
        let key = commit.key().to_string();
        // Its tombstone stands: by the rules that readers follow it is gone.
        let bytes = store.get(&key, MAX_DOCUMENT_BYTES).await.or_problem().known()?;
        let decision = bytes.as_ref().filter(|bytes| Digest::of(bytes) == commit.digest);
        Ok(match decision.map(|bytes| DecisionObject::parse(&key, bytes)) {
            Some(Ok(DecisionObject::Commit(document))) => convert::checkpoint::checkpoint(commit, &document, false),
            _ => v1::Checkpoint {
                id: commit.round.to_string(),
                commit: Some(convert::round::commit_ref(commit)),
                ..v1::Checkpoint::default()
            },
        })
    }

    /// What an earlier call with this request id asked for: it is that call's answer which is given again, whatever the bucket holds now.
    async fn asked_before(&self, row: &PipelineRow, request_id: &str) -> Result<Option<Work>, Problem> {
        let Some(request_id) = request::request_id(request_id)? else { return Ok(None) };
        Ok(self.store.asked_upkeep(row.id, request_id).await?.map(|known| known.work))
    }

    pub(super) async fn do_collect_garbage(
        &self,
        caller: Caller,
        message: v1::CollectGarbageRequest,
    ) -> Result<v1::CollectGarbageResponse, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        if message.validate_only {
            return self.what_would_go(&row).await;
        }
        let ended = self.admitted_and_waited_for(&row, Work::Collect, &message.request_id, &caller).await?;
        Ok(v1::CollectGarbageResponse {
            collection: Some(convert::upkeep::collection(&ended)),
            ..v1::CollectGarbageResponse::default()
        })
    }

    async fn collector(&self, row: &PipelineRow) -> Result<Collector, Problem> {
        if row.claim != ClaimState::Owned || row.generation == Generation::NONE {
            let name = &row.spec.name;
            return Err(Problem::new(
                Reason::NotOwner,
                format!("pipeline {name} owns no location: only the owner retires and deletes what is there"),
            )
            .with("pipeline", name)
            .with("location", &row.spec.location)
            .with("claim", row.claim.as_str()));
        }
        let ground = Ground {
            pipeline: row.id,
            location: row.spec.location.clone(),
            generation: row.generation,
            grace: self.options.gc_grace,
            patience: self.options.preview.store_patience,
        };
        Collector::open(self.connector.as_ref(), &self.store, ground).await
    }

    /// Exactly what a collection would do now, found in the same way.
    async fn what_would_go(&self, row: &PipelineRow) -> Result<v1::CollectGarbageResponse, Problem> {
        let collector = self.collector(row).await?;
        let found = losses::compare(collector.look(), &self.store, row).await?;
        losses::refuse(row, &found.lost)?;
        let collector = collector.expecting(row, found.listed);
        let survey = collector.survey(row.spec.retention).await?;
        let retire = collector.foreseen(&survey);
        let sweep = collector.sweep(&retire).await?;
        let orphans = collector.orphans().await?;
        let swept = sweep.commits.iter().filter_map(|doomed| match Key::parse(&doomed.key) {
            Some(Key::Commit(generation, seq)) => {
                let all = survey.decisions.counted.iter().map(|counted| counted.commit);
                all.into_iter().find(|commit| (commit.generation, commit.seq) == (generation, seq))
            }
            _ => None,
        });
        let (first, second) = (sweep.totals(), orphans.totals());
        let listed = |plan: &Plan, orphan: bool| {
            let stages = plan.stages().into_iter().flatten();
            stages.map(|doomed| convert::upkeep::object(doomed, orphan)).collect::<Vec<_>>()
        };
        let mut objects = listed(&sweep, false);
        objects.extend(listed(&orphans, true));
        objects.truncate(LISTED);
        Ok(v1::CollectGarbageResponse {
            collection: None,
            retire: refs(retire.iter().map(LandedTombstone::commit)),
            sweep: refs(swept),
            objects,
            uploads: orphans.uploads.iter().take(LISTED).map(convert::upkeep::upload).collect(),
            object_count: first.objects.saturating_add(second.objects),
            bytes: first.bytes.saturating_add(second.bytes),
            problem: collector.lost().as_ref().map(convert::status::problem),
        })
    }

    /// Done, or the problem why not.
    async fn kept_up(
        &self,
        row: &PipelineRow,
        work: Work,
        request_id: &str,
        caller: &Caller,
    ) -> Result<Upkeep, Problem> {
        let now = self.admitted_and_waited_for(row, work, request_id, caller).await?;
        match (now.phase, &now.problem) {
            (Phase::Done, _) => Ok(now),
            (Phase::Failed, Some(problem)) => Err(problem.clone()),
            _ => Err(still_under_way(&now)),
        }
    }

    /// As it is when it has ended, or after the longest wait.
    async fn admitted_and_waited_for(
        &self,
        row: &PipelineRow,
        work: Work,
        request_id: &str,
        caller: &Caller,
    ) -> Result<Upkeep, Problem> {
        let ask = AdmitUpkeep {
            pipeline: row.id.into(),
            work,
            request_id: request::request_id(request_id)?,
            at_least_apart: None,
            retry: self.options.retry,
        };
        let mut changes = self.store.changes();
        let mut now = self.store.admit_upkeep(ask, caller).await?;
        let until = Instant::now() + self.options.create_wait;
        let pipeline = now.pipeline;
        let concerns = move |change| change == Change::Pipeline(pipeline) || change == Change::Anything;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if now.phase.is_terminal() || left <= Duration::ZERO || self.stopping.is_cancelled() {
                return Ok(now);
            }
            self.sleep_until_change(&mut changes, concerns, left).await;
            now = self.store.get_upkeep(now.id).await?;
        }
    }
}

fn refs(commits: impl Iterator<Item = CommitRef>) -> Vec<v1::CommitRef> {
    commits.map(|commit| convert::round::commit_ref(&commit)).collect()
}

fn text_of(pin: &Pin) -> Result<String, Problem> {
    String::from_utf8(pin.encode())
        .map_err(|error| Problem::new(Reason::SpecInvalid, format!("the pin {} is no UTF-8: {error}", pin.name)))
}

fn pin_name(name: String) -> Result<String, Problem> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    match name.as_str() {
        "" => Ok("pin".to_owned()),
        text if text.len() <= NAME && text.bytes().all(plain) => Ok(name),
        text => Err(request::refuse(
            "name",
            format!("{text:?}"),
            "a pin's name has at most 64 letters, digits, hyphens and underscores",
        )),
    }
}

fn answered_another(ended: &Upkeep, work: &Work) -> Problem {
    Problem::new(
        Reason::RequestIdReused,
        format!(
            "the request id was used for upkeep {} of pipeline {}, which is to {}: use a new request id",
            ended.id,
            ended.pipeline_name,
            work.as_str()
        ),
    )
    .with("upkeep", ended.id)
    .with("pipeline", &ended.pipeline_name)
    .with("work", work.as_str())
}

fn still_under_way(now: &Upkeep) -> Problem {
    let last = now.problem.as_ref().map_or_else(String::new, |problem| format!(" ({problem})"));
    Problem::new(
        Reason::StoreUnavailable,
        format!(
            "{} in {} of pipeline {} is not done yet{last}; it goes on, the same call with the same request_id tells how it ends",
            now.work.as_str(),
            now.location,
            now.pipeline_name
        ),
    )
    .with("pipeline", &now.pipeline_name)
    .with("location", &now.location)
    .with("upkeep", now.id)
}
