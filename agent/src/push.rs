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
pub(crate) async fn run(core: &Core, assignment: Assignment, work: Work, trail: Trail) -> Result<PushDone, Problem> {
    let remote = Remote::connect(core.connector.as_ref(), &assignment.location, &work).await?;
    let own = assignment.base_parts.iter().find(|part| part.host_idx() == assignment.slot.idx());
    let own = async {
        match own {
            Some(part) => remote.part(part).await.map(Some),
            None => Ok(None),
        }
    };
    let (own, held) = futures::try_join!(own, hold(core, &assignment, &work))?;
    let files = held.files();
    work.progress.expect(files.len() as u64, files.iter().map(|file| file.size).sum());

    let mut base = Base::default();
    own.iter().for_each(|part| base.add(part));
    let mut plan = Plan::new(files.len());
    let mut wanted = plan.sort_out(files, trail.ledger(), &core.digests, &base, &work);
    let others: Vec<_> =
        assignment.base_parts.iter().filter(|part| part.host_idx() != assignment.slot.idx()).cloned().collect();
    if !wanted.is_empty() && !others.is_empty() {
        // Nothing changed: what other hosts have is not even asked for.
        let sizes = wanted.iter().map(|wanted| wanted.file.size).collect();
        base.add_others(&remote, &others, &sizes).await?;
        wanted = plan.sort_out(files, trail.ledger(), &core.digests, &base, &work);
    }
    let sending = Sending {
        remote: remote.clone(),
        held: Arc::clone(&held),
        base: Arc::new(base),
        digests: Arc::clone(&core.digests),
        ledger: trail.ledger().clone(),
        path: assignment.path,
        numbers: Arc::default(),
        starts: trail.starts().clone(),
    };
    while !wanted.is_empty() {
        let mut again = Vec::new();
        for outcome in sending.send(wanted).await? {
            plan.found(outcome.known, files, &work);
            again.extend(outcome.again);
        }
        wanted = again;
    }

    let entries = plan.finish(files, trail.ledger())?;
    let bytes_uploaded = trail.ledger().bytes();
    let manifest = manifest::of(&assignment, held.as_ref(), entries);
    drop(sending);
    let part = {
        let digests = Arc::clone(&core.digests);
        // Letting go may remove thousands of links.
        let let_go = work.disk(move |_| {
            drop(held);
            digests.save();
            Ok(())
        });
        let (part, ()) = futures::try_join!(manifest::write(&remote, &manifest), let_go)?;
        part
    };
    Ok(PushDone {
        part,
        local_checkpoint: manifest.local_checkpoint,
        step: manifest.step,
        fingerprint: manifest.fingerprint,
        files: manifest.files.len() as u64,
        bytes: manifest.bytes(),
        bytes_uploaded,
        processed_records: manifest.processed_records,
        elapsed: work.progress.elapsed(),
    })
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
