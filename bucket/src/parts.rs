//! Reading part manifests: compared with what names them before they are parsed, and with what they inherit put in its place.
//!
//! [`read`] makes one request for a part in full and two for a delta. Whoever has retries of its own, or remembers full manifests, makes the requests itself
//! and has the answers judged here: [`judge`] for a document, [`judge_full`] for an inherited one.

use bytes::Bytes;
use lockstep_protocol::{
    commit::CommitPart,
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    location::Location,
    manifest::{Inherited, PartDocument, PartManifest},
    problem::{Problem, Reason},
};

use crate::{
    error::StoreErrorKind,
    store::{Lookup, ObjectStore},
};

/// The document that a commit names for a host.
pub fn named_by(part: &CommitPart) -> Inherited {
    Inherited { key: part.manifest.clone(), length: part.manifest_length, blake3: part.manifest_blake3 }
}

/// How many bytes to allow for a document of that length: a longer one is not read to its end.
pub fn allowed(length: u64) -> usize {
    usize::try_from(length).ok().filter(|&length| length <= MAX_DOCUMENT_BYTES).unwrap_or(MAX_DOCUMENT_BYTES)
}

/// Reads a part: its document, and the full manifest that it inherits. What is proven missing or has other bytes is
/// `CHECKPOINT_DAMAGED`, with the key of the very document.
pub async fn read(store: &dyn ObjectStore, key: &str, length: u64, blake3: Digest) -> Result<PartManifest, Problem> {
    match document(store, &Inherited { key: key.to_owned(), length, blake3 }).await? {
        PartDocument::Full(part) => Ok(part),
        PartDocument::Delta(delta) => {
            let inherited = full(store, delta.inherits()).await?;
            delta.resolve(&inherited)
        }
    }
}

/// Reads one document, in one request.
pub async fn document(store: &dyn ObjectStore, name: &Inherited) -> Result<PartDocument, Problem> {
    judge(store.location(), name, store.get(&name.key, allowed(name.length)).await)
}

/// Reads a full manifest, in one request.
pub async fn full(store: &dyn ObjectStore, name: &Inherited) -> Result<PartManifest, Problem> {
    judge_full(store.location(), name, store.get(&name.key, allowed(name.length)).await)
}

/// What a GET of a part manifest gave.
pub fn judge(location: &Location, name: &Inherited, found: Lookup<Bytes>) -> Result<PartDocument, Problem> {
    PartDocument::parse(&name.key, &compared(location, name, found)?)
}

/// What a GET of a manifest gave that a delta inherits.
pub fn judge_full(location: &Location, name: &Inherited, found: Lookup<Bytes>) -> Result<PartManifest, Problem> {
    PartManifest::parse(&name.key, &compared(location, name, found)?)
}

fn compared(location: &Location, name: &Inherited, found: Lookup<Bytes>) -> Result<Bytes, Problem> {
    let damaged = |what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Problem::new(
            Reason::CheckpointDamaged,
            format!("part manifest {} in {location}: {what} is {found}, it was written with {expected}", name.key),
        )
        .with("location", location)
        .with("key", &name.key)
        .with("expected", expected)
        .with("found", found)
    };
    let bytes = match found {
        Lookup::Found(bytes) => bytes,
        Lookup::Absent => {
            return Err(Problem::new(
                Reason::CheckpointDamaged,
                format!("part manifest {} is missing in {location}", name.key),
            )
            .with("location", location)
            .with("key", &name.key));
        }
        Lookup::Unknown(error) if error.kind == StoreErrorKind::TooLarge => {
            return Err(damaged("length", &name.length, &"greater"));
        }
        Lookup::Unknown(error) => return Err(error.problem()),
    };
    if u64::try_from(bytes.len()) != Ok(name.length) {
        return Err(damaged("length", &name.length, &bytes.len()));
    }
    let digest = Digest::of(&bytes);
    if digest != name.blake3 {
        return Err(damaged("digest", &name.blake3, &digest));
    }
    Ok(bytes)
}

/// Refuses a part that is not the one which the commit names, or which a host reported.
pub fn compare(location: &Location, part: &CommitPart, manifest: &PartManifest) -> Result<(), Problem> {
    let differs = |what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Err(Problem::new(
            Reason::CheckpointDamaged,
            format!(
                "part manifest {} of host {}: {what} is {found}, the commit says {expected}",
                part.manifest, part.host_idx
            ),
        )
        .with("location", location)
        .with("key", &part.manifest)
        .with("host_idx", part.host_idx)
        .with("expected", expected)
        .with("found", found))
    };
    if manifest.slot.idx() != part.host_idx {
        return differs("host_idx", &part.host_idx, &manifest.slot.idx());
    }
    if manifest.local_checkpoint != part.local_checkpoint {
        return differs("local checkpoint", &part.local_checkpoint, &manifest.local_checkpoint);
    }
    let files = u64::try_from(manifest.files.len()).unwrap_or(u64::MAX);
    if files != part.files {
        return differs("number of files", &part.files, &files);
    }
    if manifest.bytes() != part.bytes {
        return differs("sum of bytes", &part.bytes, &manifest.bytes());
    }
    Ok(())
}
