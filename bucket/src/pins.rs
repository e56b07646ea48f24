//! Pins of a location: what they keep stays whatever retention says. One that can't be read stops whoever would delete.

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use lockstep_protocol::{
    document::MAX_DOCUMENT_BYTES,
    key::Key,
    pin::Pin,
    problem::{Problem, Reason},
};

use crate::{
    document, fences,
    store::{CreateOutcome, Lookup, ObjectStore},
};

/// Every pin there is, those that were taken away while they were listed left out.
pub async fn list_pins(store: &dyn ObjectStore) -> Result<Vec<Pin>, Problem> {
    below(store, Key::PINS).await
}

/// Those with a name that begins so.
pub async fn list_pins_named(store: &dyn ObjectStore, name: &str) -> Result<Vec<Pin>, Problem> {
    below(store, &format!("{}{name}", Key::PINS)).await
}

async fn below(store: &dyn ObjectStore, prefix: &str) -> Result<Vec<Pin>, Problem> {
    let listed = store.list_all(prefix).await?;
    let keys = listed.iter().filter_map(|object| Key::parse(&object.key)).filter(|key| matches!(key, Key::Pin(..)));
    // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
    let reads: Vec<BoxFuture<'_, Result<Option<Pin>, Problem>>> =
        keys.map(|key| async move { document::read(store, &key, Pin::parse).await.known() }.boxed()).collect();
    let pins: Vec<Option<Pin>> = futures::stream::iter(reads).buffered(fences::PARALLEL).try_collect().await?;
    Ok(pins.into_iter().flatten().collect())
}

/// Puts a pin's stored bytes, create-only. Its key is its own, so what stands there is it. An error: not known, the same bytes may be put again.
pub async fn put_pin(store: &dyn ObjectStore, key: &str, bytes: &str) -> Result<(), Problem> {
    let error = match store.create(key, Bytes::from(bytes.to_owned())).await {
        CreateOutcome::Done => return Ok(()),
        CreateOutcome::Exists => None,
        CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => Some(error),
    };
    match (store.get(key, MAX_DOCUMENT_BYTES).await, error) {
        (Lookup::Found(found), _) if found == bytes.as_bytes() => Ok(()),
        (Lookup::Found(_), _) => Err(Problem::new(
            Reason::ManifestInvalid,
            format!("{key} in {} holds other bytes than were put there", store.location()),
        )
        .with("location", store.location())
        .with("key", key)),
        (_, Some(error)) | (Lookup::Unknown(error), None) => Err(error.problem()),
        (Lookup::Absent, None) => Err(Problem::new(
            Reason::StoreUnavailable,
            format!("{key} existed in {} and was absent right after", store.location()),
        )
        .with("location", store.location())
        .with("key", key)),
    }
}
