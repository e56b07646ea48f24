//! Direct sync: a solo agent pushes and commits without a coordinator, by the same rules (push steps 3 to 6). The exact bytes of fence and commit are on
//! disk before they are PUT, so that a sync that was cut off is finished by the next one.

use std::{str::FromStr, sync::Arc, time::Duration};

use chrono::Utc;
use lockstep_bucket::{Access, Checkpoint, Claim, DecisionOutcome, ObjectStore};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart, CommitRef, DecisionObject},
    digest::Digest,
    fence::{Counts, Fence, Writer},
    host::{Layout, Slot},
    id::{Attempt, Generation, RoundId, RoundNo, Seq},
    key::{AttemptPath, Key},
    location::Location,
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
};
use uuid::Uuid;

use crate::{
    alone::{self, Owner, refuse_multihost},
    core::Core,
    order::{PartRef, PushDone},
    push::{self, Assignment},
    register::{Activity, State},
    remote::Remote,
    work::Work,
};

mod journal;

use journal::{Journal, Pending};

/// Tries to learn what a decision key holds before a sync gives up; the next one goes on with the same bytes.
const DECISION_TRIES: u32 = 6;

const DECISION_BACK_OFF: Duration = Duration::from_millis(200);

/// What a sync did, or found done.
#[derive(Clone, Debug)]
pub(crate) struct Synced {
    pub(crate) commit: CommitRef,
    pub(crate) done: PushDone,
}

/// Pushes the newest local checkpoint and commits it. Runs to its end once called: see [`Core::whole`].
pub(crate) async fn sync(core: Arc<Core>, location: Location) -> Result<Synced, Problem> {
    refuse_multihost(core.identity.slot)?;
    if !core.identity.allowed.iter().any(|allowed| allowed.same_place(&location)) {
        let allowed = core.identity.allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(Problem::new(
            Reason::LocationNotAllowed,
            format!("the sync names {location}, this agent allows [{allowed}]: add --allow-location"),
        )
        .with("ordered", &location)
        .with("allowed", allowed));
    }
    let owner = Owner::of(&core.identity.pipeline)?;
    let round = RoundId::new(Uuid::new_v4());
    let (for_body, for_clean_up, for_uploads) = (Arc::clone(&core), Arc::clone(&core), location.clone());
    let trail = push::Trail::default();
    let left = trail.clone();
    alone::run(
        &core,
        Activity::Sync,
        (round, Attempt::FIRST),
        |work| async move {
            let synced = run(&for_body, &owner, location, round, work, trail).await?;
            Ok((State::Pushed(synced.done.clone()), synced))
        },
        move |work| async move { left.abandon(&for_clean_up, &for_uploads, &work).await },
    )
    .await
}

async fn run(
    core: &Core,
    owner: &Owner,
    location: Location,
    round: RoundId,
    work: Work,
    trail: push::Trail,
) -> Result<Synced, Problem> {
    let remote = Remote::connect(core.connector.as_ref(), &location, &work).await?;
    let bucket = remote.bucket().as_ref();
    let mut journal = Journal::load(&core.state_dir, &location, &work).await?;

    let generation = claim(bucket, owner, &mut journal, &work).await?;
    if let Some(pending) = journal.pending() {
        decide(bucket, &mut journal, pending, &work).await?;
    }
    let known = lockstep_bucket::newest(bucket, Access::Own).await?;
    let is_latest = known.greatest == known.whole.as_ref().map(|whole| whole.commit);
    // A damaged one is built on by nobody: whatever it shares with an older one that is whole can be used from there.
    let newest = known.whole;
    let local = newest_local(core, &work).await?;
    if let Some(newest) = newest.as_ref().filter(|_| is_latest)
        && let Some(done) = already(newest, &local)
    {
        return Ok(Synced { commit: newest.commit, done });
    }

    let path = AttemptPath::new(Slot::Solo, generation, round, core.identity.incarnation, Attempt::FIRST);
    let assignment = Assignment {
        pipeline: owner.pipeline,
        slot: Slot::Solo,
        path,
        incarnation: core.identity.incarnation,
        location,
        local_checkpoint: local.id,
        step: local.step,
        fingerprint: local.fingerprint,
        base_parts: newest.as_ref().map(base_parts).transpose()?.unwrap_or_default(),
    };
    let done = push::run(core, assignment, work.clone(), trail).await?;
    let seq = next_seq(bucket, generation).await?;
    let document = CommitDocument {
        pipeline: owner.pipeline,
        pipeline_name: owner.name.clone(),
        generation,
        seq,
        parent: newest.as_ref().map(|newest| newest.commit),
        base: newest.as_ref().map(|newest| newest.commit),
        round,
        // Nobody else numbers rounds here: one push, one seq.
        round_no: RoundNo::new(seq.get())?,
        step: done.step,
        fingerprint: done.fingerprint,
        layout: Layout::Solo,
        created_at: Utc::now(),
        parts: vec![CommitPart {
            host_idx: 0,
            local_checkpoint: done.local_checkpoint,
            manifest: done.part.key(),
            manifest_length: done.part.length,
            manifest_blake3: done.part.blake3,
            files: done.files,
            bytes: done.bytes,
            bytes_uploaded: done.bytes_uploaded,
            processed_records: done.processed_records,
        }],
        trace_id: None,
        writer: concat!("lockstep-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
        labels: std::collections::BTreeMap::new(),
        partitions: Vec::new(),
    };
    let pending = Pending { generation, seq, round, bytes: document.encode() };
    journal.remember(pending.clone(), &work).await?;
    reached(Point::SyncCommitStored);
    let commit = decide(bucket, &mut journal, pending, &work).await?;
    Ok(Synced { commit, done })
}

/// Makes the location ours: the take-over of nothing, with the same fence at each try. A fence of this very pipeline that another disk wrote is ours too:
/// two writers are kept apart by the decision keys.
async fn claim(
    bucket: &dyn ObjectStore,
    owner: &Owner,
    journal: &mut Journal,
    work: &Work,
) -> Result<Generation, Problem> {
    let fence = match journal.fence()? {
        Some(fence) => fence,
        None => {
            let fence = Fence {
                generation: Generation::FIRST,
                pipeline: owner.pipeline,
                pipeline_name: owner.name.clone(),
                writer: Writer::Direct,
                take_over: Uuid::new_v4(),
                created_at: Utc::now(),
                released: false,
            };
            journal.remember_fence(&fence, work).await?;
            reached(Point::SyncFenceStored);
            fence
        }
    };
    match lockstep_bucket::claim_first(bucket, &fence).await? {
        Claim::Mine => Ok(fence.generation),
        Claim::OwnedBy(stands)
            if stands.pipeline == owner.pipeline && stands.writer == Writer::Direct && !stands.released =>
        {
            Ok(stands.generation)
        }
        Claim::OwnedBy(stands) => {
            Err(lockstep_bucket::location_owned(bucket.location(), owner.pipeline, &owner.name, &stands))
        }
    }
}

/// Before anything is chosen from the location: a commit whose end the last sync did not see is put until it is known what stands.
pub(crate) async fn finish_pending(
    core: &Core,
    bucket: &dyn ObjectStore,
    generation: Option<Generation>,
    work: &Work,
) -> Result<(), Problem> {
    let location = bucket.location();
    let mut journal = Journal::load(&core.state_dir, location, work).await?;
    let Some(pending) = journal.pending() else { return Ok(()) };
    if generation.is_none() {
        // Its fence stood before the commit was made.
        return Err(Problem::new(
            Reason::StoreNotFound,
            format!(
                "{location} has no owner, but this agent has synced to it: it was emptied or is another one; nothing is started from it"
            ),
        )
        .with("location", location)
        .with("key", location.full_key(&Key::Fence(Generation::FIRST).to_string())));
    }
    let round = pending.round;
    match decide(bucket, &mut journal, pending, work).await {
        Ok(commit) => tracing::info!(round.id = %round, seq = %commit.seq, "the commit of an earlier sync stands"),
        // Decided otherwise, so that the location tells what there is.
        Err(problem) if journal.pending().is_none() => {
            tracing::warn!(round.id = %round, reason = %problem.reason, "an earlier sync came to nothing: {}", problem.message);
        }
        Err(problem) => return Err(problem),
    }
    Ok(())
}

async fn newest_local(core: &Core, work: &Work) -> Result<LocalCheckpoint, Problem> {
    let store = Arc::clone(&core.store);
    let listed = work.disk(move |_| store.list()).await?;
    // Oldest first: of equal steps the last.
    listed.into_iter().max_by_key(|local| local.step).ok_or_else(|| {
        Problem::new(Reason::NoCommonCheckpoint, "this host has no local checkpoint: make one and sync again")
    })
}

/// The report of a checkpoint that is the newest commit already.
fn already(newest: &Checkpoint, local: &LocalCheckpoint) -> Option<PushDone> {
    let part = newest.document.parts.first().filter(|part| part.local_checkpoint == local.id)?;
    let named = part_ref(part).ok()?;
    Some(PushDone {
        part: named,
        local_checkpoint: part.local_checkpoint,
        step: newest.document.step,
        fingerprint: newest.document.fingerprint,
        files: part.files,
        bytes: part.bytes,
        bytes_uploaded: 0,
        processed_records: part.processed_records,
        elapsed: Duration::ZERO,
    })
}

pub(crate) fn part_ref(part: &CommitPart) -> Result<PartRef, Problem> {
    match Key::from_str(&part.manifest)? {
        Key::PartManifest(path) => Ok(PartRef { path, length: part.manifest_length, blake3: part.manifest_blake3 }),
        other => {
            Err(Problem::new(Reason::ManifestInvalid, format!("{other} is no part manifest's key")).with("key", other))
        }
    }
}

fn base_parts(newest: &Checkpoint) -> Result<Vec<PartRef>, Problem> {
    newest.document.parts.iter().map(part_ref).collect()
}

/// One above all decisions and tombstones of the generation: a swept decision still stands as its tombstone (S3).
async fn next_seq(bucket: &dyn ObjectStore, generation: Generation) -> Result<Seq, Problem> {
    let decided = bucket.list_all(&Key::commits_of(generation)).await?;
    let retired = bucket.list_all(Key::RETIRED).await?;
    let greatest = decided
        .iter()
        .chain(&retired)
        .filter_map(|object| match Key::parse(&object.key) {
            Some(Key::Commit(g, seq) | Key::Retired(g, seq)) if g == generation => Some(seq),
            _ => None,
        })
        .max();
    Ok(greatest.map_or(Seq::FIRST, Seq::next))
}

/// Push steps 4 to 6 with bytes that are on disk: put, until what stands is known, then look for a newer owner. What is decided is forgotten here.
async fn decide(
    bucket: &dyn ObjectStore,
    journal: &mut Journal,
    pending: Pending,
    work: &Work,
) -> Result<CommitRef, Problem> {
    let Pending { generation, seq, round, bytes } = pending;
    let key = Key::Commit(generation, seq).to_string();
    let commit = CommitRef { generation, seq, round, digest: Digest::of(&bytes) };
    let mut back_off = DECISION_BACK_OFF;
    let mut outcome = lockstep_bucket::put_decision(bucket, (generation, seq), bytes.clone().into(), round).await;
    for _ in 1..DECISION_TRIES {
        if !matches!(&outcome, DecisionOutcome::Unknown(error) if error.is_retryable()) {
            break;
        }
        tokio::time::sleep(back_off).await;
        back_off *= 2;
        outcome = lockstep_bucket::put_decision(bucket, (generation, seq), bytes.clone().into(), round).await;
    }
    reached(Point::SyncAfterPut);
    let lost = |what: String| Problem::new(Reason::Fenced, what).with("key", &key).with("round", round);
    match outcome {
        DecisionOutcome::Stands => {}
        // Not known: the next sync goes on with the same bytes.
        DecisionOutcome::Unknown(error) | DecisionOutcome::Refused(error) => return Err(error.into()),
        DecisionOutcome::Unreadable(problem) => return Err(problem),
        DecisionOutcome::OtherRound { round: other } => {
            journal.forget(work).await?;
            return Err(Problem::new(
                Reason::StoreUnavailable,
                format!("round {other} took {key} first: another agent syncs this pipeline; sync again"),
            )
            .with("key", &key)
            .with("round", round)
            .with("other_round", other));
        }
        DecisionOutcome::Aborted(record) => {
            journal.forget(work).await?;
            return Err(lost(format!("{} aborted {key}: {}", record.aborted_by, record.cause)));
        }
        DecisionOutcome::Committed { .. } | DecisionOutcome::Retired => {
            journal.forget(work).await?;
            return Err(lost(format!("{key} was decided by somebody else")));
        }
    }
    // A pending decision may be of a document that an older version wrote: it is parsed like anybody else's.
    DecisionObject::parse(&key, &bytes)?;
    let counts = lockstep_bucket::acknowledge(bucket, generation, seq).await?;
    reached(Point::SyncFenceRead);
    journal.forget(work).await?;
    reached(Point::SyncForgotten);
    match counts {
        Counts::Yes => Ok(commit),
        Counts::No | Counts::Undecided => {
            Err(lost(format!("a newer owner took {} over before {key} stood", bucket.location())))
        }
    }
}
