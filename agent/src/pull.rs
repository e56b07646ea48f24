//! Pull of one part into staging: reuse what the disk has, download the rest, verify every byte, sync, report staged (protocol.md, "Pull" step 4).

use std::{path::PathBuf, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use lockstep_protocol::{
    id::Fingerprint,
    manifest::{FileEntry, PartManifest},
    problem::{Problem, Reason},
};

use crate::{
    core::{Core, Ended},
    durable,
    order::{Pull, PullDone, Reach},
    register::{Activity, Staged, State},
    remote::Remote,
    space,
    store::{CheckpointStore, StagedCheckpoint},
    work::Work,
};

mod download;
mod reuse;
pub(crate) mod staging;

use staging::Staging;

/// Starts an admitted pull.
pub(crate) fn start(core: &Arc<Core>, order: Pull) {
    let name = (order.header.round, order.header.attempt);
    let (for_body, for_clean_up) = (Arc::clone(core), Arc::clone(core));
    core.launch(
        Activity::Pull,
        name,
        order.deadline,
        order.limits,
        |work| async move {
            let staged = run(&for_body, &order, work).await?;
            Ok::<Ended, Problem>((State::Pulled(staged.done.clone()), Some(staged)))
        },
        move |_| async move {
            let store = Arc::clone(&for_clean_up.store);
            let removed = for_clean_up
                .blocking(move || {
                    let folder = staging::folder(&store.staging_root()?, name);
                    durable::remove_folder(&folder).map_err(|error| durable::io_problem("remove", &folder, &error))
                })
                .await;
            if let Err(problem) = removed {
                tracing::warn!(reason = %problem.reason, "staging was not removed: {}", problem.message);
            }
        },
    );
}

async fn run(core: &Core, order: &Pull, work: Work) -> Result<Staged, Problem> {
    let store: Arc<dyn CheckpointStore> = Arc::clone(&core.store);
    let name = (order.header.round, order.header.attempt);
    let root = work
        .disk({
            let store = Arc::clone(&store);
            move |_| {
                store.check_installable()?;
                store.staging_root()
            }
        })
        .await?;
    let remote = Remote::connect(core.connector.as_ref(), &order.source, &work).await?;
    let part = Arc::new(remote.part(&order.part).await?);
    check(order, &part)?;
    work.progress.expect(part.files.len() as u64, part.bytes());

    let staging = {
        let (root, part) = (root.clone(), Arc::clone(&part));
        Arc::new(work.disk(move |_| Staging::create(&root, name, &part)).await?)
    };
    let missing = reuse::reuse(&store, &staging, &part, &work).await?;
    require_space(&work, root, missing.iter().map(|file| file.size).sum()).await?;
    let reused = part.bytes() - missing.iter().map(|file| file.size).sum::<u64>();
    fetch(&remote, &staging, &part, missing).await?;
    {
        let staging = Arc::clone(&staging);
        work.disk(move |_| staging.sync()).await?;
    }
    let done = PullDone {
        reach: Reach::Staged,
        local_checkpoint: Some(part.local_checkpoint),
        step: Some(part.step),
        files: part.files.len() as u64,
        bytes: part.bytes(),
        bytes_downloaded: part.bytes() - reused,
        bytes_reused: reused,
        elapsed: work.progress.elapsed(),
    };
    let checkpoint = StagedCheckpoint {
        folder: staging.folder().to_owned(),
        id: part.local_checkpoint,
        step: part.step,
        fingerprint: part.fingerprint,
        processed_records: part.processed_records,
        store_meta: part.store_meta.clone(),
        files: part.files.iter().map(|file| file.path.clone()).collect(),
    };
    Ok(Staged { round: order.header.round, checkpoint, done })
}

/// The manifest's digest has tied it to the commit; this ties it to the order. Not compared is the pipeline: a read-only source or a location that was
/// taken over holds another pipeline's parts.
fn check(order: &Pull, part: &PartManifest) -> Result<(), Problem> {
    let own = order.header.slot;
    if part.slot.layout() != own.layout() {
        return Err(Problem::new(
            Reason::LayoutMismatch,
            format!("the checkpoint was made by {}, this is {own} of {}", part.slot.layout(), own.layout()),
        )
        .with("checkpoint", part.slot.layout())
        .with("own", own.layout()));
    }
    let show = |fingerprint: Option<Fingerprint>| fingerprint.map_or_else(|| "none".to_owned(), |f| f.to_string());
    let expectations = [
        ("host", own.to_string(), part.slot.to_string()),
        ("round", order.commit.round.to_string(), part.round.to_string()),
        ("local_checkpoint", order.local_checkpoint.to_string(), part.local_checkpoint.to_string()),
        ("step", order.step.to_string(), part.step.to_string()),
        ("fingerprint", show(order.fingerprint), show(part.fingerprint)),
    ];
    for (what, expected, found) in expectations {
        if expected != found {
            return Err(Problem::new(
                Reason::ManifestInvalid,
                format!("part manifest {} has {what} {found}, the order says {expected}", order.part.key()),
            )
            .with("key", order.part.key())
            .with("field", what)
            .with("expected", expected)
            .with("found", found));
        }
    }
    Ok(())
}

/// Before the first byte is downloaded, and only for what must be downloaded: reused files take no room or have taken it already.
async fn require_space(work: &Work, root: PathBuf, needed: u64) -> Result<(), Problem> {
    work.disk(move |_| space::require(&root, needed)).await
}

async fn fetch(
    remote: &Remote,
    staging: &Arc<Staging>,
    part: &Arc<PartManifest>,
    missing: Vec<FileEntry>,
) -> Result<(), Problem> {
    stream::iter(missing)
        .map(|file| {
            let (remote, staging, part) = (remote.clone(), Arc::clone(staging), Arc::clone(part));
            async move {
                download::file(&remote, &staging, &part, &file).await?;
                remote.work().progress.file_done();
                Ok::<_, Problem>(())
            }
        })
        .buffer_unordered(remote.work().limits.concurrency)
        .try_collect()
        .await
}
