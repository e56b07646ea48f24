//! Reading one document of a location: bytes that can't be parsed are unknown, never absent.

use bytes::Bytes;
use lockstep_protocol::{
    commit::{CommitRef, DecisionObject},
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    id::{Generation, Seq},
    key::Key,
    problem::Problem,
};

use crate::{
    error::StoreErrorKind,
    store::{Lookup, ObjectStore},
};

/// Reads and parses the document at `key`.
pub(crate) async fn read<T>(
    store: &dyn ObjectStore,
    key: &Key,
    parse: impl FnOnce(&str, &[u8]) -> Result<T, Problem> + Send,
) -> Lookup<T, Problem> {
    let key = key.to_string();
    store.get(&key, MAX_DOCUMENT_BYTES).await.or_problem().and_parse(|bytes| parse(&key, &bytes))
}

/// Whether a decision key is tombstoned. By GET: the 404 of a HEAD has no code, so it would take a second request to prove anything.
pub(crate) async fn tombstone(store: &dyn ObjectStore, generation: Generation, seq: Seq) -> Lookup<Bytes> {
    store.get(&Key::Retired(generation, seq).to_string(), MAX_DOCUMENT_BYTES).await
}

/// What a decision key holds.
pub(crate) enum Decided {
    /// A commit, or an abort record.
    Decision {
        decision: DecisionObject,
        digest: Digest,
        /// Of its bytes.
        length: u64,
    },
    /// Bytes that are neither, and what is wrong with them. There is no other truth about this key: the store answered.
    Unreadable { commit: CommitRef, length: u64, problem: Problem },
}

/// Reads a decision key. What the store did not answer is unknown; what it answered is known, also where it makes no sense.
pub(crate) async fn decision(store: &dyn ObjectStore, generation: Generation, seq: Seq) -> Lookup<Decided, Problem> {
    let key = Key::Commit(generation, seq).to_string();
    let location = store.location();
    let unreadable = |bytes: &[u8], problem: Problem| Decided::Unreadable {
        commit: CommitRef::unreadable(generation, seq, bytes),
        length: length_of(bytes),
        problem: problem.with("location", location).with("generation", generation).with("seq", seq),
    };
    match store.get(&key, MAX_DOCUMENT_BYTES).await {
        Lookup::Found(bytes) => Lookup::Found(match DecisionObject::parse(&key, &bytes) {
            Ok(decision) => Decided::Decision { decision, digest: Digest::of(&bytes), length: length_of(&bytes) },
            Err(problem) => unreadable(&bytes, problem),
        }),
        Lookup::Absent => Lookup::Absent,
        // No decision is so long.
        Lookup::Unknown(error) if error.kind == StoreErrorKind::TooLarge => {
            Lookup::Found(unreadable(&[], error.problem()))
        }
        Lookup::Unknown(error) => Lookup::Unknown(error.problem()),
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
