//! Reading one document of a location: bytes that can't be parsed are unknown, never absent.

use bytes::Bytes;
use lockstep_protocol::{
    document::MAX_DOCUMENT_BYTES,
    id::{Generation, Seq},
    key::Key,
    problem::Problem,
};

use crate::store::{Lookup, ObjectStore};

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
