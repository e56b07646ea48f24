//! The shorter dealings with hosts: install, describe one that backs off, describe all once more.

use std::time::Duration;

use futures::future::join_all;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::{Attempt, Incarnation},
    problem::Problem,
    round::{Event, HostReport, Round},
};
use tokio::time::Instant;

use super::{
    drive::{Drive, jitter, order_again},
    orders,
    transfer::{self, Heard, Silence},
};
use crate::{
    agents::{AgentAnswer, AgentReads, Host, InstallWhat, Reach, TransferState, check_identity},
    plan::BackOff,
};

/// Makes the checkpoint of this pull the only one of a host.
pub(super) async fn install(drive: &Drive, round: &Round, host_idx: u32, attempt: Attempt) -> Event {
    transfer::event(host_idx, attempt, install_at(drive, round, host_idx, attempt).await)
}

async fn install_at(
    drive: &Drive,
    round: &Round,
    host_idx: u32,
    attempt: Attempt,
) -> Result<(Incarnation, HostReport), Problem> {
    let (agents, options) = (&drive.services.agents, &drive.services.options);
    let orders::Ordered { host, header } = orders::ordered(round, host_idx)?;
    let what = orders::install(round, host_idx)?;
    let expected = match what {
        InstallWhat::Fresh => None,
        InstallWhat::Checkpoint(id, _) => Some(id),
    };
    let mut silence = Silence::new(options);
    let mut pause = order_again();
    loop {
        reached(Point::InstallBeforeSent);
        let answer = agents.install(&host, &header, what).await;
        match silence.check(&header, answer)? {
            Heard::State(TransferState::Done(done))
                if done.reach == Reach::Installed && done.local_checkpoint == expected =>
            {
                if done.counters.files_total > 0 {
                    drive.progress.report(host_idx, attempt, &done.counters);
                }
                reached(Point::InstallAnswered);
                return Ok((header.incarnation, HostReport::Installed));
            }
            Heard::State(TransferState::Failed(problem)) => return Err(problem),
            Heard::State(TransferState::InProgress(_)) => {
                // A long install: wait where it runs, then ask for its end by the same order.
                let status = agents.pull_status(&host, &header, transfer::poll_wait(options)).await;
                silence.check(&header, status)?;
            }
            // Not the end that was ordered: the same order again is what leads there.
            Heard::State(TransferState::Done(_) | TransferState::NotRequested) | Heard::Nothing | Heard::NotYet => {
                pause.pause().await;
            }
        }
    }
}

/// Asks a host that backs off for its present process.
pub(super) async fn describe(drive: &Drive, round: &Round, host_idx: u32, attempt: Attempt) -> Event {
    let found = match orders::host(round, host_idx) {
        Ok(host) => present(drive, round, &host, drive.services.options.unreachable_after).await,
        Err(problem) => Err(problem),
    };
    match found {
        Ok(incarnation) => Event::HostReady { host_idx, attempt, incarnation },
        Err(problem) => Event::HostFailed { host_idx, attempt, problem, jitter: jitter() },
    }
}

/// Longest that one host without an answer keeps the confirmation of all waiting; it is asked again as one that backs off.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(5);

/// Describes every host once more (S12).
pub(super) async fn confirm(drive: &Drive, round: &Round) -> Event {
    let patience = CONFIRM_PATIENCE.min(drive.services.options.unreachable_after);
    let hosts: Vec<_> = (0..round.layout.len()).map(|host_idx| confirm_one(drive, round, host_idx, patience)).collect();
    reached(Point::ConfirmBefore);
    let incarnations = join_all(hosts).await;
    reached(Point::ConfirmAnswered);
    Event::Confirmed { incarnations, jitter: jitter() }
}

async fn confirm_one(drive: &Drive, round: &Round, host_idx: u32, patience: Duration) -> Option<Incarnation> {
    let host = orders::host(round, host_idx).ok()?;
    match present(drive, round, &host, patience).await {
        Ok(incarnation) => Some(incarnation),
        Err(problem) => {
            tracing::warn!(host.idx = host_idx, reason = %problem.reason, "not confirmed: {}", problem.message);
            None
        }
    }
}

/// The present process of a host, if it is the host that is meant.
async fn present(drive: &Drive, round: &Round, host: &Host, patience: Duration) -> Result<Incarnation, Problem> {
    let until = Instant::now() + patience;
    let mut back_off = BackOff::of_calls();
    loop {
        let answer = drive.services.agents.describe(host).await.and_then(|described| {
            check_identity(host, round.pipeline, &round.pipeline_name, &described)?;
            Ok(described.incarnation)
        });
        match answer {
            AgentAnswer::Answer(incarnation) => return Ok(incarnation),
            AgentAnswer::Refused(problem) => return Err(problem),
            AgentAnswer::Unknown(problem) if Instant::now() >= until => return Err(problem),
            AgentAnswer::Unknown(_) => back_off.pause().await,
        }
    }
}
