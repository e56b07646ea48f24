//! Random operations on a store that make sense about half the time.

mod events;
mod pipelines;
mod rounds;
mod schedules;
mod upkeep;

use std::{collections::BTreeMap, time::Duration};

use lockstep_coordinator::store::{
    AdmitPull, AdmitPush, AdmitUpkeep, ClaimOutcome, DuePush, DueStandby, HostProgress, NewPipeline, Page, PipelineRow,
    PipelineSelector, Store,
};
use lockstep_protocol::{
    commit::CommitRef,
    id::{Generation, PipelineId, RequestId, RoundId, Term},
    round::{CancelRequest, Kind, Round},
    schedule::PushSchedule,
    spec::PipelineSpec,
    standby::FollowState,
    upkeep::{Outcome, Tally, Upkeep},
};
use rand::{Rng as _, rngs::StdRng};
use uuid::Uuid;

use crate::location_operations::{LocationOperation, Locations};
use events::Events;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) enum Operation {
    Create(NewPipeline),
    Update(PipelineSelector, PipelineSpec, Option<String>),
    Delete(PipelineSelector, Option<String>),
    ClaimClaiming(Duration),
    RenewClaim(PipelineId, Term, Duration),
    SettleClaim(PipelineId, u64, Term, ClaimOutcome),
    Push(AdmitPush),
    Pull(AdmitPull),
    Claim(Duration, u32),
    Renew(Vec<(RoundId, Term)>, Duration),
    Release(Vec<(RoundId, Term)>),
    Apply {
        snapshot: Snapshot,
        events: Events,
        stale_version: bool,
        stale_term: bool,
    },
    RequestCancel(RoundId, CancelRequest),
    PendingCancel(RoundId),
    Progress(RoundId, Term, Vec<HostProgress>),
    Get(RoundId),
    DuePushes(Duration),
    SaveSchedule(DuePush, PushSchedule),
    AdmitUpkeep(AdmitUpkeep),
    ClaimUpkeep(Duration, u32),
    /// Moves, renews or lets go of the n-th piece of upkeep that was claimed, as an outcome says; `stale`: under a term that is not current.
    DriveUpkeep {
        nth: usize,
        outcome: Option<Outcome>,
        tally: Tally,
        stale: bool,
    },
    DueCollections(Duration),
    Mark(PipelineId, Generation, Vec<CommitRef>),
    SettleRetirement(PipelineId, CommitRef, bool),
    CollectionView(PipelineId, Vec<RoundId>),
    DueStandbys(Duration),
    SaveFollowState(Box<(DueStandby, FollowState)>),
    StartStandby(PipelineSelector, Option<RoundId>),
    StopStandby(PipelineSelector),
    Location(LocationOperation),
}

impl Operation {
    /// The state that a write is decided on.
    pub(crate) const fn snapshot(&self) -> Option<Snapshot> {
        match self {
            Self::Apply { snapshot, .. } => Some(*snapshot),
            _ => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Update(..) => "update",
            Self::Delete(..) => "delete",
            Self::ClaimClaiming(_) => "claim location",
            Self::RenewClaim(..) => "renew location's claim",
            Self::SettleClaim(..) => "settle location's claim",
            Self::Push(_) => "admit push",
            Self::Pull(_) => "admit pull",
            Self::Claim(..) => "claim rounds",
            Self::Renew(..) => "renew leases",
            Self::Release(_) => "release",
            Self::Apply { .. } => "apply",
            Self::RequestCancel(..) => "request cancel",
            Self::PendingCancel(_) => "look for cancel",
            Self::Progress(..) => "save progress",
            Self::Get(_) => "get",
            Self::DuePushes(_) => "take due pushes",
            Self::SaveSchedule(..) => "save schedule",
            Self::AdmitUpkeep(_) => "admit upkeep",
            Self::ClaimUpkeep(..) => "claim upkeep",
            Self::DriveUpkeep { .. } => "drive upkeep",
            Self::DueCollections(_) => "look for due collections",
            Self::Mark(..) => "mark as retired",
            Self::SettleRetirement(..) => "settle retirement",
            Self::CollectionView(..) => "view for collection",
            Self::DueStandbys(_) => "take due standbys",
            Self::SaveFollowState(..) => "save a standby's state",
            Self::StartStandby(..) => "start standby",
            Self::StopStandby(_) => "stop standby",
            Self::Location(operation) => operation.name(),
        }
    }
}

/// A round as it was told some answers ago; 0 is the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    round: RoundId,
    ago: usize,
}

/// What both sides are known to hold.
#[derive(Default)]
pub(crate) struct World {
    pipelines: Vec<PipelineRow>,
    /// Postgres' and the twin's, the newest last: they differ in times alone.
    rounds: BTreeMap<RoundId, Vec<[Round; 2]>>,
    /// The same, as it was claimed.
    upkeep: Vec<[Upkeep; 2]>,
    pub(crate) locations: Locations,
    counts: BTreeMap<String, u64>,
}

fn uuid(rng: &mut StdRng) -> Uuid {
    Uuid::from_u128(rng.random())
}

/// From few, so that keys come again.
fn request_id(rng: &mut StdRng) -> Option<RequestId> {
    rng.random_bool(0.5).then(|| RequestId::new(Uuid::from_u128(0x1d + rng.random_range(0..12_u128))))
}

fn lease(rng: &mut StdRng) -> Duration {
    if rng.random_bool(0.5) { Duration::ZERO } else { HOUR }
}

fn pick<'a, T>(rng: &mut StdRng, from: &'a [T]) -> Option<&'a T> {
    (!from.is_empty()).then(|| &from[rng.random_range(0..from.len())])
}

fn step(rng: &mut StdRng) -> u64 {
    rng.random_range(1..5)
}

impl World {
    pub(crate) fn learn_upkeep(&mut self, claimed: [Upkeep; 2]) {
        self.upkeep.push(claimed);
    }

    /// What an operation on upkeep is about, as this side has claimed it.
    pub(crate) fn claimed(&self, operation: &Operation, side: usize) -> Option<&Upkeep> {
        let Operation::DriveUpkeep { nth, .. } = operation else { return None };
        Some(&self.upkeep.get(nth % self.upkeep.len().max(1))?[side])
    }

    /// What this side said that is open, by pipeline.
    pub(crate) fn open(&self, side: usize) -> BTreeMap<PipelineId, Round> {
        let last = self.rounds.values().filter_map(|told| told.last().map(|pair| pair[side].clone()));
        last.filter(|round| !round.phase.is_terminal()).map(|round| (round.pipeline, round)).collect()
    }

    /// Commits that pushes have made or pulls were given.
    fn commits(&self) -> impl Iterator<Item = (PipelineId, CommitRef)> {
        self.rounds.values().filter_map(|known| {
            let [round, _] = known.last()?;
            let commit = match &round.kind {
                Kind::Push(push) => push.committed,
                Kind::Pull(pull) => pull.resolved.as_ref().and_then(|from| from.commit),
            };
            Some((round.pipeline, commit?))
        })
    }

    pub(crate) fn learn(&mut self, rounds: [Round; 2]) {
        self.rounds.entry(rounds[0].id).or_default().push(rounds);
    }

    pub(crate) async fn learn_pipelines(&mut self, store: &Store) {
        let all = Page { size: 1000, token: None };
        self.pipelines = store.list_pipelines(all).await.unwrap().items;
    }

    pub(crate) fn pipelines(&self) -> Vec<PipelineId> {
        self.pipelines.iter().map(|row| row.id).collect()
    }

    /// As a side told it.
    pub(crate) fn snapshot(&self, snapshot: Snapshot, side: usize) -> Round {
        let told = &self.rounds[&snapshot.round];
        told[told.len() - 1 - snapshot.ago][side].clone()
    }

    /// What was done, and answered, how often.
    pub(crate) const fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// By the answer's variant, and by its reason if it is a refusal.
    pub(crate) fn count(&mut self, operation: &Operation, answer: &str) {
        let reason = answer.lines().find_map(|line| line.trim().strip_prefix("reason: "));
        let variant = answer.lines().take(2).map(str::trim).collect::<String>();
        let refused = reason.filter(|_| variant.starts_with("Err"));
        let key = format!("{}: {}", operation.name(), refused.unwrap_or(&variant));
        *self.counts.entry(key).or_default() += 1;
    }

    pub(crate) fn draw(&self, rng: &mut StdRng) -> Operation {
        loop {
            if let Some(operation) = self.try_draw(rng) {
                return operation;
            }
        }
    }

    /// None: there is nothing yet that it could be about.
    fn try_draw(&self, rng: &mut StdRng) -> Option<Operation> {
        let owned = self.pipelines.iter().filter(|row| row.claim.as_str() == "owned").count();
        let sort = if owned < 3 { rng.random_range(0..16) } else { rng.random_range(0..100) };
        Some(match sort {
            0..=3 => Operation::Create(self.new_pipeline(rng)),
            4 => self.update(rng)?,
            5 => Operation::Delete(self.selector(rng), None),
            6..=8 => Operation::ClaimClaiming(lease(rng)),
            9 => {
                let row = pick(rng, &self.pipelines)?;
                Operation::RenewClaim(row.id, row.claim_term, lease(rng))
            }
            10..=15 => self.settle_claim(rng)?,
            16..=23 => Operation::Push(self.push(rng)),
            24..=30 => Operation::Pull(self.pull(rng)),
            31..=40 => Operation::Claim(lease(rng), rng.random_range(1..4)),
            41..=43 => Operation::Renew(self.held(rng), lease(rng)),
            44..=45 => Operation::Release(self.held(rng)),
            46..=48 => {
                let request = CancelRequest { by: "bob".to_owned(), cause: "a\0 better idea".to_owned() };
                Operation::RequestCancel(self.round(rng)?, request)
            }
            60..=68 => self.upkeep(rng)?,
            49 => Operation::PendingCancel(self.round(rng)?),
            50..=52 => self.progress(rng)?,
            53 if rng.random_bool(0.6) => Operation::DuePushes(lease(rng)),
            54 => self.save_schedule(rng)?,
            55 => self.save_follow_state(rng)?,
            56 | 57 => Operation::DueStandbys(lease(rng)),
            58 if rng.random_bool(0.7) => Operation::StartStandby(self.standby(rng)?, self.round(rng)),
            58 => Operation::StopStandby(self.standby(rng)?),
            53 => Operation::Get(if rng.random_bool(0.2) { RoundId::new(uuid(rng)) } else { self.round(rng)? }),
            69..=83 => self.location(rng)?,
            _ => self.apply(rng)?,
        })
    }

    fn location(&self, rng: &mut StdRng) -> Option<Operation> {
        let row = pick(rng, &self.pipelines)?;
        let commits: Vec<CommitRef> =
            self.commits().filter(|(of, _)| *of == row.id).map(|(_, commit)| commit).collect();
        let commit = pick(rng, &commits).copied();
        let with = (self.selector(rng), request_id(rng), lease(rng));
        self.locations.draw(rng, row, commit, with).map(Operation::Location)
    }
}
