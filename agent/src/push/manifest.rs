//! The part manifest, written last.

use std::{collections::HashMap, sync::Arc};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    manifest::{FileEntry, Inherited, ObjectEntry, PartManifest},
    problem::{Problem, Reason},
};

use super::{Assignment, ledger::Entry};
use crate::{
    order::PartRef,
    remote::Remote,
    store::{HeldCheckpoint, HeldFile},
};

/// Names every file with its place; where little changed, only what differs from `base`.
pub(super) fn of(
    assignment: &Assignment,
    held: &dyn HeldCheckpoint,
    entries: impl Iterator<Item = Result<(HeldFile, Entry), Problem>>,
    base: Option<(&PartManifest, &PartRef)>,
) -> Result<PartManifest, Problem> {
    let mut objects: Vec<Arc<ObjectEntry>> = Vec::new();
    let mut places = HashMap::new();
    let mut files = Vec::with_capacity(held.files().len());
    for entry in entries {
        let (file, entry) = entry?;
        let (object, offset) = match entry.content {
            None => (None, 0),
            Some(content) => {
                let at = *places.entry(content.object.key.clone()).or_insert_with(|| {
                    objects.push(content.object);
                    // Far below 2^32: each has a file in this part or lies in a base of at most 64 MiB of text.
                    (objects.len() - 1) as u32
                });
                (Some(at), content.offset)
            }
        };
        let HeldFile { path, size, .. } = file;
        files.push(FileEntry { path, size, blake3: entry.blake3, head: entry.head, object, offset, length: size });
    }
    let mut manifest = PartManifest {
        pipeline: assignment.pipeline,
        slot: assignment.slot,
        generation: assignment.path.generation,
        round: assignment.path.round,
        incarnation: assignment.incarnation,
        attempt: assignment.path.attempt,
        local_checkpoint: assignment.local_checkpoint,
        step: assignment.step,
        fingerprint: assignment.fingerprint,
        processed_records: held.checkpoint().processed_records,
        store_meta: held.store_meta().to_owned(),
        objects: objects.into_iter().map(Arc::unwrap_or_clone).collect(),
        files,
        delta: None,
    };
    if let Some((base, document)) = base {
        let document = Inherited { key: document.key(), length: document.length, blake3: document.blake3 };
        manifest.relate(base, document);
    }
    Ok(manifest)
}

/// Until it stands there is no part.
pub(super) async fn write(remote: &Remote, manifest: &PartManifest) -> Result<PartRef, Problem> {
    let path = manifest.attempt_path();
    let bytes = manifest.encode();
    if bytes.is_empty() || bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(Problem::new(
            Reason::SourceUnsupported,
            format!(
                "the part manifest of {} files would have {} bytes, at most {MAX_DOCUMENT_BYTES} can be read back",
                manifest.files.len(),
                bytes.len()
            ),
        )
        .with("files", manifest.files.len())
        .with("bytes", bytes.len()));
    }
    let part = PartRef { path, length: bytes.len() as u64, blake3: Digest::of(&bytes) };
    remote.create(&part.key(), bytes.into()).await?;
    reached(Point::PushManifestSent);
    Ok(part)
}
