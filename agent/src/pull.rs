//! Pull of one part into staging: reuse what the disk has, download the rest, verify every byte, sync, report staged (protocol.md, "Pull" step 4).

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::{Attempt, Fingerprint, RoundId},
    manifest::PartManifest,
    problem::{Problem, Reason},
};
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use crate::{
    core::{Core, Ended},
    durable,
    order::{Pull, PullDone, Reach},
    register::{Activity, Staged, State},
    remote::Remote,
    space::Claim,
    store::{CheckpointStore, StagedCheckpoint},
    work::{Stop, Work},
};

mod fetch;
mod fill;
mod place;
mod reuse;
mod segment;
pub(crate) mod staging;
mod streams;
mod sync;

use place::Places;
use reuse::Known;
use staging::Staging;

/// Between looks at the free space.
const SPACE_LOOK: Duration = Duration::from_secs(1);

/// Starts an admitted pull.
pub(crate) fn start(core: &Arc<Core>, order: Pull) {
    let name = (order.header.round, order.header.attempt);
    let (for_body, for_clean_up) = (Arc::clone(core), Arc::clone(core));
    let tasks = TaskTracker::new();
    let spawned = tasks.clone();
    core.launch(
        Activity::Pull,
        name,
        order.deadline,
        order.limits,
        |work| async move {
            let staged = run(&for_body, &order, work, &tasks).await?;
            Ok::<Ended, Problem>((State::Pulled(staged.done.clone()), Some(staged)))
        },
        move |work| async move { clean_up(&for_clean_up, name, spawned, work).await },
    );
}

/// After a pull that failed, whose downloads were spawned in `tasks`.
pub(crate) async fn clean_up(core: &Core, name: (RoundId, Attempt), tasks: TaskTracker, work: Work) {
    // What the download spawned may still have been writing.
    tasks.close();
    tasks.wait().await;
    work.settled().await;
    let store = Arc::clone(&core.store);
    let removed = core
        .blocking(move || {
            let folder = staging::folder(&store.staging_root()?, name);
            durable::remove_folder(&folder).map_err(|error| durable::io_problem("remove", &folder, &error))
        })
        .await;
    if let Err(problem) = removed {
        tracing::warn!(reason = %problem.reason, "staging was not removed: {}", problem.message);
    }
}

/// Downloads one part into staging.
pub(crate) async fn run(core: &Core, order: &Pull, work: Work, tasks: &TaskTracker) -> Result<Staged, Problem> {
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

    let places = {
        let (part, digests, for_places) = (Arc::clone(&part), Arc::clone(&core.digests), work.clone());
        let make = move |_: &Stop| {
            let staging = Staging::create(&root, name, &part)?;
            reached(Point::PullStagingCreated);
            Places::new(part, staging, Claim::on(&root)?, digests, &for_places)
        };
        Arc::new(work.disk(make).await?)
    };
    let known = reuse::find(&store, &core.digests, &part, &work).await?;
    let downloaded = fill(&remote, &places, known, store.files_are_immutable(), tasks)
        .await
        .map_err(|problem| places.claim.explain(problem))?;
    reached(Point::PullBeforeSync);
    places.unsynced.sync(&work).await?;
    {
        let (places, digests) = (Arc::clone(&places), Arc::clone(&core.digests));
        work.disk(move |_| {
            places.staging.sync()?;
            reached(Point::PullSynced);
            digests.save();
            Ok(())
        })
        .await?;
    }
    let done = PullDone {
        reach: Reach::Staged,
        local_checkpoint: Some(part.local_checkpoint),
        step: Some(part.step),
        files: part.files.len() as u64,
        bytes: part.bytes(),
        bytes_downloaded: downloaded,
        bytes_reused: part.bytes() - downloaded,
        elapsed: work.progress.elapsed(),
    };
    let checkpoint = StagedCheckpoint {
        folder: places.staging.folder().to_owned(),
        id: part.local_checkpoint,
        step: part.step,
        fingerprint: part.fingerprint,
        processed_records: part.processed_records,
        store_meta: part.store_meta.clone(),
        files: part.files.iter().map(|file| file.path.clone()).collect(),
    };
    Ok(Staged { round: order.header.round, checkpoint, done })
}

/// Brings every file of the part to its place, and returns how many bytes of files were downloaded for it.
async fn fill(
    remote: &Remote,
    places: &Arc<Places>,
    known: Known,
    immutable: bool,
    tasks: &TaskTracker,
) -> Result<u64, Problem> {
    let work = remote.work();
    // Files of equal content are downloaded once; where the engine never writes to them they are also stored once.
    let mut contents = HashSet::with_capacity(places.part.files.len());
    for file in &places.part.files {
        let first = contents.insert((file.size, file.blake3));
        if known.is_copied(file) || (known.is_downloaded(file) && (first || !immutable)) {
            places.claim.add(file.size);
        }
    }
    drop(contents);
    require_space(places, work).await?;
    let missing = reuse::place(places, known, work).await?;

    let mut first = HashMap::new();
    let (mut wanted, mut twins) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for number in missing {
        let file = places.entry(number)?;
        match first.entry((file.size, file.blake3)) {
            Entry::Occupied(there) => twins.push((number, *there.get())),
            Entry::Vacant(new) => {
                new.insert(number);
                wanted.push(number);
                bytes += file.size;
            }
        }
    }
    // Of 100,000 files megabytes that the download has better uses for.
    drop(first);
    // Again: what could not be linked is downloaded after all.
    require_space(places, work).await?;
    let plan = segment::plan(&places.part, &wanted, work.limits.part_size);
    drop(wanted);
    tokio::select! {
        outcome = fetch::all(remote, places, plan, tasks) => outcome?,
        problem = space_runs_out(places, work) => return Err(problem),
    }
    reuse::place_twins(places, twins, immutable, work).await?;
    Ok(bytes)
}

async fn require_space(places: &Arc<Places>, work: &Work) -> Result<(), Problem> {
    let places = Arc::clone(places);
    work.disk(move |_| places.claim.require()).await
}

/// The engine writes to the same disk: a pull gives up before that is full.
async fn space_runs_out(places: &Arc<Places>, work: &Work) -> Problem {
    let mut look = tokio::time::interval(SPACE_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if let Err(problem) = require_space(places, work).await {
            return problem;
        }
    }
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
