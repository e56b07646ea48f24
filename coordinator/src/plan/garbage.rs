//! What may go from a pipeline's own location: the requests of `protocol::garbage`, in its order. Reads only: dispatch carries the plans out, and a dry run shows
//! them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use lockstep_bucket::{
    Connector, ObjectStore,
    garbage::{self, Counted, Decisions},
    pins,
};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::{
        Candidates, CommitReach, LandedTombstone, Locked, Orphans, Plan, Stop, Sweep, WhyKept, candidates, check_owner,
    },
    id::{Generation, PipelineId, RoundId},
    location::Location,
    pin::Pin,
    problem::{Problem, Reason},
    spec::Retention,
};

use super::{
    losses::{self, Look, Lost},
    patiently,
};
use crate::store::{CollectionView, Committed, PipelineRow, Store, refuse_behind, refuse_lost};

/// Commits whose manifests are read at once.
const PARALLEL: usize = 4;

/// Of a checkpoint that somebody asks to delete.
pub const NO_LIMITS: Retention = Retention { min_age: Duration::ZERO, min_count: 0 };

/// What a collection is given.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Whose location.
    pub pipeline: PipelineId,
    /// That location.
    pub location: Location,
    /// That the pipeline holds.
    pub generation: Generation,
    /// How long what is retired stays for readers who can't pin.
    pub grace: Duration,
    /// How long to insist on a store that fails in a way that may pass.
    pub patience: Duration,
}

/// One look at a location, with what was read of commits meanwhile.
#[derive(Debug)]
pub struct Collector {
    ground: Ground,
    bucket: Arc<dyn ObjectStore>,
    store: Store,
    /// What commits reach never changes, as long as they are whole.
    reaches: Mutex<BTreeMap<CommitRef, Arc<CommitReach>>>,
    /// Of a commit that lives and can't be read whole.
    lost: Mutex<Option<Problem>>,
    /// What is taken to stand there, of which row.
    expected: Option<(Box<PipelineRow>, Vec<Committed>)>,
    /// What of it was not found.
    missing: Mutex<Vec<Lost>>,
}

/// What may be retired, and why the rest stays.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Of the location as it was listed.
    pub decisions: Decisions,
    /// All of them.
    pub pins: Vec<Pin>,
    /// The database's time before anything was listed.
    pub since: DateTime<Utc>,
    /// By retention, or by what somebody asked for.
    pub candidates: Candidates,
    /// What the database said after the listing.
    pub view: CollectionView,
}

impl Collector {
    /// Opens the location; no request is made yet.
    pub async fn open(connector: &dyn Connector, store: &Store, ground: Ground) -> Result<Self, Problem> {
        let bucket = connector.connect(&ground.location).await?;
        Ok(Self {
            ground,
            bucket,
            store: store.clone(),
            reaches: Mutex::default(),
            lost: Mutex::default(),
            expected: None,
            missing: Mutex::default(),
        })
    }

    /// Refuses to say what is garbage where one of these is not read as itself: no commit reaches its objects, and they are all that brings it back.
    #[must_use]
    pub fn expecting(mut self, row: &PipelineRow, committed: Vec<Committed>) -> Self {
        self.expected = Some((Box::new(row.clone()), committed));
        self
    }

    /// What it was refused for.
    pub fn missing(&self) -> Vec<Lost> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The location, for those who read decisions only.
    pub fn look(&self) -> Look<'_> {
        Look { bucket: self.bucket(), patience: self.ground.patience }
    }

    /// What it works on.
    pub const fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Why something stays that might go, if a part manifest of a live commit is lost.
    pub fn lost(&self) -> Option<Problem> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The store behind it.
    pub fn bucket(&self) -> &dyn ObjectStore {
        self.bucket.as_ref()
    }

    /// G1, before the lock. `limits`: none retires nothing.
    pub async fn survey(&self, limits: Option<Retention>) -> Result<Survey, Problem> {
        let since = self.store.now().await?;
        let decisions = self.decisions().await?;
        let pins = self.pins().await?;
        let view = self.view(&decisions, BTreeSet::new()).await?;
        let candidates = match limits {
            Some(limits) => candidates(&decisions.known(), &pins, &view.rounds.in_use, limits, view.now),
            None => Candidates { retire: Vec::new(), kept: Vec::new() },
        };
        Ok(Survey { decisions, pins, since, candidates, view })
    }

    /// G2. `soon`: tombstones that a dry run only thinks of.
    pub async fn sweep(&self, soon: &[LandedTombstone]) -> Result<Plan, Problem> {
        let mine = self.ground.generation;
        let decisions = self.decisions().await?;
        let view = self.view(&decisions, BTreeSet::new()).await?;
        refuse_lost(&view.pipeline)?;
        let landed = [decisions.landed.as_slice(), soon].concat();
        let mut step = Sweep::begin(mine, &landed, self.ground.grace, view.now);
        loop {
            step = match step {
                Sweep::ListPins(list) => list.answer(&self.pins().await?),
                Sweep::ReadCommits(read) => {
                    let decisions = self.decisions().await?;
                    let counted = decisions.refs();
                    let live = read.live(&counted);
                    let live =
                        self.reach_all(decisions.counted.iter().filter(|one| live.contains(&one.commit))).await?;
                    let retired = decisions.counted.iter().filter(|one| read.retired().contains(&one.commit));
                    let retired = self.reach_retired(retired).await?;
                    let bytes = |commit| decisions.find(&commit).map(|counted| counted.bytes);
                    read.answer(&counted, &live, &retired, bytes).map_err(why)?
                }
                Sweep::ReadSuccessor(read) => {
                    let stands = self.fence_stands(read.generation()).await?;
                    read.answer(stands).map_err(why)?
                }
                Sweep::Delete(plan) => return self.still_there(plan).await,
                Sweep::Nothing => return Ok(Plan::default()),
            };
        }
    }

    /// Without what an earlier sweep has deleted already: a dry run shows what would go, not what is gone.
    async fn still_there(&self, mut plan: Plan) -> Result<Plan, Problem> {
        if plan.is_empty() {
            return Ok(plan);
        }
        let bucket = self.bucket();
        let listed = self.patiently(|| garbage::list_attempts(bucket)).await?;
        let there: BTreeSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        for stage in [&mut plan.data, &mut plan.manifests, &mut plan.inherited] {
            stage.retain(|doomed| there.contains(doomed.key.as_str()));
        }
        Ok(plan)
    }

    /// G3.
    pub async fn orphans(&self) -> Result<Plan, Problem> {
        let mut step = Orphans::begin(self.ground.generation);
        loop {
            step = match step {
                Orphans::ListKeys(list) => {
                    let bucket = self.bucket();
                    let uploads = self.patiently(|| garbage::list_uploads(bucket)).await?;
                    let keys = self.patiently(|| garbage::list_attempts(bucket)).await?;
                    list.answer(keys, uploads).map_err(why)?
                }
                Orphans::ReadDatabase(read) => {
                    let view = self.store.collection_view(self.ground.pipeline, read.rounds()).await?;
                    check_identity(&view)?;
                    read.answer(view.rounds).map_err(why)?
                }
                Orphans::ReadCommits(read) => {
                    let decisions = self.decisions().await?;
                    refuse_lost(&self.view(&decisions, BTreeSet::new()).await?.pipeline)?;
                    let retired: BTreeSet<CommitRef> = decisions.landed.iter().map(LandedTombstone::commit).collect();
                    let (gone, live): (Vec<&Counted>, Vec<&Counted>) =
                        decisions.counted.iter().partition(|one| retired.contains(&one.commit));
                    let mut reach = self.reach_all(live.into_iter()).await?;
                    reach.extend(self.reach_retired(gone.into_iter()).await?);
                    read.answer(&decisions.refs(), &reach).map_err(why)?
                }
                Orphans::ReadSuccessor(read) => {
                    let stands = self.fence_stands(read.generation()).await?;
                    read.answer(stands).map_err(why)?
                }
                Orphans::Delete(plan) => return Ok(plan),
            };
        }
    }

    /// What a dry run shows of the tombstones that a collection would put now.
    pub fn foreseen(&self, survey: &Survey) -> Vec<LandedTombstone> {
        let locked = Locked {
            pipeline: self.ground.pipeline,
            generation: self.ground.generation,
            last: survey.view.pipeline.last_commit.as_ref().map(|last| last.commit),
            in_use: survey.view.rounds.in_use.clone(),
            now: survey.view.now,
        };
        let marked = survey.candidates.mark(&locked);
        marked
            .iter()
            .filter_map(|retiring| LandedTombstone::read(retiring.tombstone(), self.ground.generation, None))
            .collect()
    }

    async fn decisions(&self) -> Result<Decisions, Problem> {
        let (bucket, mine) = (self.bucket(), self.ground.generation);
        let decisions = self.patiently(|| garbage::read_decisions(bucket, mine)).await?;
        if let Some((row, _)) = &self.expected {
            let missing = self.missing_of(&decisions).await?;
            self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&missing);
            losses::refuse(row, &missing)?;
        }
        Ok(decisions)
    }

    async fn missing_of(&self, decisions: &Decisions) -> Result<Vec<Lost>, Problem> {
        let Some((_, expected)) = &self.expected else { return Ok(Vec::new()) };
        losses::missing(self.look(), expected, decisions).await
    }

    /// Those that are expected and not read as themselves.
    pub async fn look_for_missing(&self) -> Result<Vec<Lost>, Problem> {
        let (bucket, mine) = (self.bucket(), self.ground.generation);
        self.missing_of(&self.patiently(|| garbage::read_decisions(bucket, mine)).await?).await
    }

    async fn pins(&self) -> Result<Vec<Pin>, Problem> {
        let bucket = self.bucket();
        self.patiently(|| pins::list_pins(bucket)).await
    }

    async fn fence_stands(&self, generation: Generation) -> Result<bool, Problem> {
        let bucket = self.bucket();
        self.patiently(|| garbage::fence_stands(bucket, generation)).await
    }

    /// What the database knows, and whether it may say what is garbage: read after the listing that it is compared with.
    async fn view(&self, decisions: &Decisions, rounds: BTreeSet<RoundId>) -> Result<CollectionView, Problem> {
        let view = self.store.collection_view(self.ground.pipeline, rounds).await?;
        check_identity(&view)?;
        let pipeline = &view.pipeline;
        refuse_behind(pipeline)?;
        if view.rounds.fenced || pipeline.generation != self.ground.generation {
            return Err(Problem::new(
                Reason::Fenced,
                format!(
                    "pipeline {} holds generation {} now{}, garbage was looked for in generation {}: look again",
                    pipeline.spec.name,
                    pipeline.generation,
                    if view.rounds.fenced { " and is fenced" } else { "" },
                    self.ground.generation
                ),
            )
            .with("pipeline", &pipeline.spec.name)
            .with("generation", pipeline.generation)
            .with("looked_in", self.ground.generation));
        }
        check_owner(self.ground.generation, pipeline.next_seq, decisions.newest).map_err(why)?;
        Ok(view)
    }

    async fn reach_all<'c>(&self, commits: impl Iterator<Item = &'c Counted>) -> Result<Vec<CommitReach>, Problem> {
        // Boxed, because the compiler can't prove that a stream which borrows in its closure is `Send`.
        let reads: Vec<BoxFuture<'_, Result<CommitReach, Problem>>> =
            commits.map(|counted| self.reach(counted.clone()).boxed()).collect();
        futures::stream::iter(reads).buffered(PARALLEL).try_collect().await
    }

    async fn reach(&self, counted: Counted) -> Result<CommitReach, Problem> {
        let known = self.reaches.lock().unwrap_or_else(PoisonError::into_inner).get(&counted.commit).cloned();
        if let Some(known) = known {
            return Ok(known.as_ref().clone());
        }
        let (bucket, of) = (self.bucket(), &counted);
        let (read, lost) = self.patiently(|| garbage::reach(bucket, of)).await?;
        if lost.is_some() {
            *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
            return Ok(read);
        }
        let mut reaches = self.reaches.lock().unwrap_or_else(PoisonError::into_inner);
        reaches.insert(counted.commit, Arc::new(read.clone()));
        Ok(read)
    }

    async fn reach_retired<'c>(&self, commits: impl Iterator<Item = &'c Counted>) -> Result<Vec<CommitReach>, Problem> {
        let mut reaches = Vec::new();
        for counted in commits {
            let bucket = self.bucket();
            reaches.push(self.patiently(|| garbage::reach_of_retired(bucket, counted)).await?);
        }
        Ok(reaches)
    }

    async fn patiently<T, F>(&self, read: impl FnMut() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        patiently(self.ground.patience, read).await
    }
}

/// `CHECKPOINT_IN_USE` says why it stays.
pub fn check_may_go(survey: &Survey, commit: &CommitRef) -> Result<(), Problem> {
    let Candidates { retire, kept } = &survey.candidates;
    if retire.contains(commit) {
        return Ok(());
    }
    let Some(kept) = kept.iter().find(|kept| kept.commit == *commit) else {
        return Err(Problem::new(
            Reason::CheckpointNotFound,
            format!("checkpoint {} ({}-{}) is retired or gone", commit.round, commit.generation, commit.seq),
        )
        .with("checkpoint", commit.round)
        .with("generation", commit.generation)
        .with("seq", commit.seq));
    };
    Err(stays(
        commit,
        match kept.why {
            WhyKept::Newest => "it is the newest: push another one first",
            WhyKept::Pinned => "it is pinned: unpin it first",
            WhyKept::InUse => "it is the base or source of a round: wait for its end",
            WhyKept::Occupied => "an owner that was fenced retired it too late, so it can't be retired any more",
            WhyKept::Unreadable => {
                "its document can't be read: bring it back, or give it up first by checkpoint verify"
            }
            WhyKept::Count | WhyKept::Age => "retention keeps it",
        },
    ))
}

/// `CHECKPOINT_IN_USE`.
pub fn stays(commit: &CommitRef, why: &str) -> Problem {
    Problem::new(
        Reason::CheckpointInUse,
        format!("checkpoint {} ({}-{}) is not deleted: {why}", commit.round, commit.generation, commit.seq),
    )
    .with("checkpoint", commit.round)
    .with("generation", commit.generation)
    .with("seq", commit.seq)
    .with("why", why)
}

fn why(stop: Stop) -> Problem {
    stop.problem
}

/// A pipeline whose fence another server of this database wrote may only take its location over: rows may be missing (R13).
fn check_identity(view: &CollectionView) -> Result<(), Problem> {
    let (pipeline, fence) = (&view.pipeline, &view.pipeline.database);
    if *fence == view.identity {
        return Ok(());
    }
    let show = |identity: &crate::store::DatabaseIdentity| {
        format!("{} (system {}, timeline {})", identity.database, identity.system_identifier, identity.timeline)
    };
    Err(Problem::new(
        Reason::DatabaseBehind,
        format!(
            "the fence of pipeline {} was written by database {}, this is {}: rows may be missing; resync the pipeline",
            pipeline.spec.name,
            show(fence),
            show(&view.identity)
        ),
    )
    .with("pipeline", &pipeline.spec.name)
    .with("database", show(&view.identity))
    .with("fence_database", show(fence)))
}
