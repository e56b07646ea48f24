//! Marks of damaged checkpoints in one location.

use bytes::Bytes;
use lockstep_protocol::{
    commit::CommitRef,
    damage::DamageMark,
    document::MAX_DOCUMENT_BYTES,
    problem::{Problem, Reason},
};

use crate::decide::{DecisionFound, read_decision};
use crate::store::{CreateOutcome, Lookup, ObjectStore};

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

/// Whether what seems broken was not retired, and maybe swept, while it was read: then nothing is wrong with it. `CHECKPOINT_NOT_FOUND` if it was.
pub async fn still_stands(store: &dyn ObjectStore, commit: &CommitRef) -> Result<(), Problem> {
    match read_decision(store, commit.generation, commit.seq).await.known()? {
        Some(DecisionFound::Retired) => Err(Problem::new(
            Reason::CheckpointNotFound,
            format!("checkpoint {} of {} was retired while it was read", commit.round, store.location()),
        )
        .with("checkpoint", commit.round)
        .with("location", store.location())),
        // A decision that is gone without a tombstone is damage as well.
        Some(DecisionFound::Decision(..)) | None => Ok(()),
    }
}
