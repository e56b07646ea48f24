//! One attempt of one host: the order is sent until it is accepted, then followed by long polls until it is done or failed.
//!
//! Who answers, and for which attempt, is compared each time: a status of another incarnation speaks of another process (S8). An order is sent
//! again as often as needed, since the same (round, attempt) is answered with the status of the one that runs.

use std::time::Duration;

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::{Attempt, Incarnation},
    order::OrderHeader,
    problem::{Problem, Reason, Retryable},
    round::{Event, HostReport, Kind, Round},
};
use tokio::time::Instant;

use super::{
    DispatchOptions,
    drive::{Drive, jitter, order_again},
    orders, protect,
};
use crate::agents::{
    AgentAnswer, AgentPool, Counters, Deadline, Host, PullDone, PullOrder, PushDone, PushOrder, TransferState,
    TransferStatus,
};

/// Carries an attempt through.
pub(super) async fn run(drive: &Drive, round: &Round, host_idx: u32, attempt: Attempt) -> Event {
    let outcome = match &round.kind {
        Kind::Push(_) => push(drive, round, host_idx, attempt).await,
        Kind::Pull(_) => pull(drive, round, host_idx, attempt).await,
    };
    let Err(problem) = &outcome else { return event(host_idx, attempt, outcome) };
    match protect::retired_meanwhile(drive, round, problem).await {
        Ok(None) => event(host_idx, attempt, outcome),
        Ok(Some((commit, problem))) => {
            count(problem.reason.as_str());
            Event::SourceRetired { host_idx, attempt, commit, problem }
        }
        Err(unknown) => event(host_idx, attempt, Err(unknown)),
    }
}

/// What the round is told, and metrics with it.
pub(super) fn event(host_idx: u32, attempt: Attempt, outcome: Result<(Incarnation, HostReport), Problem>) -> Event {
    let label = outcome.as_ref().map_or_else(
        |problem| problem.reason.as_str(),
        |(_, report)| match report {
            HostReport::Part { .. } => "part",
            HostReport::Staged => "staged",
            HostReport::Installed => "installed",
        },
    );
    count(label);
    match outcome {
        Ok((incarnation, report)) => Event::HostDone { host_idx, attempt, incarnation, report },
        Err(problem) => Event::HostFailed { host_idx, attempt, problem, jitter: jitter() },
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("lockstep_participant_attempts_total", "outcome" => outcome).increment(1);
}

async fn push(
    drive: &Drive,
    round: &Round,
    host_idx: u32,
    attempt: Attempt,
) -> Result<(Incarnation, HostReport), Problem> {
    let base = drive.base(round).await?;
    let base = base.as_ref().map(|(commit, document)| (*commit, document.as_ref()));
    let (host, order) = orders::push(round, host_idx, base, (drive.transfer, deadline(drive, round)))?;
    let done = match follow(drive, &host, &order, attempt).await {
        Ok(done) => done,
        // A base that an agent can't read is left out of the next attempt, which sends everything and so heals it.
        Err(problem)
            if order.base.is_some()
                && matches!(problem.reason, Reason::CheckpointDamaged | Reason::ManifestInvalid) =>
        {
            drive.give_up_base(&problem).await;
            return Err(problem.retry(Retryable::Yes));
        }
        Err(problem) => return Err(problem),
    };
    // The part says it all.
    drive.progress.forget(host_idx);
    let report = HostReport::Part { part: done.part, step: done.step, fingerprint: done.fingerprint };
    Ok((order.header.incarnation, report))
}

async fn pull(
    drive: &Drive,
    round: &Round,
    host_idx: u32,
    attempt: Attempt,
) -> Result<(Incarnation, HostReport), Problem> {
    let (host, order) = orders::pull(round, host_idx, (drive.transfer, deadline(drive, round)))?;
    let done = follow(drive, &host, &order, attempt).await?;
    if done.local_checkpoint != Some(order.part.local_checkpoint) {
        let found = done.local_checkpoint.map_or_else(|| "none".to_owned(), |id| id.to_string());
        return Err(Problem::new(
            Reason::Integrity,
            format!("{} staged local checkpoint {found}, it was ordered {}", host.slot, order.part.local_checkpoint),
        )
        .with("expected", order.part.local_checkpoint)
        .with("found", found));
    }
    drive.progress.report(host_idx, attempt, &done.counters);
    Ok((order.header.incarnation, HostReport::Staged))
}

fn deadline(drive: &Drive, round: &Round) -> Deadline {
    Deadline { at: round.deadline, instant: drive.services.clock.instant_of(round.deadline) }
}

/// An order whose transfer can be followed.
trait Order: Sync {
    type Done: Send;
    fn header(&self) -> &OrderHeader;
    fn send(&self, agents: &AgentPool, host: &Host) -> impl Future<Output = Status<Self::Done>> + Send;
    fn status(
        &self,
        agents: &AgentPool,
        host: &Host,
        wait: Duration,
    ) -> impl Future<Output = Status<Self::Done>> + Send;
}

type Status<D> = AgentAnswer<TransferStatus<D>>;

impl Order for PushOrder {
    type Done = PushDone;

    fn header(&self) -> &OrderHeader {
        &self.header
    }

    async fn send(&self, agents: &AgentPool, host: &Host) -> Status<PushDone> {
        agents.push(host, self).await
    }

    async fn status(&self, agents: &AgentPool, host: &Host, wait: Duration) -> Status<PushDone> {
        agents.push_status(host, &self.header, wait).await
    }
}

impl Order for PullOrder {
    type Done = PullDone;

    fn header(&self) -> &OrderHeader {
        &self.header
    }

    async fn send(&self, agents: &AgentPool, host: &Host) -> Status<PullDone> {
        agents.pull(host, self).await
    }

    async fn status(&self, agents: &AgentPool, host: &Host, wait: Duration) -> Status<PullDone> {
        agents.pull_status(host, &self.header, wait).await
    }
}

async fn follow<O: Order>(drive: &Drive, host: &Host, order: &O, attempt: Attempt) -> Result<O::Done, Problem> {
    let (agents, options) = (&drive.services.agents, &drive.services.options);
    let mut silence = Silence::new(options);
    let mut stall = Stall::new(options.stall_after);
    let mut pause = order_again();
    let mut accepted = false;
    loop {
        let asked = Instant::now();
        let answer = if accepted {
            order.status(agents, host, poll_wait(options)).await
        } else {
            reached(Point::OrderBeforeSent);
            let answer = order.send(agents, host).await;
            reached(Point::OrderAnswered);
            answer
        };
        match silence.check(order.header(), answer)? {
            Heard::Nothing | Heard::NotYet => {
                pause.pause().await;
            }
            Heard::State(TransferState::NotRequested) => {
                // Something stopped it without a trace, or a newer order replaced it: ordering again tells which.
                accepted = false;
                pause.pause().await;
            }
            Heard::State(TransferState::InProgress(counters)) => {
                if accepted && asked.elapsed() < SHORTEST_POLL {
                    tokio::time::sleep(SHORTEST_POLL).await;
                }
                accepted = true;
                pause = order_again();
                drive.progress.report(host.slot.idx(), attempt, &counters);
                if let Some(problem) = stall.check(host, &counters) {
                    // Best effort: the next attempt replaces it anyhow.
                    let _ = agents.cancel(host, order.header(), Duration::from_secs(5)).await;
                    return Err(problem);
                }
            }
            Heard::State(TransferState::Done(done)) => {
                reached(Point::OrderReported);
                return Ok(done);
            }
            Heard::State(TransferState::Failed(problem)) => return Err(problem),
        }
        if !accepted {
            // Until it is accepted nothing can stall.
            stall = Stall::new(options.stall_after);
        }
    }
}

/// An agent that answers a long poll at once is not asked more often than this.
const SHORTEST_POLL: Duration = Duration::from_millis(100);

/// A poll must be able to fail and be repeated before the agent counts as unreachable.
pub(super) fn poll_wait(options: &DispatchOptions) -> Duration {
    options.long_poll.min(options.unreachable_after / 2)
}

/// What an answer means to whoever follows an attempt.
pub(super) enum Heard<D> {
    /// No answer; not for too long yet.
    Nothing,
    /// The agent puts the order off until something older has stopped. Not counted as an attempt.
    NotYet,
    /// The attempt's state, from the process that it was ordered from.
    State(TransferState<D>),
}

/// For how long an agent hasn't answered.
#[derive(Debug)]
pub(super) struct Silence {
    last: Instant,
    longest: Duration,
}

impl Silence {
    pub(super) fn new(options: &DispatchOptions) -> Self {
        Self { last: Instant::now(), longest: options.unreachable_after }
    }

    /// Sorts an answer. An error ends the attempt.
    pub(super) fn check<D>(&mut self, header: &OrderHeader, answer: Status<D>) -> Result<Heard<D>, Problem> {
        let status = match answer {
            AgentAnswer::Unknown(problem) => {
                let silent = self.last.elapsed();
                if silent >= self.longest {
                    return Err(problem.with("seconds", silent.as_secs_f64()));
                }
                return Ok(Heard::Nothing);
            }
            AgentAnswer::Refused(problem) => {
                self.last = Instant::now();
                return match problem.reason {
                    Reason::TransferInProgress => Ok(Heard::NotYet),
                    Reason::IncarnationMismatch => Err(restarted(header, problem.metadata.get("own"))),
                    _ => Err(problem),
                };
            }
            AgentAnswer::Answer(status) => status,
        };
        self.last = Instant::now();
        if status.incarnation != header.incarnation {
            return Err(restarted(header, Some(&status.incarnation.to_string())));
        }
        if (status.round, status.attempt) != (header.round, header.attempt) {
            return Err(Problem::new(
                Reason::Integrity,
                format!(
                    "asked for attempt {} of round {}, {} answered for attempt {} of round {}",
                    header.attempt, header.round, header.slot, status.attempt, status.round
                ),
            )
            .with("round", header.round)
            .with("found", status.round));
        }
        Ok(Heard::State(status.state))
    }
}

/// The process that had the order is gone, and with it whatever it did.
fn restarted(header: &OrderHeader, present: Option<&String>) -> Problem {
    let present = present.map_or("unknown", String::as_str);
    Problem::new(
        Reason::AgentRestarted,
        format!("{} restarted: the order was for incarnation {}, now it is {present}", header.slot, header.incarnation),
    )
    .with("ordered", header.incarnation)
    .with("own", present)
}

/// For how long a transfer that answers hasn't moved.
#[derive(Debug)]
struct Stall {
    last: Option<(Counters, Instant)>,
    longest: Duration,
}

impl Stall {
    const fn new(longest: Duration) -> Self {
        Self { last: None, longest }
    }

    fn check(&mut self, host: &Host, counters: &Counters) -> Option<Problem> {
        match &self.last {
            Some((before, since)) if !counters.moved_since(before) => {
                let stood = since.elapsed();
                (stood >= self.longest).then(|| {
                    let (done, total, seconds) = (counters.bytes_done, counters.bytes_total, stood.as_secs_f64());
                    Problem::new(
                        Reason::TransferStalled,
                        format!(
                            "{} at {} stands at {done} of {total} bytes for {seconds:.1} s",
                            host.slot, host.address
                        ),
                    )
                    .with("bytes_done", done)
                    .with("bytes_total", total)
                    .with("seconds", seconds)
                })
            }
            _ => {
                self.last = Some((*counters, Instant::now()));
                None
            }
        }
    }
}
