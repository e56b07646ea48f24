//! Marks of damaged checkpoints in one location; and whether what seems damaged was retired.

use bytes::Bytes;
use lockstep_protocol::{
    commit::CommitRef,
    damage::DamageMark,
    document::MAX_DOCUMENT_BYTES,
    key::Key,
    latest::take_over_in_progress,
    problem::{Problem, Reason},
    tombstone::Tombstone,
};

use crate::{
    document, fences,
    store::{CreateOutcome, Lookup, ObjectStore},
};

/// Puts a mark, create-only. Whatever stands at its key afterwards marks the checkpoint: also another's, and bytes that nobody can read. An error: it may stand or
/// not, and the same bytes are put again.
pub async fn put_mark(store: &dyn ObjectStore, mark: &DamageMark) -> Result<(), Problem> {
    let key = mark.key();
    let error = match store.create(&key.to_string(), Bytes::from(mark.encode())).await {
        CreateOutcome::Done | CreateOutcome::Exists => return Ok(()),
        CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => error,
    };
    match store.get(&key.to_string(), MAX_DOCUMENT_BYTES).await {
        Lookup::Found(_) => Ok(()),
        Lookup::Absent | Lookup::Unknown(_) => Err(error.problem()),
    }
}

/// Whether a commit bears a mark, whoever put it.
pub async fn is_marked(store: &dyn ObjectStore, commit: &CommitRef) -> Result<bool, Problem> {
    let key = DamageMark::key_of(commit).to_string();
    Ok(store.get(&key, MAX_DOCUMENT_BYTES).await.or_problem().known()?.is_some())
}

/// Whether what seems broken was not retired, and maybe swept, while it was read: then nothing is wrong with it. `CHECKPOINT_NOT_FOUND` if it was.
pub async fn still_stands(store: &dyn ObjectStore, commit: &CommitRef) -> Result<(), Problem> {
    if !is_retired(store, commit).await? {
        // A decision that is gone without a tombstone is damage as well.
        return Ok(());
    }
    Err(Problem::new(
        Reason::CheckpointNotFound,
        format!("checkpoint {} of {} was retired while it was read", commit.round, store.location()),
    )
    .with("checkpoint", commit.round)
    .with("location", store.location()))
}

/// Whether a commit's owner has retired it: its tombstone stands and counts, as for whoever looks for what there is. One that a fenced owner wrote late does not (take-over, step 4).
pub async fn is_retired(store: &dyn ObjectStore, commit: &CommitRef) -> Result<bool, Problem> {
    let key = Key::Retired(commit.generation, commit.seq);
    if store.get(&key.to_string(), MAX_DOCUMENT_BYTES).await.or_problem().known()?.is_none() {
        return Ok(false);
    }
    let Some(highest) = fences::highest(store).await.known()? else { return Ok(true) };
    if commit.generation >= highest {
        return Ok(true);
    }
    let Some(tombstone) = document::read(store, &key, Tombstone::parse).await.known()? else { return Ok(false) };
    match fences::base(store, highest).await.known()? {
        Some(base) => Ok(tombstone.counts(highest, Some(&base))),
        None if tombstone.counts(highest, None) => Ok(true),
        None => Err(fences::at(store, take_over_in_progress(highest))),
    }
}
