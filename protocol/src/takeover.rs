//! Taking a location over as a pure state machine, in the style of [`crate::round`]: `decide(take_over, event) -> Decision`, and what shall happen is a
//! function of the stored value alone ([`effects`]). Each of its PUTs can be unknown, so its bytes are stored before they are sent.
//!
//! ```text
//! [Warming ->] Preparing -> Fencing -> [Basing ->] Adopting -> [Pulling ->] Done
//!      \            \-> Failed, Cancelled   \                      \-> Failed, because a newer fence stands, or what is to be pulled is damaged or gone
//!       \-> Failed, Cancelled               \-> Failed, only because another fence stands
//! ```
//!
//! Steps of "Take-over" in protocol.md: `Preparing` is 1 (base of the highest fence, then the exact bytes of the next fence), `Fencing` is 2 (create-only
//! PUT of these bytes until known; "exists" is judged by comparing bytes, [`judge_fence`]), `Basing` is 3 ([`crate::finish`], which is 4 as well). `Adopting` is the transaction
//! in which the pipeline's row takes the generation and the base settles every open round ([`settle`]). `Warming` and `Pulling` exist for [`Purpose::Activate`] only:
//! a warm pull before the fence, and after the base a pull of exactly what it names. The base is always the newest commit of the generation before (F1), but an
//! operator may choose to go on from an older one ([`Chosen`]): then that is pulled, before the fence and after the base, and the base stays what it is.
//!
//! It can be cancelled before its first PUT only: from `Fencing` on only forward, since its fence may stand whatever is known.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    commit::CommitRef,
    fence::{Fence, FenceBase, Writer},
    id::{Generation, PipelineId, PipelineName, RoundId, Step, Term},
    location::Location,
    planted::{self, Bug},
    problem::{Problem, Reason},
    round::{CancelRequest, RetryPolicy, Transition},
    spec::PullSelector,
};

mod adopt;
mod effect;
mod event;
mod phase;
mod warm;

pub use adopt::{Settlement, learn_commit, settle};
pub use effect::{Effect, effects, next_wake};
pub use event::{Event, FenceKnown, PutAnswer, judge_fence};
pub use phase::Phase;
pub use warm::{NotFound, Warmth, is_damage};

/// What somebody wants with a location.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A new pipeline's: the take-over of nothing. Refused with `LOCATION_OWNED` where anybody owns it.
    Claim,
    /// Somebody said that the pipeline shall own it, whoever does now.
    TakeOver,
    /// A standby becomes the writer.
    Activate,
    /// The database has lost rows, or may have: its own location again. Refused with `LOCATION_OWNED` where another pipeline owns it.
    Resync,
    /// The owner gives it up: its last fence says so.
    Release,
}

impl Purpose {
    /// As rows and audit events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::TakeOver => "take_over",
            Self::Activate => "activate",
            Self::Resync => "resync",
            Self::Release => "release",
        }
    }

    /// Back from [`Purpose::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Claim, Self::TakeOver, Self::Activate, Self::Resync, Self::Release]
            .into_iter()
            .find(|purpose| purpose.as_str() == text)
    }

    /// Where a take-over begins.
    pub const fn first_phase(self) -> Phase {
        match self {
            Self::Activate => Phase::Warming,
            Self::Claim | Self::TakeOver | Self::Resync | Self::Release => Phase::Preparing,
        }
    }
}

/// Activate: the checkpoint that an operator wants to go on from, instead of the newest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chosen {
    /// The newest commit of this step.
    Step(Step),
    /// The one that this push round made.
    Checkpoint(RoundId),
}

impl Chosen {
    /// What the warm pull asks for.
    pub const fn selector(self) -> PullSelector {
        match self {
            Self::Step(step) => PullSelector::Step(step),
            Self::Checkpoint(round) => PullSelector::Checkpoint(round),
        }
    }
}

/// A fence whose bytes are stored.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// It will start this one.
    pub generation: Generation,
    /// Exact bytes. UTF-8, since the document is JSON.
    pub bytes: String,
}

/// One take-over of one location, as a row holds it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TakeOver {
    /// Stands in the fence, so that no two take-overs ever write the same bytes.
    pub id: Uuid,
    /// Who takes over.
    pub pipeline: PipelineId,
    /// Its name at that time.
    pub pipeline_name: PipelineName,
    /// Who writes for it.
    pub writer: Writer,
    /// What is taken over.
    pub location: Location,
    /// What for.
    pub purpose: Purpose,
    /// The generation of that location which the pipeline's row holds; 0: none.
    pub holds: Generation,
    /// Rises by one with each stored change.
    pub version: u64,
    /// Of the replica that drives it.
    pub term: Term,
    /// Where it stands.
    pub phase: Phase,
    /// Activate: what to go on from; none: exactly the base.
    pub chosen: Option<Chosen>,
    /// Activate: what the warm pull brought; none: nothing was there.
    pub warm: Option<CommitRef>,
    /// From `Fencing` on.
    pub fence: Option<Prepared>,
    /// From `Adopting` on: the base that stands, whoever wrote it; none for generation 1.
    pub base: Option<FenceBase>,
    /// Why it failed; while active, what went wrong last.
    pub problem: Option<Problem>,
    /// Asked for in time.
    pub cancel: Option<CancelRequest>,
    /// Tries of the present phase without a known outcome.
    pub tries: u32,
    /// Not before this.
    pub retry_at: Option<DateTime<Utc>>,
    /// How tries follow each other.
    pub retry: RetryPolicy,
}

impl TakeOver {
    /// The generation it starts, once its fence is prepared.
    pub fn generation(&self) -> Option<Generation> {
        self.fence.as_ref().map(|fence| fence.generation)
    }

    /// The fence that is to be put after `highest`.
    fn next_fence(&self, highest: Option<&Fence>, now: DateTime<Utc>) -> Fence {
        Fence {
            generation: highest.map_or(Generation::FIRST, |highest| highest.generation.next()),
            pipeline: self.pipeline,
            pipeline_name: self.pipeline_name.clone(),
            writer: self.writer.clone(),
            take_over: self.id,
            created_at: now,
            released: self.purpose == Purpose::Release,
        }
    }
}

/// The outcome of [`decide`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The take-over afterwards; its version is unchanged, the store raises it.
    pub next: TakeOver,
    /// For the audit trail.
    pub transitions: Vec<Transition>,
    /// Another fence stands above the generation that the pipeline's row holds: the row is fenced in the same transaction (F4).
    pub fence_pipeline: bool,
}

impl Decision {
    /// Whether anything must be stored.
    pub fn changes(&self, before: &TakeOver) -> bool {
        self.next != *before
    }
}

/// Applies one event. `now` is the database's clock. An event that doesn't fit the phase changes nothing.
pub fn decide(take_over: &TakeOver, event: &Event, now: DateTime<Utc>) -> Decision {
    let mut work = Decision { next: take_over.clone(), transitions: Vec::new(), fence_pipeline: false };
    match (take_over.phase, event) {
        // Who chose a checkpoint gets that one or none.
        (Phase::Warming, Event::Warmed(None)) if take_over.chosen.is_some() => {
            let problem = nothing_chosen(take_over);
            work.next.problem = Some(problem.clone());
            work.enter(Phase::Failed, problem.to_string());
        }
        (Phase::Warming, Event::Warmed(commit)) => {
            work.next.warm = *commit;
            let what =
                commit.map_or_else(|| "nothing is there".to_owned(), |c| format!("commit {}-{}", c.generation, c.seq));
            work.enter(Phase::Preparing, format!("warm pull done: {what}"));
        }
        (Phase::Preparing, Event::Surveyed { highest }) => match refusal(take_over, highest.as_ref()) {
            Some(problem) => {
                work.next.problem = Some(problem.clone());
                work.enter(Phase::Failed, problem.to_string());
            }
            None => {
                let fence = work.next.next_fence(highest.as_ref(), now);
                let generation = fence.generation;
                // Bytes that are no UTF-8 can't come from JSON.
                let bytes = String::from_utf8(fence.encode()).unwrap_or_default();
                work.next.fence = Some(Prepared { generation, bytes });
                work.enter(Phase::Fencing, format!("fence {generation} is stored"));
            }
        },
        (Phase::Warming | Phase::Preparing, Event::Refused(problem)) => {
            work.next.problem = Some(problem.clone());
            work.enter(Phase::Failed, problem.to_string());
        }
        (Phase::Warming | Phase::Preparing, Event::CancelRequested(request)) => {
            work.next.cancel = Some(request.clone());
            work.next.problem = Some(cancelled(take_over, request));
            work.enter(Phase::Cancelled, format!("cancelled by {}: {}", request.by, request.cause));
        }
        (Phase::Fencing, Event::Fenced(FenceKnown::Mine)) => {
            let generation = take_over.generation().unwrap_or(Generation::FIRST);
            let next = if generation > Generation::FIRST { Phase::Basing } else { Phase::Adopting };
            work.enter(next, format!("fence {generation} stands"));
        }
        (Phase::Fencing, Event::Fenced(FenceKnown::Lost(other))) => {
            let problem = lost(take_over, other);
            work.fence_pipeline = take_over.holds > Generation::NONE;
            work.next.problem = Some(problem.clone());
            work.enter(Phase::Failed, problem.to_string());
        }
        (Phase::Basing, Event::BaseStands(base)) if Some(base.generation) == take_over.generation() => {
            let newest = base.newest.map_or_else(|| "none".to_owned(), |c| format!("{}-{}", c.generation, c.seq));
            work.next.base = Some(base.clone());
            work.enter(
                Phase::Adopting,
                format!("base {} stands; the last commit it counts: {newest}", base.generation),
            );
        }
        (Phase::Adopting, Event::Adopted) => {
            let pull = take_over.purpose == Purpose::Activate && to_pull(take_over).is_some();
            let generation = take_over.generation().unwrap_or(Generation::FIRST);
            work.enter(
                if pull { Phase::Pulling } else { Phase::Done },
                format!("the pipeline's row holds generation {generation}"),
            );
        }
        (Phase::Pulling, Event::Pulled(commit)) if to_pull(take_over) == Some(*commit) => {
            work.enter(Phase::Done, format!("every host has commit {}-{}", commit.generation, commit.seq));
        }
        (Phase::Pulling, Event::Refused(problem)) if ends_pulling(problem.reason) => {
            work.next.problem = Some(problem.clone());
            work.enter(Phase::Failed, problem.to_string());
        }
        (phase, Event::Unknown { problem, jitter }) if !phase.is_terminal() => {
            let tries = take_over.tries.saturating_add(1);
            work.next.tries = tries;
            work.next.retry_at = Some(crate::round::later(now, take_over.retry.delay(tries, *jitter)));
            work.next.problem = Some(problem.clone());
        }
        _ => {}
    }
    work
}

impl Decision {
    fn enter(&mut self, phase: Phase, cause: String) {
        let from = self.next.phase.as_str();
        self.next.phase = phase;
        self.next.tries = 0;
        self.next.retry_at = None;
        if !matches!(phase, Phase::Failed | Phase::Cancelled) {
            self.next.problem = None;
        }
        self.transitions.push(Transition { host_idx: None, from, to: phase.as_str(), cause });
    }
}

/// The newest commit that counts from here: what the base names.
pub fn exact_base(take_over: &TakeOver) -> Option<CommitRef> {
    take_over.base.as_ref().and_then(|base| base.newest)
}

/// What an activated pipeline pulls: exactly what its base names, unless an operator chose another one; the warm pull has found out which that is.
pub fn to_pull(take_over: &TakeOver) -> Option<CommitRef> {
    match take_over.chosen {
        None => exact_base(take_over),
        Some(_) => take_over.warm,
    }
}

/// What no further try of the last pull can change: somebody took the location over once more, so this generation writes nothing whatever is pulled; or objects of the
/// checkpoint are damaged or gone, so that somebody has to choose another one. The fence and its base stay what they are.
fn ends_pulling(reason: Reason) -> bool {
    matches!(reason, Reason::Fenced | Reason::CheckpointDamaged | Reason::CheckpointNotFound)
        && !planted::is(Bug::LostBaseIsPulledForEver)
}

/// Whether a standby that has adopted its generation owns the location from this change on: once its last pull is done. One that ends without it stays a standby that holds its
/// generation, and writes nothing in it; the next activation starts from the same commit.
pub fn hands_over(before: Phase, next: Phase) -> bool {
    let without_the_pull = planted::is(Bug::UnpulledActivationOwns) && next == Phase::Failed;
    before == Phase::Pulling && (next == Phase::Done || without_the_pull)
}

fn nothing_chosen(take_over: &TakeOver) -> Problem {
    let chosen = take_over.chosen.map_or_else(String::new, |chosen| chosen.selector().to_string());
    Problem::new(
        Reason::CheckpointNotFound,
        format!("pipeline {} has no checkpoint for {chosen} in {}", take_over.pipeline_name, take_over.location),
    )
    .with("pipeline", &take_over.pipeline_name)
    .with("location", &take_over.location)
    .with("selector", chosen)
}

/// Whether the location may be taken as things stand.
fn refusal(take_over: &TakeOver, highest: Option<&Fence>) -> Option<Problem> {
    let found = highest.map_or(Generation::NONE, |fence| fence.generation);
    if found < take_over.holds {
        return Some(
            Problem::new(
                Reason::LocationUnsuitable,
                format!(
                    "the highest fence of {} is {found}, pipeline {} holds generation {}: fences are missing",
                    take_over.location, take_over.pipeline_name, take_over.holds
                ),
            )
            .with("location", &take_over.location)
            .with("highest", found)
            .with("generation", take_over.holds),
        );
    }
    let same = highest.is_some_and(|fence| fence.pipeline == take_over.pipeline && !fence.released);
    let mine = highest.is_some_and(|fence| fence.pipeline == take_over.pipeline && fence.writer == take_over.writer);
    match (take_over.purpose, highest) {
        (Purpose::TakeOver | Purpose::Activate, _) | (Purpose::Claim, None) => None,
        (Purpose::Resync, Some(_)) if same => None,
        (Purpose::Claim, Some(fence)) if fence.released => None,
        (Purpose::Release, Some(fence)) if mine && fence.generation == take_over.holds && !fence.released => None,
        (Purpose::Claim | Purpose::Release | Purpose::Resync, Some(fence)) => Some(owned(take_over, fence)),
        (Purpose::Resync, None) => Some(
            Problem::new(
                Reason::NotOwner,
                format!("nobody ever owned {}, so there is nothing to resync from", take_over.location),
            )
            .with("location", &take_over.location),
        ),
        (Purpose::Release, None) => Some(
            Problem::new(Reason::NotOwner, format!("nobody owns {}, so it can't be released", take_over.location))
                .with("location", &take_over.location),
        ),
    }
}

fn owned(take_over: &TakeOver, owner: &Fence) -> Problem {
    crate::fence::location_owned(&take_over.location, take_over.pipeline, &take_over.pipeline_name, owner)
}

fn lost(take_over: &TakeOver, other: &Fence) -> Problem {
    let mut problem = owned(take_over, other);
    problem.message = format!("another take-over wrote fence {} first: {}", other.generation, problem.message);
    problem.with("take_over", other.take_over)
}

fn cancelled(take_over: &TakeOver, request: &CancelRequest) -> Problem {
    Problem::new(
        Reason::Cancelled,
        format!("the take-over of {} was cancelled by {}: {}", take_over.location, request.by, request.cause),
    )
    .with("location", &take_over.location)
    .with("by", &request.by)
    .with("cause", &request.cause)
}

/// A cancel that comes too late is refused before it is recorded.
pub fn check_cancellable(take_over: &TakeOver) -> Result<(), Problem> {
    if matches!(take_over.phase, Phase::Warming | Phase::Preparing) {
        return Ok(());
    }
    Err(Problem::new(
        Reason::RoundNotCancellable,
        format!("take-over {} is {}: it can be cancelled before its fence is put only", take_over.id, take_over.phase),
    )
    .with("take_over", take_over.id)
    .with("phase", take_over.phase))
}
