//! What each effect of a round does, as the coordinator's dispatcher does it. Its outcome is an event.

use std::{cell::RefCell, rc::Rc};

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    id::{Attempt, Incarnation},
    order::OrderHeader,
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
    round::{Effect, Event, HostReport, Kind, Participant, Phase, PullState, PushState, Round},
    selection::LocalCheckpoint,
};

use super::{
    agent::{self, Answer, Install, PullOrder, PushOrder, State, Status},
    audit, parts, plan, reader, settle,
    timeline::{Instant, MILLISECOND, SECOND},
    world::Sim,
};

/// A host that gives no answer for so long is not there.
const UNREACHABLE: u64 = 30 * SECOND;

/// One round while one replica drives it.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) site: usize,
    base: RefCell<Base>,
}

#[derive(Clone, Debug)]
enum Base {
    NotRead,
    Use(CommitRef, Rc<CommitDocument>),
    Without,
}

impl Drive {
    pub(super) fn new(site: usize) -> Rc<Self> {
        Rc::new(Self { site, base: RefCell::new(Base::NotRead) })
    }

    pub(super) async fn base(
        &self,
        sim: &Sim,
        push: &PushState,
    ) -> Result<Option<(CommitRef, Rc<CommitDocument>)>, Problem> {
        let known = self.base.borrow().clone();
        let base = match (known, push.base) {
            (Base::Use(commit, document), _) => return Ok(Some((commit, document))),
            (Base::Without, _) => return Ok(None),
            (Base::NotRead, None) => Base::Without,
            (Base::NotRead, Some(commit)) => match reader::commit(sim, &commit).await {
                Ok(Some((commit, document))) => Base::Use(commit, Rc::from(document)),
                Ok(None) => Base::Without,
                Err(problem) if problem.reason == Reason::CheckpointDamaged => Base::Without,
                Err(problem) => return Err(problem),
            },
        };
        *self.base.borrow_mut() = base.clone();
        Ok(match base {
            Base::Use(commit, document) => Some((commit, document)),
            Base::NotRead | Base::Without => None,
        })
    }
}

pub(super) async fn run(sim: &Sim, drive: &Drive, round: &Round, effect: &Effect) -> Option<Event> {
    match (effect, &round.kind) {
        (Effect::Plan, Kind::Push(push)) => {
            Some(plan::push(sim, drive, round, push).await.unwrap_or_else(Event::Refused))
        }
        (Effect::Resolve, Kind::Pull(pull)) => {
            Some(plan::pull(sim, drive, round, pull).await.unwrap_or_else(Event::Refused))
        }
        (Effect::Transfer { host_idx, attempt }, kind) => {
            let outcome = match kind {
                Kind::Push(push) => transfer_push(sim, drive, round, push, *host_idx).await,
                Kind::Pull(pull) => transfer_pull(sim, drive, round, pull, *host_idx).await,
            };
            Some(ended(sim, *host_idx, *attempt, outcome))
        }
        (Effect::Install { host_idx, attempt }, Kind::Pull(pull)) => {
            Some(ended(sim, *host_idx, *attempt, install(sim, drive, round, pull, *host_idx).await))
        }
        (Effect::Describe { host_idx, attempt }, _) => Some(match present(sim, drive, *host_idx, UNREACHABLE).await {
            Ok(incarnation) => Event::HostReady { host_idx: *host_idx, attempt: *attempt, incarnation },
            Err(problem) => Event::HostFailed { host_idx: *host_idx, attempt: *attempt, problem, jitter: sim.jitter() },
        }),
        (Effect::CheckParts, Kind::Push(push)) => parts::check(sim, drive, round, push).await,
        (Effect::SettleCommit, _) => settle::run(sim, round, settle::Which::Commit).await,
        (Effect::SettleAbort, _) => settle::run(sim, round, settle::Which::Abort).await,
        (Effect::Confirm, _) => {
            audit::confirming(sim, round);
            let mut incarnations = Vec::new();
            for host_idx in 0..round.layout.len() {
                incarnations.push(present(sim, drive, host_idx, 5 * SECOND).await.ok());
            }
            Some(Event::Confirmed { incarnations, jitter: sim.jitter() })
        }
        _ => None,
    }
}

fn ended(sim: &Sim, host_idx: u32, attempt: Attempt, outcome: Result<(Incarnation, HostReport), Problem>) -> Event {
    match outcome {
        Ok((incarnation, report)) => Event::HostDone { host_idx, attempt, incarnation, report },
        Err(problem) => Event::HostFailed { host_idx, attempt, problem, jitter: sim.jitter() },
    }
}

fn unreachable(host_idx: u32) -> Problem {
    Problem::new(Reason::AgentUnreachable, format!("host {host_idx} gives no answer"))
}

/// A host's present process and its local checkpoints.
pub(super) type Host = (Incarnation, Vec<LocalCheckpoint>);

pub(super) async fn ask_all(sim: &Sim, drive: &Drive, round: &Round) -> Result<Vec<Host>, Problem> {
    let mut found = Vec::new();
    for host_idx in 0..round.layout.len() {
        found.push(ask(sim, drive, host_idx, UNREACHABLE).await?);
    }
    Ok(found)
}

async fn ask(sim: &Sim, drive: &Drive, host_idx: u32, patience: u64) -> Result<Host, Problem> {
    let until = sim.now() + patience;
    loop {
        let listed = agent::call(sim, drive.site, host_idx, |sim, agent| {
            Ok((agent.incarnation, agent.list(&sim.contents.borrow())))
        });
        match listed.await {
            Answer::Given(host) => return Ok(host),
            Answer::Refused(problem) => return Err(problem),
            Answer::Unknown if sim.now() >= until => return Err(unreachable(host_idx)),
            Answer::Unknown => sim.sleep(sim.random(200 * MILLISECOND, SECOND)).await,
        }
    }
}

async fn present(sim: &Sim, drive: &Drive, host_idx: u32, patience: u64) -> Result<Incarnation, Problem> {
    ask(sim, drive, host_idx, patience).await.map(|(incarnation, _)| incarnation)
}

fn participant(round: &Round, host_idx: u32) -> Result<&Participant, Problem> {
    let found = round.participants.get(host_idx as usize);
    found.ok_or_else(|| Problem::new(Reason::DatabaseBehind, format!("no participant {host_idx}")))
}

fn header(round: &Round, host_idx: u32) -> Result<OrderHeader, Problem> {
    let participant = participant(round, host_idx)?;
    let incarnation = participant
        .incarnation
        .ok_or_else(|| Problem::new(Reason::DatabaseBehind, "an order without an incarnation"))?;
    Ok(OrderHeader {
        pipeline: round.pipeline,
        pipeline_name: round.pipeline_name.clone(),
        slot: round.layout.slot(host_idx)?,
        incarnation,
        generation: round.generation,
        round_no: round.round_no,
        term: round.term,
        round: round.id,
        attempt: participant.attempt,
        own_location: round.location.clone(),
    })
}

async fn transfer_push(
    sim: &Sim,
    drive: &Drive,
    round: &Round,
    push: &PushState,
    host_idx: u32,
) -> Result<(Incarnation, HostReport), Problem> {
    let base = drive.base(sim, push).await?.map(|(commit, document)| (commit, document.parts.clone()));
    let header = header(round, host_idx)?;
    let local_checkpoint = participant(round, host_idx)?.local_checkpoint;
    let local_checkpoint =
        local_checkpoint.ok_or_else(|| Problem::new(Reason::DatabaseBehind, "an order without a local checkpoint"))?;
    let order = PushOrder { header: header.clone(), local_checkpoint, base };
    let based = order.base.is_some();
    let done = follow(sim, drive, &header, move |sim, agent| agent.push(sim, &order)).await;
    match done {
        Ok(State::Pushed(pushed)) => {
            let report = HostReport::Part { part: pushed.part, step: pushed.step, fingerprint: pushed.fingerprint };
            Ok((header.incarnation, report))
        }
        Ok(other) => Err(Problem::new(Reason::Integrity, format!("a push came to {other:?}"))),
        Err(problem) if based && problem.reason == Reason::CheckpointDamaged => {
            *drive.base.borrow_mut() = Base::Without;
            Err(problem.retry(Retryable::Yes))
        }
        Err(problem) => Err(problem),
    }
}

async fn transfer_pull(
    sim: &Sim,
    drive: &Drive,
    round: &Round,
    pull: &PullState,
    host_idx: u32,
) -> Result<(Incarnation, HostReport), Problem> {
    let part = pull.resolved.iter().flat_map(|resolved| &resolved.parts).find(|part| part.host_idx == host_idx);
    let part = part.ok_or_else(|| Problem::new(Reason::DatabaseBehind, "a pull without a part"))?.clone();
    let header = header(round, host_idx)?;
    let order = PullOrder { header: header.clone(), part };
    match follow(sim, drive, &header, move |sim, agent| agent.pull(sim, &order)).await? {
        State::Staged(_) | State::Installed(_) => Ok((header.incarnation, HostReport::Staged)),
        other => Err(Problem::new(Reason::Integrity, format!("a pull came to {other:?}"))),
    }
}

/// For how long a host has given no answer.
struct Silence(Instant);

impl Silence {
    /// None: nothing to go by yet.
    fn check(&mut self, sim: &Sim, header: &OrderHeader, answer: Answer<Status>) -> Result<Option<State>, Problem> {
        let restarted = || Problem::new(Reason::AgentRestarted, format!("{} restarted", header.slot));
        match answer {
            Answer::Unknown if sim.now() >= self.0 + UNREACHABLE => Err(unreachable(header.slot.idx())),
            Answer::Unknown => Ok(None),
            Answer::Refused(problem) => {
                self.0 = sim.now();
                match problem.reason {
                    Reason::TransferInProgress => Ok(None),
                    Reason::IncarnationMismatch => Err(restarted()),
                    _ => Err(problem),
                }
            }
            Answer::Given(status) => {
                self.0 = sim.now();
                if status.incarnation == header.incarnation || planted::is(Bug::IncarnationNotCompared) {
                    Ok(Some(status.state))
                } else {
                    Err(restarted())
                }
            }
        }
    }
}

async fn follow(
    sim: &Sim,
    drive: &Drive,
    header: &OrderHeader,
    order: impl Fn(&Sim, &mut agent::Agent) -> Result<Status, Problem> + 'static,
) -> Result<State, Problem> {
    let (order, host_idx) = (Rc::new(order), header.slot.idx());
    let mut silence = Silence(sim.now());
    let mut accepted = false;
    loop {
        let answer = if accepted {
            let header = header.clone();
            agent::call(sim, drive.site, host_idx, move |sim, agent| agent.status(sim, &header)).await
        } else {
            let order = Rc::clone(&order);
            agent::call(sim, drive.site, host_idx, move |sim, agent| order(sim, agent)).await
        };
        match silence.check(sim, header, answer)? {
            None => {}
            Some(State::NotRequested) => accepted = false,
            Some(State::InProgress) => accepted = true,
            Some(State::Failed(problem)) => return Err(problem),
            Some(done) => return Ok(done),
        }
        sim.sleep(sim.random(200 * MILLISECOND, SECOND)).await;
    }
}

async fn install(
    sim: &Sim,
    drive: &Drive,
    round: &Round,
    pull: &PullState,
    host_idx: u32,
) -> Result<(Incarnation, HostReport), Problem> {
    let header = header(round, host_idx)?;
    let step = pull.resolved.as_ref().and_then(|resolved| resolved.step);
    let what = Install { checkpoint: participant(round, host_idx)?.local_checkpoint.zip(step) };
    let expected = what.checkpoint.map(|(id, _)| id);
    let mut silence = Silence(sim.now());
    loop {
        let ordered = header.clone();
        let answer = agent::call(sim, drive.site, host_idx, move |sim, agent| agent.install(sim, &ordered, what)).await;
        match silence.check(sim, &header, answer)? {
            Some(State::Installed(id)) if id == expected => return Ok((header.incarnation, HostReport::Installed)),
            Some(State::Failed(problem)) => return Err(problem),
            _ => sim.sleep(sim.random(200 * MILLISECOND, SECOND)).await,
        }
    }
}

/// Best effort: what still runs for a round that came to nothing is stopped.
pub(super) async fn farewell(sim: &Sim, drive: &Drive, round: &Round) {
    if !matches!(round.phase, Phase::Failed | Phase::Cancelled) {
        return;
    }
    for participant in &round.participants {
        let Ok(header) = header(round, participant.host_idx) else { continue };
        agent::call(sim, drive.site, participant.host_idx, move |sim, agent| agent.cancel(sim, &header)).await;
    }
}
