//! Push of one local checkpoint: hold it, send what the base doesn't have, write the part manifest last (protocol.md, "Push" step 3).
//!
//! Modules: `plan` (what is known of each file without reading it), `base` (what need not be sent), `sending` (the order in which the rest goes), `source` (reading into
//! memory), `pack` (small files together), `large` (files in pieces), `sizes` (how large those are), `ledger` (what stands in the location so far), `resume` (what an attempt
//! leaves to the next one), `manifest`.

use std::sync::Arc;

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    host::Slot,
    id::{Fingerprint, Incarnation, LocalCheckpointId, PipelineId, Step},
    key::AttemptPath,
    location::Location,
    manifest::{MAX_STORE_META_BYTES, PartManifest},
    problem::{Problem, Reason},
};

use crate::{
    core::{Core, Ended},
    order::{PartRef, Push, PushDone},
    register::{Activity, State},
    remote::Remote,
    store::{CheckpointStore, HeldCheckpoint},
    work::Work,
};

mod base;
mod large;
mod ledger;
mod manifest;
mod pack;
mod plan;
pub(crate) mod resume;
mod sending;
mod sizes;
mod source;

use base::Base;
use plan::Plan;
pub(crate) use resume::Trail;
use sending::Sending;

/// What a push remembers of each file, about: its name, look, digest and place, some of it twice.
const BYTES_PER_FILE: u64 = 600;

/// What is left for the bytes of files, however many there are.
const LEAST_BLOCKS: u64 = 16 << 20;

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
    let trail = core.left_behind.take(header.round).unwrap_or_default();
    let name = (header.round, header.attempt);
    let (for_body, for_clean_up) = (Arc::clone(core), Arc::clone(core));
    let (left, deadline) = ((header.round, header.own_location.clone(), trail.clone()), order.deadline);
    core.launch(
        Activity::Push,
        name,
        order.deadline,
        order.limits,
        |work| async move {
            run(&for_body, assignment, work, trail).await.map(|done| -> Ended { (State::Pushed(done), None) })
        },
        move |work| async move { resume::after_failure(&for_clean_up, left, work, deadline).await },
    );
}

/// Sends one local checkpoint.
pub(crate) async fn run(core: &Core, assignment: Assignment, work: Work, trail: Trail) -> Result<PushDone, Problem> {
    let remote = Remote::connect(core.connector.as_ref(), &assignment.location, &work).await?;
    let (own, others): (Vec<_>, Vec<_>) =
        assignment.base_parts.iter().cloned().partition(|part| part.host_idx() == assignment.slot.idx());
    let own_part = own_part(&remote, own.first());
    let (own_part, held) = futures::try_join!(own_part, hold(core, &assignment, &work))?;
    reached(Point::PushHeld);
    let files = held.files();
    // What is remembered of each file is memory too: tens of MiB where there are 100,000.
    work.blocks.set_aside(files.len() as u64 * BYTES_PER_FILE, LEAST_BLOCKS);
    work.progress.expect(files.len() as u64, files.iter().map(|file| file.size).sum());
    trail.resume(&remote, files).await;

    let mut base = Base::default();
    own_part.iter().for_each(|part| base.add_own(part));
    let mut plan = Plan::new(files.len());
    let mut wanted = plan.sort_out(files, trail.ledger(), &core.digests, &base);
    // Nothing changed: what other hosts have is not even asked for.
    let mut others = Some(others);
    if !wanted.is_empty()
        && let Some(others) = others.take()
    {
        let sizes = wanted.iter().map(|wanted| wanted.size).collect();
        base.add_others(&remote, &others, &sizes).await?;
        wanted = plan.sort_out(files, trail.ledger(), &core.digests, &base);
    }

    let mut sending = Sending {
        remote: remote.clone(),
        held: Arc::clone(&held),
        base: Arc::new(base),
        digests: Arc::clone(&core.digests),
        ledger: trail.ledger().clone(),
        path: assignment.path,
        numbers: Arc::default(),
        starts: trail.starts().clone(),
    };
    let mut decided = false;
    loop {
        // What looks dead may be alive in files whose digest is not known yet: those are read first.
        let is_certain = |wanted: &sending::Wanted| wanted.is_new || !sending.base.may_hold(wanted.size, None);
        if !decided && wanted.iter().all(is_certain) {
            let mut dead = plan.mostly_dead(files, &sending.base);
            if !dead.is_empty()
                && let Some(others) = others.take()
            {
                Arc::make_mut(&mut sending.base).add_others(&remote, &others, &Default::default()).await?;
                dead = plan.mostly_dead(files, &sending.base);
            }
            if !dead.is_empty() {
                Arc::make_mut(&mut sending.base).give_up(&dead);
                wanted.extend(plan.give_up(files, &dead));
            }
            decided = true;
            plan.tell(files, &work.progress);
        }
        if wanted.is_empty() {
            break;
        }
        let mut again = Vec::new();
        for outcome in sending.send(wanted).await? {
            plan.found(outcome.known);
            again.extend(outcome.again);
        }
        wanted = again;
    }
    drop(sending);
    work.blocks.trim();

    let entries = plan.finish(files, trail.ledger());
    let base = own_part.as_deref().zip(own.first());
    let manifest = manifest::of(&assignment, held.as_ref(), entries, base)?;
    drop(own_part);
    reached(Point::PushBeforeManifest);
    let let_go = work.disk(move |_| {
        // May remove thousands of links.
        drop(held);
        Ok(())
    });
    let (part, ()) = futures::try_join!(manifest::write(&remote, &manifest), let_go)?;
    let done = PushDone {
        part,
        local_checkpoint: manifest.local_checkpoint,
        step: manifest.step,
        fingerprint: manifest.fingerprint,
        files: manifest.files.len() as u64,
        bytes: manifest.bytes(),
        bytes_uploaded: trail.ledger().bytes(),
        processed_records: manifest.processed_records,
        elapsed: work.progress.elapsed(),
    };
    drop(manifest);
    let digests = Arc::clone(&core.digests);
    work.disk(move |_| {
        digests.save();
        Ok(())
    })
    .await?;
    Ok(done)
}

async fn own_part(remote: &Remote, part: Option<&PartRef>) -> Result<Option<Arc<PartManifest>>, Problem> {
    match part {
        Some(part) => remote.part(part).await.map(Arc::new).map(Some),
        None => Ok(None),
    }
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
