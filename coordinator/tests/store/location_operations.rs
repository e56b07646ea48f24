//! Random operations on what is known of locations: take-overs, words, verifications, what differs. As in `operations`, they make sense about half the time.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use chrono::{DateTime, Utc};
use lockstep_coordinator::store::{
    AcceptLoss, AdmitTakeOver, Adoption, Difference, Finding, LastCommit, Learnt, PipelineRow, PipelineSelector, Store,
    TakeOverApplied, UnderWay, Verification, VerificationsOf, VerifyBudget,
};
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    digest::Digest,
    fence::{Fence, FenceBase},
    id::{Generation, PipelineId, RequestId, RoundId, RoundNo, Seq, Step, Term},
    problem::{Problem, Reason},
    ready::Telling,
    round::{CancelRequest, KeyRead, RetryPolicy, Round},
    takeover::{self, Chosen, Event, FenceKnown, Phase, Purpose, Settlement, TakeOver},
    verification::{Allowance, Position, Scope},
};
use rand::{Rng as _, rngs::StdRng};
use uuid::Uuid;

use crate::rig::{FINGERPRINT, alice, local, part_of, replica};

#[derive(Debug)]
pub(crate) enum LocationOperation {
    AdmitTakeOver(AdmitTakeOver),
    ClaimTakeOvers(Duration),
    RenewTakeOver(Nth, Duration),
    /// By what may happen next; `numbers` say which.
    ApplyTakeOver(Nth, Numbers),
    ClaimWords(Duration),
    SaveTelling(Nth, Numbers),
    Keep(Finding),
    OwedMarks(Duration),
    SettleMark(Nth, Option<Problem>, Duration),
    ClaimBudget(&'static str, Duration),
    RenewBudget(&'static str, Duration),
    SaveBudget(Numbers, Duration),
    Turn,
    FenceOut(PipelineId, Generation),
    Note(PipelineId, Generation, Difference),
    FoundAgain(PipelineId, Generation, CommitRef),
    AcceptLoss(AcceptLoss),
    AskedUpkeep(PipelineId, RequestId),
}

/// One that was told, counted from the last; `stale`: under a term that is not current.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nth {
    ago: usize,
    stale: bool,
}

/// Drawn, the same for both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    sort: u32,
    step: u64,
    id: Uuid,
}

/// What a side has told; Postgres' and the twin's beside each other.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    TakeOver(Box<TakeOver>),
    Word(Telling),
    Verification(Box<Verification>),
    Budget(VerifyBudget),
}

#[derive(Default)]
pub(crate) struct Locations {
    take_overs: Vec<[TakeOver; 2]>,
    words: Vec<[Telling; 2]>,
    verifications: Vec<[Verification; 2]>,
    budget: Option<[VerifyBudget; 2]>,
}

impl LocationOperation {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::AdmitTakeOver(_) => "admit take-over",
            Self::ClaimTakeOvers(_) => "claim take-overs",
            Self::RenewTakeOver(..) => "renew take-over",
            Self::ApplyTakeOver(..) => "apply take-over",
            Self::ClaimWords(_) => "claim words",
            Self::SaveTelling(..) => "save telling",
            Self::Keep(_) => "keep verification",
            Self::OwedMarks(_) => "take owed marks",
            Self::SettleMark(..) => "settle mark",
            Self::ClaimBudget(..) => "claim verify budget",
            Self::RenewBudget(..) => "renew verify budget",
            Self::SaveBudget(..) => "save verify budget",
            Self::Turn => "verify turn",
            Self::FenceOut(..) => "fence out",
            Self::Note(..) => "note difference",
            Self::FoundAgain(..) => "lost checkpoint found again",
            Self::AcceptLoss(_) => "accept loss",
            Self::AskedUpkeep(..) => "look for upkeep that was asked",
        }
    }
}

fn numbers(rng: &mut StdRng) -> Numbers {
    Numbers { sort: rng.random_range(0..20), step: rng.random_range(1..5), id: Uuid::from_u128(rng.random()) }
}

fn nth(rng: &mut StdRng) -> Nth {
    let ago = if rng.random_bool(0.8) { rng.random_range(0..3) } else { rng.random_range(0..20) };
    Nth { ago, stale: rng.random_bool(0.05) }
}

impl Nth {
    fn of<T>(self, told: &[[T; 2]], side: usize) -> Option<&T> {
        told.iter().rev().nth(self.ago).map(|pair| &pair[side])
    }

    fn term(self, term: Term) -> Term {
        if self.stale { term.next() } else { term }
    }
}

impl Locations {
    pub(crate) fn learn(&mut self, told: [Told; 2]) {
        match told {
            [Told::TakeOver(a), Told::TakeOver(b)] => self.take_overs.push([*a, *b]),
            [Told::Word(a), Told::Word(b)] => self.words.push([a, b]),
            [Told::Verification(a), Told::Verification(b)] => self.verifications.push([*a, *b]),
            [Told::Budget(a), Told::Budget(b)] => self.budget = Some([a, b]),
            different => panic!("{different:?}"),
        }
    }

    pub(crate) fn take_overs(&self) -> impl Iterator<Item = Uuid> {
        self.take_overs.iter().map(|[one, _]| one.id)
    }

    /// None: there is nothing yet that it could be about.
    pub(crate) fn draw(
        &self,
        rng: &mut StdRng,
        row: &PipelineRow,
        commit: Option<CommitRef>,
        (selector, request_id, lease): (PipelineSelector, Option<RequestId>, Duration),
    ) -> Option<LocationOperation> {
        let generation = if rng.random_bool(0.9) { row.generation } else { row.generation.next() };
        Some(match rng.random_range(0..44) {
            0..=4 => {
                let standby = row.claim.as_str() == "standby";
                let purpose = match rng.random_range(0..4) {
                    0 => Purpose::Resync,
                    1 if !standby => Purpose::Activate,
                    _ if standby => Purpose::Activate,
                    _ => Purpose::TakeOver,
                };
                let chosen = match rng.random_range(0..6) {
                    0 => Some(Chosen::Step(Step::new(rng.random_range(1..5)).ok()?)),
                    1 => commit.map(|commit| Chosen::Checkpoint(commit.round)),
                    _ => None,
                };
                let pipeline = if rng.random_bool(0.9) { row.id.into() } else { selector };
                LocationOperation::AdmitTakeOver(AdmitTakeOver {
                    pipeline,
                    purpose,
                    chosen,
                    request_id,
                    seen: None,
                    retry: RetryPolicy::default(),
                })
            }
            5..=8 => LocationOperation::ClaimTakeOvers(lease),
            9 => LocationOperation::RenewTakeOver(nth(rng), lease),
            10..=22 => LocationOperation::ApplyTakeOver(nth(rng), numbers(rng)),
            23..=24 => LocationOperation::ClaimWords(lease),
            25..=26 => LocationOperation::SaveTelling(nth(rng), numbers(rng)),
            27..=28 => LocationOperation::Keep(Finding {
                pipeline: row.id,
                commit: commit?,
                scope: if rng.random_bool(0.7) { Scope::All } else { Scope::Structure },
                rolling: rng.random_bool(0.5),
                bytes: rng.random_range(0..100),
                problems: vec![Problem::new(Reason::Integrity, "a\0 file differs"); rng.random_range(0..3)],
                started_at: DateTime::from_timestamp(1_000_000_000, 999)?,
            }),
            29 => LocationOperation::OwedMarks(lease),
            30..=31 => {
                let problem = rng.random_bool(0.5).then(|| Problem::new(Reason::StoreDenied, "no\0"));
                LocationOperation::SettleMark(nth(rng), problem, lease)
            }
            32 => LocationOperation::ClaimBudget(if rng.random_bool(0.5) { "one" } else { "two" }, lease),
            33 => LocationOperation::SaveBudget(numbers(rng), lease),
            43 => LocationOperation::RenewBudget(if rng.random_bool(0.5) { "one" } else { "two" }, lease),
            34 => LocationOperation::Turn,
            35 if rng.random_bool(0.3) => LocationOperation::FenceOut(row.id, generation),
            36 if rng.random_bool(0.3) => LocationOperation::Note(row.id, generation, Difference::Behind),
            37 | 40 => {
                let last = row.last_commit.as_ref().map(|last| last.commit);
                LocationOperation::Note(
                    row.id,
                    generation,
                    Difference::Lost(last.filter(|_| rng.random_bool(0.9)).or(commit)?),
                )
            }
            41 => {
                let lost = row.lost.as_ref().map(|loss| loss.commit);
                LocationOperation::FoundAgain(row.id, generation, lost.or(commit)?)
            }
            42 => LocationOperation::AcceptLoss(AcceptLoss {
                pipeline: if rng.random_bool(0.9) { row.id.into() } else { selector },
                checkpoint: commit.filter(|_| rng.random_bool(0.2)).map(|commit| commit.round),
                cause: if rng.random_bool(0.8) { "no\0 versions" } else { "another" }.to_owned(),
                request_id,
            }),
            _ => LocationOperation::AskedUpkeep(row.id, request_id?),
        })
    }
}

/// What a side said, and what it has told with that.
pub(crate) type Answer = (String, Vec<Told>);

fn said<T: Debug, E: Debug>(outcome: Result<T, E>) -> Answer {
    (format!("{outcome:#?}"), Vec::new())
}

fn all<T: Debug + Clone>(values: Vec<T>, told: impl Fn(T) -> Told) -> Answer {
    (format!("{:#?}", Ok::<_, ()>(&values)), values.into_iter().map(told).collect())
}

/// One operation on one side. `open`: what this side said that the open rounds are.
pub(crate) async fn run(
    store: &Store,
    operation: &LocationOperation,
    (known, side): (&Locations, usize),
    open: &BTreeMap<PipelineId, Round>,
    now: DateTime<Utc>,
) -> Answer {
    let nothing = || ("nothing to do it with".to_owned(), Vec::new());
    match operation {
        LocationOperation::AdmitTakeOver(ask) => said(store.admit_take_over(ask.clone(), &alice()).await),
        LocationOperation::ClaimTakeOvers(lease) => {
            let mut claimed = store.claim_take_overs("one", *lease).await.unwrap();
            claimed.sort_by_key(|one| one.id);
            all(claimed, |one| Told::TakeOver(Box::new(one)))
        }
        LocationOperation::RenewTakeOver(nth, lease) => {
            let Some(before) = nth.of(&known.take_overs, side) else { return nothing() };
            said(store.renew_take_over(before.id, nth.term(before.term), *lease).await)
        }
        LocationOperation::ApplyTakeOver(nth, numbers) => {
            let Some(before) = nth.of(&known.take_overs, side) else { return nothing() };
            let before = TakeOver { term: nth.term(before.term), ..before.clone() };
            let row = store.get_pipeline(&before.pipeline.into()).await.ok();
            let (decision, adoption) = decided(&before, *numbers, open.get(&before.pipeline), row.as_ref(), now);
            if !decision.changes(&before) {
                return nothing();
            }
            let applied = store.apply_take_over(&before, &decision, adoption, &alice()).await;
            let told = match &applied {
                Ok(TakeOverApplied::Stored(next)) => vec![Told::TakeOver(Box::new(next.clone()))],
                _ => Vec::new(),
            };
            (format!("{applied:#?}"), told)
        }
        LocationOperation::ClaimWords(lease) => {
            let mut claimed = store.claim_words(*lease).await.unwrap();
            claimed.sort_by_key(|one| one.pipeline);
            all(claimed, Told::Word)
        }
        LocationOperation::SaveTelling(nth, numbers) => {
            let Some(before) = nth.of(&known.words, side) else { return nothing() };
            let before = Telling { term: nth.term(before.term), ..before.clone() };
            let away = || Problem::new(Reason::AgentUnreachable, "it is\0 away");
            let answer = |host_idx: u32| if numbers.sort % 3 == host_idx % 3 { Err(away()) } else { Ok(()) };
            let answers = before.owed().map(|host_idx| (host_idx, answer(host_idx))).collect();
            // Its time has come on both sides, or on neither: their clocks are not the same.
            let at = DateTime::from_timestamp(if numbers.step < 3 { 1_000_000_000 } else { 9_000_000_000 }, 0);
            said(store.save_telling(&before, before.after(&answers, at.unwrap(), 500)).await)
        }
        LocationOperation::Keep(finding) => {
            let kept = store.keep_verification(finding.clone(), &alice()).await;
            let told = kept.iter().map(|kept| Told::Verification(Box::new(kept.clone()))).collect();
            (format!("{kept:#?}"), told)
        }
        LocationOperation::OwedMarks(lease) => {
            let mut owed = store.owed_marks(*lease).await.unwrap();
            owed.sort_by_key(|one| one.id);
            all(owed, |one| Told::Verification(Box::new(one)))
        }
        LocationOperation::SettleMark(nth, problem, after) => {
            let Some(of) = nth.of(&known.verifications, side) else { return nothing() };
            let settled = store.settle_mark(of, problem.clone(), *after, &replica()).await;
            let looked = VerificationsOf {
                pipeline: of.finding.pipeline,
                checkpoints: vec![of.finding.commit.round],
                scope: nth.stale.then_some(Scope::All),
            };
            said(Ok::<_, ()>((settled, store.get_verification(of.id).await, store.verifications(looked).await)))
        }
        LocationOperation::ClaimBudget(who, lease) => {
            let claimed = store.claim_verify_budget(who, *lease).await.unwrap();
            (format!("{claimed:#?}"), claimed.into_iter().map(Told::Budget).collect())
        }
        LocationOperation::RenewBudget(who, lease) => said(store.renew_verify_budget(who, *lease).await),
        LocationOperation::SaveBudget(numbers, lease) => {
            let Some(before) = &known.budget else { return nothing() };
            let budget = VerifyBudget {
                allowance: (numbers.sort > 3).then_some(Allowance { left: -7, at: DateTime::UNIX_EPOCH }),
                under_way: (numbers.sort > 9).then(|| UnderWay {
                    pipeline: PipelineId::new(numbers.id),
                    commit: commit_of(*numbers),
                    position: Position::default(),
                    bytes: 9,
                    problems: vec![Problem::new(Reason::Integrity, "a\0 file differs")],
                    started_at: DateTime::UNIX_EPOCH,
                }),
                version: before[side].version - u64::from(numbers.sort == 1),
            };
            let saved = store.save_verify_budget(&budget, *lease).await.unwrap();
            (format!("{saved:#?}"), saved.into_iter().map(Told::Budget).collect())
        }
        LocationOperation::Turn => said(store.verify_turn().await),
        LocationOperation::FenceOut(pipeline, generation) => {
            let problem = Problem::new(Reason::Fenced, "somebody\0 else owns it").with("owner", "x\0y");
            said(store.fence_out(*pipeline, *generation, problem, &replica()).await)
        }
        LocationOperation::Note(pipeline, generation, difference) => {
            let problem = Problem::new(Reason::DatabaseBehind, "it\0 differs");
            said(store.note_difference((*pipeline, *generation), *difference, problem, &replica()).await)
        }
        LocationOperation::FoundAgain(pipeline, generation, commit) => {
            said(store.found_again((*pipeline, *generation), *commit, &replica()).await)
        }
        LocationOperation::AcceptLoss(ask) => {
            let accepted = store.accept_loss(ask.clone(), &alice()).await;
            let known = match &accepted {
                Ok(accepted) => store.accepted_losses(accepted.pipeline).await.unwrap(),
                Err(_) => Vec::new(),
            };
            said(Ok::<_, ()>((accepted, known)))
        }
        LocationOperation::AskedUpkeep(pipeline, request_id) => said(store.asked_upkeep(*pipeline, *request_id).await),
    }
}

fn commit_of(numbers: Numbers) -> CommitRef {
    CommitRef {
        generation: Generation::FIRST,
        seq: Seq::new(numbers.step).unwrap(),
        round: RoundId::new(numbers.id),
        digest: Digest::of(b"commit"),
    }
}

/// What may happen to it next, and what belongs into the transaction if that adopts.
fn decided(
    before: &TakeOver,
    numbers: Numbers,
    open: Option<&Round>,
    row: Option<&PipelineRow>,
    now: DateTime<Utc>,
) -> (takeover::Decision, Option<Adoption>) {
    let generation = before.generation().unwrap_or(Generation::FIRST);
    let fence = |generation: Generation, of: u128| Fence {
        generation,
        pipeline: before.pipeline,
        pipeline_name: before.pipeline_name.clone(),
        writer: before.writer.clone(),
        take_over: Uuid::from_u128(of),
        created_at: DateTime::UNIX_EPOCH,
        released: false,
    };
    let commit = commit_of(numbers);
    let event = match (numbers.sort, before.phase) {
        (0, _) => Event::CancelRequested(CancelRequest { by: "bob".to_owned(), cause: "\0".to_owned() }),
        (1, _) => Event::Refused(Problem::new(Reason::Fenced, "a newer\0 owner")),
        (2, _) => Event::Unknown { problem: Problem::new(Reason::StoreUnavailable, "no\0 answer"), jitter: 500 },
        (_, Phase::Warming) => Event::Warmed((numbers.step > 1).then_some(commit)),
        (_, Phase::Preparing) => Event::Surveyed {
            highest: (before.holds > Generation::NONE || numbers.step > 1)
                .then(|| fence(before.holds.max(Generation::FIRST), 7)),
        },
        (3, Phase::Fencing) => Event::Fenced(FenceKnown::Lost(Box::new(fence(generation, 8)))),
        (_, Phase::Fencing) => Event::Fenced(FenceKnown::Mine),
        (_, Phase::Basing) => Event::BaseStands(FenceBase {
            generation,
            newest: (numbers.step > 2).then_some(commit),
            tombstones: Vec::new(),
        }),
        (_, Phase::Pulling) => Event::Pulled(takeover::to_pull(before).unwrap_or(commit)),
        _ => Event::Adopted,
    };
    let decision = takeover::decide(before, &event, now);
    let adopts = event == Event::Adopted && before.phase == Phase::Adopting;
    let adoption = adopts.then(|| Adoption {
        round: open.and_then(|round| {
            let base = FenceBase { generation, newest: before.base.as_ref()?.newest, tombstones: Vec::new() };
            match takeover::settle(round, &base, KeyRead::Absent, now) {
                Settlement::Settled(settled) => Some((round.clone(), *settled)),
                _ => None,
            }
        }),
        last: takeover::exact_base(before).map(|commit| LastCommit {
            commit,
            step: Step::new(numbers.step).unwrap(),
            fingerprint: Some(FINGERPRINT),
            local_checkpoints: vec![local(numbers.step, 0)],
            at: DateTime::UNIX_EPOCH,
        }),
        learnt: row.filter(|_| numbers.sort > 12).map(|row| learnt(row, numbers)).into_iter().collect(),
    });
    (decision, adoption)
}

/// A commit of the pipeline itself, or of another one, that the database may not know.
fn learnt(row: &PipelineRow, numbers: Numbers) -> Learnt {
    let commit = commit_of(numbers);
    let own = numbers.sort > 14;
    let part = |host_idx: u32| part_of(commit.round, numbers.step, host_idx);
    let document = CommitDocument {
        pipeline: if own { row.id } else { PipelineId::new(numbers.id) },
        pipeline_name: row.spec.name.clone(),
        generation: commit.generation,
        seq: commit.seq,
        parent: None,
        base: None,
        round: commit.round,
        round_no: RoundNo::new(numbers.step * 3).unwrap(),
        step: Step::new(numbers.step).unwrap(),
        fingerprint: None,
        layout: row.spec.layout,
        created_at: DateTime::UNIX_EPOCH,
        parts: (0..row.spec.layout.len()).map(part).collect(),
        writer: "test".to_owned(),
        labels: BTreeMap::new(),
        partitions: Vec::new(),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
    };
    let digest = if numbers.sort > 16 { Digest::of(&document.encode()) } else { commit.digest };
    Learnt { commit: CommitRef { digest, ..commit }, document }
}
