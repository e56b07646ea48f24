//! Push of one local checkpoint: hold it, send what the base doesn't have, write the part manifest last (protocol.md, "Push" step 3).

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    host::Slot,
    id::{Fingerprint, Incarnation, LocalCheckpointId, PipelineId, Step},
    key::AttemptPath,
    location::Location,
    manifest::{FileEntry, MAX_STORE_META_BYTES, ObjectEntry, PartManifest},
    problem::{Problem, Reason},
};

use crate::{
    core::{Core, Ended},
    order::{PartRef, Push, PushDone},
    register::{Activity, State},
    remote::Remote,
    store::{CheckpointStore, HeldCheckpoint, HeldFile},
    work::Work,
};

mod base;
mod source;
mod upload;

use base::Base;
use upload::Sent;

/// What is to be sent, whoever ordered it.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) pipeline: PipelineId,
    pub(crate) slot: Slot,
    /// Where this attempt writes.
    pub(crate) path: AttemptPath,
    pub(crate) incarnation: Incarnation,
    pub(crate) location: Location,
    pub(crate) local_checkpoint: LocalCheckpointId,
    pub(crate) step: Step,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) base_parts: Vec<PartRef>,
}

/// Starts an admitted push.
pub(crate) fn start(core: &Arc<Core>, order: Push) {
    let header = &order.header;
    let assignment = Assignment {
        pipeline: header.pipeline,
        slot: header.slot,
        path: AttemptPath::new(header.slot, header.generation, header.round, header.incarnation, header.attempt),
        incarnation: header.incarnation,
        location: header.own_location.clone(),
        local_checkpoint: order.local_checkpoint,
        step: order.step,
        fingerprint: order.fingerprint,
        base_parts: order.base_parts,
    };
    let name = (header.round, header.attempt);
    let (for_body, for_clean_up) = (Arc::clone(core), Arc::clone(core));
    let location = header.own_location.clone();
    core.launch(
        Activity::Push,
        name,
        order.deadline,
        order.limits,
        |work| async move { run(&for_body, assignment, work).await.map(|done| -> Ended { (State::Pushed(done), None) }) },
        move |work| async move { abort_uploads(&for_clean_up, &location, work).await },
    );
}

/// Sends one local checkpoint.
pub(crate) async fn run(core: &Core, assignment: Assignment, work: Work) -> Result<PushDone, Problem> {
    let remote = Remote::connect(core.connector.as_ref(), &assignment.location, &work).await?;
    let base = Arc::new(Base::load(&remote, &assignment.base_parts).await?);
    let held = hold(core, &assignment, &work).await?;

    let files = held.files().to_vec();
    work.progress.expect(files.len() as u64, files.iter().map(|file| file.size).sum());
    let sent: Vec<Sent> = stream::iter(files.into_iter().zip(0_u32..))
        .map(|(file, number)| {
            let (remote, held, base) = (remote.clone(), Arc::clone(&held), Arc::clone(&base));
            let path = assignment.path;
            async move { send(&remote, &held, &base, path, file, number).await }
        })
        .buffer_unordered(work.limits.concurrency)
        .try_collect()
        .await?;

    let bytes_uploaded = sent.iter().map(|sent| sent.bytes_uploaded).sum();
    let manifest = manifest(&assignment, held.as_ref(), sent);
    let part = write_manifest(&remote, &manifest).await?;
    let done = PushDone {
        part,
        local_checkpoint: manifest.local_checkpoint,
        step: manifest.step,
        fingerprint: manifest.fingerprint,
        files: manifest.files.len() as u64,
        bytes: manifest.bytes(),
        bytes_uploaded,
        processed_records: manifest.processed_records,
        elapsed: work.progress.elapsed(),
    };
    // Letting go may remove thousands of links.
    work.disk(move |_| {
        drop(held);
        Ok(())
    })
    .await?;
    Ok(done)
}

/// Holds the ordered checkpoint and refuses it if it is not what the coordinator chose.
async fn hold(core: &Core, assignment: &Assignment, work: &Work) -> Result<Arc<dyn HeldCheckpoint>, Problem> {
    let store: Arc<dyn CheckpointStore> = Arc::clone(&core.store);
    let id = assignment.local_checkpoint;
    let held: Arc<dyn HeldCheckpoint> = work.disk(move |_| store.hold(id).map(Arc::from)).await?;
    let checkpoint = held.checkpoint();
    let show = |fingerprint: Option<Fingerprint>| fingerprint.map_or_else(|| "none".to_owned(), |f| f.to_string());
    if checkpoint.step != assignment.step {
        return Err(Problem::new(
            Reason::SourceChanged,
            format!("local checkpoint {id} is at step {}, the order is for step {}", checkpoint.step, assignment.step),
        )
        .with("local_checkpoint", id)
        .with("found", checkpoint.step)
        .with("ordered", assignment.step));
    }
    if checkpoint.fingerprint != assignment.fingerprint {
        return Err(Problem::new(
            Reason::FingerprintMismatch,
            format!(
                "local checkpoint {id} has fingerprint {}, the order is for {}",
                show(checkpoint.fingerprint),
                show(assignment.fingerprint)
            ),
        )
        .with("local_checkpoint", id)
        .with("found", show(checkpoint.fingerprint))
        .with("ordered", show(assignment.fingerprint)));
    }
    if held.store_meta().len() > MAX_STORE_META_BYTES {
        return Err(Problem::new(
            Reason::SourceUnsupported,
            format!(
                "local checkpoint {id} has {} bytes of store metadata, at most {MAX_STORE_META_BYTES} fit",
                held.store_meta().len()
            ),
        )
        .with("local_checkpoint", id));
    }
    Ok(held)
}

async fn send(
    remote: &Remote,
    held: &Arc<dyn HeldCheckpoint>,
    base: &Base,
    path: AttemptPath,
    file: HeldFile,
    number: u32,
) -> Result<Sent, Problem> {
    let size = file.size;
    let sent = upload::file(remote, held, base, path.data(number).to_string(), file).await?;
    let progress = &remote.work().progress;
    progress.file_done();
    if sent.bytes_uploaded == 0 {
        progress.done(size);
    }
    Ok(sent)
}

fn manifest(assignment: &Assignment, held: &dyn HeldCheckpoint, mut sent: Vec<Sent>) -> PartManifest {
    sent.sort_by(|a, b| a.path.cmp(&b.path));
    let mut objects: Vec<ObjectEntry> = Vec::new();
    let mut index = std::collections::BTreeMap::new();
    let files = sent
        .into_iter()
        .map(|sent| {
            let (object, offset) = match sent.content {
                None => (None, 0),
                Some(content) => {
                    let at = *index.entry(content.object.key.clone()).or_insert_with(|| {
                        objects.push(content.object);
                        // Far below 2^32: each has a file in this part or lies in a base of at most 64 MiB of text.
                        (objects.len() - 1) as u32
                    });
                    (Some(at), content.offset)
                }
            };
            FileEntry { path: sent.path, size: sent.size, blake3: sent.blake3, head: None, object, offset, length: sent.size }
        })
        .collect();
    PartManifest {
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
        objects,
        files,
        delta: None,
    }
}

async fn write_manifest(remote: &Remote, manifest: &PartManifest) -> Result<PartRef, Problem> {
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
    Ok(part)
}

/// Leaves no multipart upload open behind a failed push. What can't be reached now goes with the orphans later.
pub(crate) async fn abort_uploads(core: &Core, location: &Location, work: Work) {
    let open = work.take_open_uploads();
    if open.is_empty() {
        return;
    }
    let aborted = async {
        let remote = Remote::connect(core.connector.as_ref(), location, &work).await?;
        for (key, upload) in &open {
            remote.abort_upload(key, upload).await?;
        }
        Ok::<_, Problem>(())
    };
    match tokio::time::timeout(std::time::Duration::from_secs(10), aborted).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => tracing::warn!(reason = %problem.reason, "open uploads are left: {}", problem.message),
        Err(_) => tracing::warn!(uploads = open.len(), "open uploads are left: the store does not answer"),
    }
}
