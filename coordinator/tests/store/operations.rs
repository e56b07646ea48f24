//! Random operations on a store that make sense about half the time.

use std::{collections::BTreeMap, time::Duration};

use chrono::DateTime;
use lockstep_coordinator::store::{
    AdmitPull, AdmitPush, AdmitUpkeep, ClaimOutcome, DuePush, DueStandby, FoundCut, HostProgress, NewPipeline, Page,
    PipelineRow, PipelineSelector, Store, Trigger,
};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::{FenceBase, Successor},
    id::{Attempt, Generation, PipelineId, RequestId, RoundId, Seq, Step, Term},
    problem::{Problem, Reason},
    round::{
        CancelRequest, DecisionKnown, Event, HostReport, Kind, ParticipantPhase, Phase, RetryPolicy, Round, Source,
        WantedCut,
    },
    schedule::PushSchedule,
    spec::PipelineSpec,
    standby::{FollowState, Point, Sighting, Standing},
    upkeep::{Outcome, Tally, Upkeep, Work},
};
use rand::{Rng as _, rngs::StdRng};
use uuid::Uuid;

use crate::location_operations::{LocationOperation, Locations};
use crate::rig::{FINGERPRINT, found, local, part, planned, pull, push, resolved_locally};

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

/// Drawn numbers from which events follow, the same for both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Events {
    sort: u32,
    step: u64,
    host: u32,
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

fn spec(rng: &mut StdRng) -> PipelineSpec {
    let name = format!("p{}", rng.random_range(0..6));
    let prefix = *pick(rng, &["a", "b", "c", "a/deep", "d", "e"]).unwrap();
    let mut value = serde_json::json!({
        "name": name, "hosts": rng.random_range(1..4), "agents": "http://agent-{host}:7402",
        "location": {"bucket": "checkpoints", "prefix": prefix},
    });
    if rng.random_bool(0.2) {
        value["initial"] = "standby".into();
    }
    if rng.random_bool(0.5) {
        value["push_interval"] = "2m".into();
    }
    if rng.random_bool(0.3) {
        value["read_location"] = serde_json::json!({"bucket": "archive", "prefix": "old"});
    }
    PipelineSpec::from_value(value).unwrap()
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

    /// One that may still change, or any.
    fn round(&self, rng: &mut StdRng) -> Option<RoundId> {
        let last = |told: &Vec<[Round; 2]>| told.last().map(|pair| pair[1].clone());
        let active: Vec<_> = self
            .rounds
            .iter()
            .filter(|(_, told)| last(told).is_some_and(|round| !round.phase.is_terminal()))
            .map(|(id, _)| *id)
            .collect();
        let all: Vec<_> = self.rounds.keys().copied().collect();
        let from = if active.is_empty() || rng.random_bool(0.05) { &all } else { &active };
        pick(rng, from).copied()
    }

    fn held(&self, rng: &mut StdRng) -> Vec<(RoundId, Term)> {
        let mut held = BTreeMap::new();
        for _ in 0..rng.random_range(1..3) {
            if let Some(id) = self.round(rng) {
                let term = self.rounds[&id].last().unwrap()[1].term;
                held.insert(id, if rng.random_bool(0.2) { term.next() } else { term });
            }
        }
        held.into_iter().collect()
    }

    fn selector(&self, rng: &mut StdRng) -> PipelineSelector {
        match pick(rng, &self.pipelines) {
            Some(row) if rng.random_bool(0.5) => row.id.into(),
            Some(row) if rng.random_bool(0.95) => row.spec.name.clone().into(),
            _ => PipelineId::new(Uuid::from_u128(1)).into(),
        }
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

    fn new_pipeline(&self, rng: &mut StdRng) -> NewPipeline {
        let spec = spec(rng);
        let standby = spec.initial == lockstep_protocol::spec::Initial::Standby;
        let odd = rng.random_bool(0.05);
        NewPipeline {
            id: PipelineId::new(uuid(rng)),
            spec,
            fence_bytes: (standby == odd).then(|| "{\"kind\":\"fence\"}\n".to_owned()),
            follows: rng.random_bool(0.8),
            request_id: request_id(rng),
        }
    }

    fn update(&self, rng: &mut StdRng) -> Option<Operation> {
        let row = pick(rng, &self.pipelines)?;
        let mut value = row.spec.to_value();
        match rng.random_range(0..5) {
            0 => value["name"] = format!("p{}", rng.random_range(0..6)).into(),
            1 => value["push_interval"] = "2m".into(),
            2 => value["hosts"] = rng.random_range(1..4).into(),
            3 => value["location"]["prefix"] = "elsewhere".into(),
            _ => {}
        }
        let etag = match rng.random_range(0..4) {
            0 => None,
            1 => Some("1".to_owned()),
            _ => Some(row.etag.clone()),
        };
        Some(Operation::Update(row.id.into(), PipelineSpec::from_value(value).ok()?, etag))
    }

    fn settle_claim(&self, rng: &mut StdRng) -> Option<Operation> {
        let claiming: Vec<_> = self.pipelines.iter().filter(|row| row.claim.as_str() == "claiming").collect();
        let row = pick(rng, &claiming)?;
        let problem = Problem::new(Reason::LocationOwned, "somebody\0 else's").with("owner", "x\0y");
        let outcome = match rng.random_range(0..8) {
            0 => ClaimOutcome::Refused(problem),
            1 => ClaimOutcome::Again { problem, after: lease(rng) },
            _ => ClaimOutcome::Owned(Generation::FIRST),
        };
        let stale = u64::from(rng.random_bool(0.1));
        let term = if rng.random_bool(0.1) { row.claim_term.next() } else { row.claim_term };
        Some(Operation::SettleClaim(row.id, row.version - stale, term, outcome))
    }

    /// Of a pipeline that exists; mostly of one that owns its location.
    fn upkeep(&self, rng: &mut StdRng) -> Option<Operation> {
        let row = pick(rng, &self.pipelines)?;
        let commits: Vec<CommitRef> =
            self.commits().filter(|(of, _)| *of == row.id).map(|(_, commit)| commit).collect();
        let commit = pick(rng, &commits).copied();
        Some(match rng.random_range(0..12) {
            0..=1 => {
                let work = match (rng.random_range(0..4), commit) {
                    (0, Some(commit)) => {
                        Work::Pin { commit, key: "pins/x.json".to_owned(), bytes: "a\0 pin".to_owned() }
                    }
                    (1, Some(commit)) => Work::Retire { commit },
                    (2, _) => Work::Unpin { keys: vec!["pins/x.json".to_owned()], documents: Vec::new() },
                    _ => Work::Collect,
                };
                Operation::AdmitUpkeep(AdmitUpkeep {
                    pipeline: self.selector(rng),
                    work,
                    request_id: request_id(rng),
                    at_least_apart: rng.random_bool(0.5).then_some(HOUR),
                    retry: RetryPolicy::default(),
                })
            }
            2..=3 => Operation::ClaimUpkeep(lease(rng), rng.random_range(1..3)),
            4..=5 if !self.upkeep.is_empty() => Operation::DriveUpkeep {
                nth: rng.random_range(0..1000),
                outcome: match rng.random_range(0..4) {
                    0 => None,
                    1 => {
                        Some(Outcome::Stopped { problem: Problem::new(Reason::StoreThrottled, "slow\0"), jitter: 500 })
                    }
                    2 => Some(Outcome::Stopped { problem: Problem::new(Reason::Fenced, "fenced"), jitter: 0 }),
                    _ => Some(Outcome::Done(None)),
                },
                tally: Tally { objects: rng.random_range(0..9), ..Tally::default() },
                stale: rng.random_bool(0.1),
            },
            6 => Operation::DueCollections(if rng.random_bool(0.5) { HOUR } else { Duration::ZERO }),
            7..=8 => {
                let generation = if rng.random_bool(0.9) { row.generation } else { row.generation.next() };
                Operation::Mark(row.id, generation, commits)
            }
            4 | 5 | 9 | 10 => Operation::SettleRetirement(row.id, commit?, rng.random_bool(0.6)),
            _ => Operation::CollectionView(row.id, self.round(rng).into_iter().collect()),
        })
    }

    /// Of a look that may be long over.
    fn save_schedule(&self, rng: &mut StdRng) -> Option<Operation> {
        let row = pick(rng, &self.pipelines)?;
        let due_at = DateTime::from_timestamp(if rng.random_bool(0.5) { 1_000_000_000 } else { 9_000_000_000 }, 0)?;
        let schedule = PushSchedule {
            failures: rng.random_range(0..3),
            problem: rng.random_bool(0.5).then(|| Problem::new(Reason::NoSpace, "full\0").with("k", "v\0")),
            seen: self.round(rng),
            ..PushSchedule::new(due_at)
        };
        let due = DuePush { pipeline: row.id, schedule: schedule.clone(), version: rng.random_range(0..4) };
        Some(Operation::SaveSchedule(due, schedule))
    }

    /// Mostly one that is a standby, or was fenced and may become one.
    fn standby(&self, rng: &mut StdRng) -> Option<PipelineSelector> {
        let may_follow = |row: &&PipelineRow| row.claim.as_str() == "standby" || row.fenced.is_some();
        let standbys: Vec<_> = self.pipelines.iter().filter(may_follow).collect();
        let row = pick(rng, &standbys)?;
        Some(if rng.random_bool(0.9) { row.id.into() } else { self.selector(rng) })
    }

    /// Of a look that may be long over.
    fn save_follow_state(&self, rng: &mut StdRng) -> Option<Operation> {
        let PipelineSelector::Id(pipeline) = self.standby(rng)? else { return None };
        let due_at = DateTime::from_timestamp(if rng.random_bool(0.5) { 1_000_000_000 } else { 9_000_000_000 }, 0)?;
        let commit = CommitRef {
            generation: Generation::FIRST,
            seq: Seq::FIRST,
            round: RoundId::new(uuid(rng)),
            digest: Digest::of(b"commit"),
        };
        let point = Point { commit, step: Step::new(rng.random_range(0..9)).ok()?, at: due_at };
        let state = FollowState {
            failures: rng.random_range(0..3),
            problem: rng.random_bool(0.5).then(|| Problem::new(Reason::NoSpace, "full\0").with("k", "v\0")),
            seen: self.round(rng),
            sighting: Sighting::default().next(rng.random_bool(0.7).then_some(point), None, 7, due_at),
            ..FollowState::new(due_at)
        };
        let standing = Standing { pipeline, standby: true, stopped: false, activation: None, pinned: None };
        let due =
            DueStandby { following: standing.following()?, state: state.clone(), version: rng.random_range(0..6) };
        Some(Operation::SaveFollowState(Box::new((due, state))))
    }

    fn any_row(&self, rng: &mut StdRng) -> Option<&PipelineRow> {
        pick(rng, &self.pipelines)
    }

    fn push(&self, rng: &mut StdRng) -> AdmitPush {
        let wanted = match rng.random_range(0..4) {
            0 => WantedCut::Step(Step::new(step(rng)).unwrap()),
            1 => WantedCut::Local(local(step(rng), 0)),
            _ => WantedCut::Newest,
        };
        let found = rng.random_bool(0.2).then(|| {
            let step = step(rng);
            FoundCut {
                step: Step::new(step).unwrap(),
                fingerprint: Some(FINGERPRINT),
                local_checkpoints: (0..rng.random_range(1..4)).map(|host| local(step, host)).collect(),
            }
        });
        let like = self.any_row(rng).map(push);
        let deadline = if rng.random_bool(0.02) { Duration::MAX } else { HOUR };
        AdmitPush {
            pipeline: self.selector(rng),
            wanted,
            force: rng.random_bool(0.2),
            trigger: if rng.random_bool(0.3) { Trigger::Periodic } else { Trigger::Manual },
            found,
            request_id: request_id(rng),
            deadline,
            retry: like.map_or_else(Default::default, |like| like.retry),
        }
    }

    fn pull(&self, rng: &mut StdRng) -> AdmitPull {
        let mut request = self.any_row(rng).map_or(
            lockstep_protocol::round::PullRequest {
                selector: lockstep_protocol::spec::PullSelector::Latest,
                standby: false,
                fail_if_none: false,
                allow_fingerprint: false,
                discard_local: false,
            },
            |row| pull(row).request,
        );
        request.standby = rng.random_bool(0.3);
        AdmitPull {
            follows: rng.random_bool(0.2).then(|| rng.random_range(0..6)),
            pipeline: self.selector(rng),
            request,
            request_id: request_id(rng),
            deadline: HOUR,
            retry: Default::default(),
        }
    }

    fn progress(&self, rng: &mut StdRng) -> Option<Operation> {
        let id = self.round(rng)?;
        let term = self.rounds[&id].last()?[1].term;
        let hosts = (0..rng.random_range(1..4)).map(|host_idx| HostProgress {
            host_idx,
            attempt: Attempt::new(rng.random_range(1..3)).unwrap(),
            bytes_done: rng.random_range(0..100),
            bytes_total: rng.random_bool(0.5).then_some(100),
            files_done: 1,
            files_total: None,
            bytes_transferred: 3,
            bytes_per_second: 9,
        });
        let hosts = hosts.collect();
        Some(Operation::Progress(id, if rng.random_bool(0.2) { term.next() } else { term }, hosts))
    }

    fn apply(&self, rng: &mut StdRng) -> Option<Operation> {
        let round = self.round(rng)?;
        let told = self.rounds[&round].len();
        let ago = if rng.random_bool(0.1) { rng.random_range(0..told) } else { 0 };
        Some(Operation::Apply {
            snapshot: Snapshot { round, ago },
            events: Events { sort: rng.random_range(0..100), step: step(rng), host: rng.random_range(0..3) },
            stale_version: rng.random_bool(0.05),
            stale_term: rng.random_bool(0.05),
        })
    }
}

impl Events {
    /// What may happen to the round next.
    pub(crate) fn of(self, round: &Round) -> Vec<Event> {
        let host_idx = self.host % round.layout.len();
        let attempt = round.participants[host_idx as usize].attempt;
        let jitter = 500;
        let source = match &round.kind {
            Kind::Pull(pull) => pull.resolved.as_ref().and_then(|from| from.commit),
            Kind::Push(_) => None,
        };
        match (self.sort, source) {
            (10..=12, Some(commit)) => {
                let problem = Problem::new(Reason::CheckpointNotFound, "its\0 owner has retired it");
                vec![Event::SourceRetired { host_idx, attempt, commit, problem }]
            }
            (0..=2, _) => vec![Event::CancelRequested(CancelRequest { by: "bob".to_owned(), cause: "\0".to_owned() })],
            (3..=4, _) => vec![Event::Refused(Problem::new(Reason::Fenced, "a newer\0 owner"))],
            (5..=12, _) => {
                let reason = if self.step == 1 { Reason::NoSpace } else { Reason::AgentRestarted };
                let problem = Problem::new(reason, "what an agent\0 said").with("k\0", "v\0");
                vec![Event::HostFailed { host_idx, attempt, problem, jitter }]
            }
            (13, _) => vec![Event::Tick],
            // Two at once, as a driver stores them.
            (14..=20, _) => self.next(round).into_iter().take(2).collect(),
            _ => self.next(round),
        }
    }

    fn next(self, round: &Round) -> Vec<Event> {
        match (&round.kind, round.phase) {
            (Kind::Push(_), Phase::Planning) => vec![planned(round, self.step)],
            (Kind::Push(_), Phase::Transferring) => self.hosts(round),
            (Kind::Push(_), Phase::Committing) => vec![self.settled(round)],
            (Kind::Pull(_), Phase::Resolving) => vec![self.resolved(round)],
            (Kind::Pull(_), Phase::Transferring | Phase::Installing) => self.hosts(round),
            _ => vec![Event::Tick],
        }
    }

    /// Every host that is due moves on; with all of them done, the round.
    fn hosts(self, round: &Round) -> Vec<Event> {
        let mut events = Vec::new();
        for p in &round.participants {
            let (host_idx, attempt) = (p.host_idx, p.attempt);
            let Some(incarnation) = p.incarnation else { continue };
            let report = match (&round.kind, p.phase) {
                (_, ParticipantPhase::BackingOff) => {
                    events.push(Event::HostReady { host_idx, attempt, incarnation });
                    continue;
                }
                (Kind::Push(push), ParticipantPhase::Ordered) => HostReport::Part {
                    part: part(round, push.step.map_or(self.step, Step::get), host_idx),
                    step: push.step.unwrap(),
                    fingerprint: push.fingerprint,
                },
                (Kind::Pull(_), ParticipantPhase::Ordered) => HostReport::Staged,
                (Kind::Pull(_), ParticipantPhase::Staged) => HostReport::Installed,
                _ => continue,
            };
            events.push(Event::HostDone { host_idx, attempt, incarnation, report });
        }
        if events.is_empty() {
            events.push(match &round.kind {
                Kind::Push(_) => Event::PartsChecked { writer: "test".to_owned(), trace_id: None },
                Kind::Pull(_) => Event::Confirmed {
                    incarnations: round.participants.iter().map(|p| p.incarnation).collect(),
                    jitter: 500,
                },
            });
        }
        events
    }

    fn settled(self, round: &Round) -> Event {
        let other = RoundId::new(Uuid::from_u128(77));
        let base = FenceBase { generation: round.generation.next(), newest: None, tombstones: Vec::new() };
        let (decision, successor) = match self.step {
            1 => (DecisionKnown::Unknown(Problem::new(Reason::StoreUnavailable, "no\0 answer")), None),
            2 if self.host == 0 => (DecisionKnown::OtherRound(other), Some(Successor::Absent)),
            2 if self.host == 1 => (DecisionKnown::AbortStands, Some(Successor::Absent)),
            2 => (DecisionKnown::CommitStands, Some(Successor::Base(base))),
            _ => (DecisionKnown::CommitStands, Some(Successor::Absent)),
        };
        Event::Settled { decision, successor, jitter: 500 }
    }

    fn resolved(self, round: &Round) -> Event {
        let local = resolved_locally(round, self.step);
        let Event::Resolved { mut resolved, hosts, discard } = local else { return local };
        let Kind::Pull(pull) = &round.kind else { return Event::Tick };
        // Another one than those that were retired.
        let seq = 1 + pull.retired.len() as u64;
        match self.host {
            0 => {
                resolved.source = Source::Location;
                resolved.location = Some(round.location.clone());
                resolved.commit = Some(CommitRef {
                    generation: Generation::FIRST,
                    seq: Seq::new(seq).unwrap(),
                    round: RoundId::new(Uuid::from_u128(5)),
                    digest: Digest::of(b"commit"),
                });
                resolved.parts = (0..round.layout.len()).map(|host_idx| part(round, self.step, host_idx)).collect();
                Event::Resolved { resolved, hosts, discard }
            }
            1 if self.step == 1 => {
                (resolved.source, resolved.step, resolved.fingerprint) = (Source::Fresh, None, None);
                let hosts = found(round, self.step).into_iter().map(|mut host| {
                    host.local_checkpoint = None;
                    host
                });
                Event::Resolved { resolved, hosts: hosts.collect(), discard: false }
            }
            _ => Event::Resolved { resolved, hosts, discard },
        }
    }
}
