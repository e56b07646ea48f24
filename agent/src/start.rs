//! Start-up pull: a solo agent without a coordinator brings its disk to where the engine shall start, before the engine starts.
//!
//! The location must be its own or nobody's. A sync of before whose end is not known is finished first: whoever starts from an older checkpoint would
//! else see that one become the newest later.

use std::{sync::Arc, time::Duration};

use lockstep_bucket::{Access, Checkpoint, Lookup, ObjectStore, Selector};
use lockstep_protocol::{
    fence::Writer,
    host::Slot,
    id::{Attempt, Generation, LocalCheckpointId, RoundId, RoundNo, Step, Term},
    location::Location,
    order::OrderHeader,
    problem::{Problem, Reason, Retryable},
    ready::{Role, Word},
    round::Source,
    selection::LocalCheckpoint,
    spec::PullSelector,
    start::{FoundCommit, StartFrom, StartPull, start_from},
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    alone::{self, Owner, refuse_multihost},
    core::Core,
    install,
    order::{InstallWhat, Pull, PullDone},
    pull,
    register::{Activity, Staged, State},
    remote::Remote,
    sync,
    work::Work,
};

/// How long a look is repeated while its failure may pass by itself. Then the start has failed: it is begun again by whoever begins processes here.
const PATIENCE: Duration = Duration::from_secs(5);

/// Wait before the first repetition; each further one is twice as long.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What the engine starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Started {
    /// The disk, the location, or nothing at all.
    pub source: Source,
    /// The only local checkpoint there is now; none after a fresh start.
    pub checkpoint: Option<(LocalCheckpointId, Step)>,
    /// Bytes of files that came over the network.
    pub bytes_downloaded: u64,
}

/// Brings the disk to where the engine shall start. Runs to its end once called: see [`Core::whole`].
pub(crate) async fn pull(core: Arc<Core>, request: StartPull) -> Result<Started, Problem> {
    refuse_multihost(core.identity.slot)?;
    let owner = Owner::of(&core.identity.pipeline)?;
    let Some(location) = core.identity.allowed.first().cloned() else {
        return Err(Problem::new(
            Reason::LocationNotAllowed,
            "this agent allows no location: the first --allow-location is where a start-up pull looks",
        ));
    };
    let name = (RoundId::new(Uuid::new_v4()), Attempt::FIRST);
    let tasks = TaskTracker::new();
    let (for_body, for_clean_up, spawned) = (Arc::clone(&core), Arc::clone(&core), tasks.clone());
    let started = alone::run(
        &core,
        Activity::Start,
        name,
        |work| async move {
            let (started, done) = run(&for_body, &owner, location, &request, name, work, &tasks).await?;
            Ok((State::Pulled(done), started))
        },
        move |work| async move { pull::clean_up(&for_clean_up, name, spawned, work).await },
    )
    .await?;
    match started.checkpoint {
        Some((id, step)) => {
            tracing::info!(checkpoint = %id, %step, source = ?started.source, bytes = started.bytes_downloaded, "the engine may start");
        }
        None => tracing::info!("the engine may start fresh: there is no checkpoint anywhere"),
    }
    Ok(started)
}

/// Nobody else has to be waited for: the end of this pull is what the engine waits for. None: nothing was said yet.
async fn say(core: &Core, word: Option<Word>) -> Result<(), Problem> {
    let mut words = core.words.lock().await;
    let mut next = words.clone();
    let say = move || match word {
        Some(word) => next.say(None, word).map(|()| next),
        None => next.take_back(None).map(|()| next),
    };
    *words = core.blocking(say).await?;
    Ok(())
}

async fn run(
    core: &Arc<Core>,
    owner: &Owner,
    location: Location,
    request: &StartPull,
    name: (RoundId, Attempt),
    work: Work,
    tasks: &TaskTracker,
) -> Result<(Started, PullDone), Problem> {
    let store = Arc::clone(&core.store);
    work.disk(move |_| store.check_installable()).await?;
    say(core, None).await?;
    let remote = Remote::connect(core.connector.as_ref(), &location, &work).await?;
    let bucket = remote.bucket().as_ref();
    let generation = patiently(|| own_generation(bucket, owner)).await?;
    sync::finish_pending(core, bucket, generation, &work).await?;
    let found = patiently(|| look(bucket, request.from)).await?;
    let disk = listed(core, &work).await?;
    let seen = found.as_ref().map(|found| FoundCommit { document: &found.document, damaged: found.damaged });
    let (source, staged, what) = match start_from(request, &location, &disk, seen)? {
        StartFrom::Disk(id, step) => (Source::Local, None, InstallWhat::Checkpoint(id, step)),
        StartFrom::Fresh => (Source::Fresh, None, InstallWhat::Fresh),
        StartFrom::Commit => {
            let Some((found, part)) = found.as_ref().and_then(|found| Some((found, found.document.parts.first()?)))
            else {
                return Err(Problem::new(Reason::ManifestInvalid, format!("a commit of {location} names no part")));
            };
            let order = Pull {
                header: header(core, owner, generation.unwrap_or(Generation::NONE), name, location.clone()),
                source: location,
                commit: found.commit,
                part: sync::part_ref(part)?,
                local_checkpoint: part.local_checkpoint,
                step: found.document.step,
                fingerprint: found.document.fingerprint,
                deadline: None,
                limits: core.limits,
            };
            let staged: Staged = pull::run(core, &order, work.clone(), tasks).await?;
            let what = InstallWhat::Checkpoint(part.local_checkpoint, found.document.step);
            (Source::Location, Some(staged), what)
        }
    };
    let store = Arc::clone(&core.store);
    let done = work.disk(move |_| install::place(store.as_ref(), staged.as_ref(), what, None)).await?;
    let checkpoint = match what {
        InstallWhat::Fresh => None,
        InstallWhat::Checkpoint(id, step) => Some((id, step)),
    };
    say(core, Some(Word { round: None, checkpoint, role: Role::Active })).await?;
    Ok((Started { source, checkpoint, bytes_downloaded: done.bytes_downloaded }, done))
}

async fn patiently<T, F: Future<Output = Result<T, Problem>>>(read: impl Fn() -> F) -> Result<T, Problem> {
    let until = Instant::now() + PATIENCE;
    let mut back_off = BACK_OFF;
    loop {
        match read().await {
            Err(problem) if problem.retryable() == Retryable::Yes && Instant::now() < until => {
                tracing::info!(reason = %problem.reason, "looking again: {}", problem.message);
                tokio::time::sleep_until((Instant::now() + back_off).min(until)).await;
                back_off *= 2;
            }
            outcome => return outcome,
        }
    }
}

async fn look(bucket: &dyn ObjectStore, from: PullSelector) -> Result<Option<Checkpoint>, Problem> {
    lockstep_bucket::find(bucket, selector(from), Access::Own).await.known()
}

/// The generation that is ours; none: proven that nobody ever owned the location. Where a coordinator owns it, it is asked for the pull.
async fn own_generation(bucket: &dyn ObjectStore, owner: &Owner) -> Result<Option<Generation>, Problem> {
    match lockstep_bucket::owner(bucket).await {
        Lookup::Absent => Ok(None),
        Lookup::Found(fence)
            if fence.pipeline == owner.pipeline && fence.writer == Writer::Direct && !fence.released =>
        {
            Ok(Some(fence.generation))
        }
        Lookup::Found(fence) => {
            Err(lockstep_bucket::location_owned(bucket.location(), owner.pipeline, &owner.name, &fence))
        }
        Lookup::Unknown(problem) => Err(problem),
    }
}

const fn selector(from: PullSelector) -> Selector {
    match from {
        PullSelector::Latest => Selector::Latest,
        PullSelector::Step(step) => Selector::Step(step),
        PullSelector::Checkpoint(round) => Selector::Round(round),
        PullSelector::Time(time) => Selector::Time(time),
    }
}

async fn listed(core: &Core, work: &Work) -> Result<Vec<LocalCheckpoint>, Problem> {
    let store = Arc::clone(&core.store);
    work.disk(move |_| store.list()).await
}

/// Of a pull that nobody ordered: it is compared with nothing, and no mark is kept of it.
fn header(
    core: &Core,
    owner: &Owner,
    generation: Generation,
    (round, attempt): (RoundId, Attempt),
    own_location: Location,
) -> OrderHeader {
    OrderHeader {
        pipeline: owner.pipeline,
        pipeline_name: owner.name.clone(),
        slot: Slot::Solo,
        incarnation: core.identity.incarnation,
        generation,
        round_no: RoundNo::FIRST,
        term: Term::NONE,
        round,
        attempt,
        own_location,
    }
}
