//! Push steps 4 to 6 against one location: putting a decision, and reading what follows its generation.

use bytes::Bytes;
use lockstep_protocol::{
    commit::{AbortRecord, CommitDocument, CommitRef, DecisionObject},
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    fence::{Counts, Fence, FenceBase, Successor, counts},
    id::{Generation, RoundId, Seq},
    key::Key,
    planted::{self, Bug},
    problem::Problem,
    tombstone::Tombstone,
};

use crate::{
    document::{self, Decided},
    error::{Operation, StoreError},
    fences,
    store::{CreateOutcome, Lookup, ObjectStore, WriteOutcome},
};

/// What is known of a decision key after a try to write it. Whoever won the key has decided (push steps 4, 5).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum DecisionOutcome {
    /// Exactly the given bytes stand, by this try or an earlier one (R2).
    Stands,
    /// An abort record of this round stands that is not the given bytes.
    Aborted(AbortRecord),
    /// A commit of this round stands that is not the given bytes: the abort came too late.
    Committed {
        /// What stands.
        document: Box<CommitDocument>,
        /// Of its bytes.
        digest: Digest,
    },
    /// Something of another round stands: never mine, the database is behind.
    OtherRound {
        /// Whose.
        round: RoundId,
    },
    /// The key is tombstoned: what was decided here stood and has been retired since.
    Retired,
    /// Something stands that can't be read. Retrying doesn't help, and nothing is decided for this round.
    Unreadable(Problem),
    /// It may stand, may land later, or may not: try the same bytes again.
    Unknown(StoreError),
    /// The store refused, and the key was read as absent. An earlier try that is still under way may land even so.
    Refused(StoreError),
}

/// Puts the stored bytes of a commit document or abort record at the key of its push round, create-only, and says what stands there.
/// Call it again with the same bytes until the outcome is neither `Unknown` nor `Refused`.
pub async fn put_decision(
    store: &dyn ObjectStore,
    (generation, seq): (Generation, Seq),
    bytes: Bytes,
    my_round: RoundId,
) -> DecisionOutcome {
    let key = Key::Commit(generation, seq).to_string();
    // A tombstone is only looked for where the key is read: a late duplicate that lands on a swept key (R18) harms nobody, since every
    // reader of the key reads its tombstone.
    let lost = match create_unless(Bug::UnconditionalCommitPut, store, &key, bytes.clone()).await {
        CreateOutcome::Done => return DecisionOutcome::Stands,
        CreateOutcome::Exists => None,
        CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => Some(error),
    };
    // A refused try proves nothing about the try before it, whose answer may have been lost: read in any case.
    let found = match store.get(&key, MAX_DOCUMENT_BYTES).await {
        Lookup::Found(found) => Some(found),
        Lookup::Absent => None,
        Lookup::Unknown(error) => return DecisionOutcome::Unknown(lost.unwrap_or(error)),
    };
    match document::tombstone(store, generation, seq).await {
        Lookup::Found(_) => return DecisionOutcome::Retired,
        Lookup::Absent => {}
        Lookup::Unknown(error) => return DecisionOutcome::Unknown(error),
    }
    match (found, lost) {
        (Some(found), _) => judge(&key, &found, &bytes, my_round),
        (None, Some(error)) if error.is_refusal() => DecisionOutcome::Refused(error),
        (None, Some(error)) => DecisionOutcome::Unknown(error),
        (None, None) => DecisionOutcome::Unknown(StoreError::answered(
            Operation::Create,
            (store.location().bucket(), &store.location().full_key(&key)),
            Some(412),
            None,
            "the key existed and was absent right after",
        )),
    }
}

/// Create-only, unless that bug is planted.
pub(crate) async fn create_unless(bug: Bug, store: &dyn ObjectStore, key: &str, bytes: Bytes) -> CreateOutcome {
    if !planted::is(bug) {
        return store.create(key, bytes).await;
    }
    match store.put(key, bytes.into()).await {
        WriteOutcome::Done => CreateOutcome::Done,
        WriteOutcome::Refused(error) => CreateOutcome::Refused(error),
        WriteOutcome::Unknown(error) => CreateOutcome::Unknown(error),
    }
}

/// Bytes are compared first: the own retried PUT is answered "exists" (R2).
fn judge(key: &str, found: &Bytes, mine: &Bytes, my_round: RoundId) -> DecisionOutcome {
    if planted::is(Bug::ExistsTakenAsFailed) {
        return DecisionOutcome::OtherRound { round: my_round };
    }
    if found == mine || planted::is(Bug::ExistsTakenAsMine) {
        return DecisionOutcome::Stands;
    }
    match DecisionObject::parse(key, found) {
        Ok(other) if other.round() != my_round => DecisionOutcome::OtherRound { round: other.round() },
        Ok(DecisionObject::Abort(record)) => DecisionOutcome::Aborted(record),
        Ok(DecisionObject::Commit(document)) => DecisionOutcome::Committed { document, digest: Digest::of(found) },
        Err(problem) => DecisionOutcome::Unreadable(problem),
    }
}

/// What stands at a decision key, read with its tombstone (G1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecisionFound {
    /// A decision, and the digest of its bytes.
    Decision(DecisionObject, Digest),
    /// Bytes that are none, named by their place, and why not.
    Unreadable(CommitRef, Problem),
    /// The key is tombstoned, whatever it holds.
    Retired,
}

/// Reads a decision key and its tombstone.
pub async fn read_decision(
    store: &dyn ObjectStore,
    generation: Generation,
    seq: Seq,
) -> Lookup<DecisionFound, Problem> {
    let decided = document::decision(store, generation, seq).await;
    match document::tombstone(store, generation, seq).await.or_problem() {
        Lookup::Found(_) => Lookup::Found(DecisionFound::Retired),
        Lookup::Absent => decided.map(|decided| match decided {
            Decided::Decision { decision, digest, .. } => DecisionFound::Decision(decision, digest),
            Decided::Unreadable { commit, problem, .. } => DecisionFound::Unreadable(commit, problem),
        }),
        Lookup::Unknown(problem) => Lookup::Unknown(problem),
    }
}

/// The commit that stood at a tombstoned key, as its tombstone names it.
pub async fn retired_commit(store: &dyn ObjectStore, generation: Generation, seq: Seq) -> Lookup<CommitRef, Problem> {
    document::read(store, &Key::Retired(generation, seq), Tombstone::parse).await.map(|tombstone| tombstone.commit)
}

/// What is known of fence g+1: proven absent, standing alone, or with its base. An error is "unknown".
pub async fn successor(store: &dyn ObjectStore, generation: Generation) -> Result<Successor, Problem> {
    let next = generation.next();
    // The fence is read first: a base that stands was written after its fence.
    if document::read(store, &Key::Fence(next), Fence::parse).await.known()?.is_none() {
        return Ok(Successor::Absent);
    }
    Ok(document::read(store, &Key::FenceBase(next), FenceBase::parse)
        .await
        .known()?
        .map_or(Successor::FenceOnly, Successor::Base))
}

/// Push step 6: whether a commit that is known to stand counts. A fence without a base is finished on the way (F3), so the answer is never
/// [`Counts::Undecided`]. For the owner of the location only, and only after the commit is known to stand.
pub async fn acknowledge(store: &dyn ObjectStore, generation: Generation, seq: Seq) -> Result<Counts, Problem> {
    let known = match successor(store, generation).await? {
        Successor::FenceOnly => Successor::Base(fences::finish_base(store, generation.next()).await?),
        known => known,
    };
    Ok(counts(generation, seq, &known))
}
