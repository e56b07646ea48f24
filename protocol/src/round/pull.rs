//! A pull round (protocol.md, "Pull"): resolve one source for all hosts, stage, install.

use chrono::{DateTime, Utc};

use super::{
    Event, FoundHost, HostReport, Kind, Participant, ParticipantPhase, Phase, PullState, Resolved, Source, Work,
    participant::Persistence,
};
use crate::{
    commit::CommitRef,
    id::{Attempt, Incarnation},
    planted::{self, Bug},
    problem::{Problem, Reason},
    spec::PullSelector,
};

fn state(work: &mut Work) -> Option<&mut PullState> {
    match &mut work.round.kind {
        Kind::Pull(state) => Some(state),
        Kind::Push(_) => None,
    }
}

/// Fresh after `discard_local`: hosts are being cleared, the round remains in `Resolving`.
fn is_discarding(work: &Work) -> bool {
    super::effect::discarding(&work.round)
}

pub(super) fn apply(work: &mut Work, event: &Event, now: DateTime<Utc>) {
    match (work.round.phase, event) {
        (Phase::Resolving, Event::Resolved { resolved, hosts, discard })
            if hosts.len() == work.round.participants.len() && !is_discarding(work) =>
        {
            resolve(work, resolved, hosts, *discard);
        }
        (Phase::Resolving, Event::Refused(problem)) => {
            let problem = after_retired(work, problem.clone());
            work.fail(problem);
        }
        (phase, Event::CancelRequested(request))
            if matches!(phase, Phase::Resolving | Phase::Transferring) || planted::is(Bug::CancelWhileInstalling) =>
        {
            work.round.cancel = Some(request.clone());
            work.cancelled(request);
        }
        (Phase::Resolving | Phase::Transferring, Event::Tick) => {
            work.deadline_passed(now);
        }
        (
            Phase::Resolving | Phase::Transferring | Phase::Installing,
            Event::HostReady { host_idx, attempt, incarnation },
        ) => {
            work.host_ready(*host_idx, *attempt, *incarnation);
        }
        (
            phase @ (Phase::Resolving | Phase::Transferring | Phase::Installing),
            Event::HostFailed { host_idx, attempt, problem, jitter },
        ) => {
            let present = work.participant(*host_idx).is_some_and(|p| {
                p.attempt == *attempt && !matches!(p.phase, ParticipantPhase::Waiting | ParticipantPhase::Failed)
            });
            if !present {
                return;
            }
            // ADR 14: no retry brings back what was nowhere but on this host's disk and is not there any more, nor what the store has lost since it was staged. Bytes
            // with another digest may be a passing fault: of those some retries are made, not endless ones.
            let lost = match problem.reason {
                Reason::CheckpointNotFound => super::effect::installs_without_transfer(&work.round),
                reason => matches!(reason, Reason::CheckpointDamaged | Reason::Integrity),
            };
            let gone = lost && !planted::is(Bug::WaitsForWhatIsGone);
            let only_forward = phase == Phase::Installing && !gone;
            let persistence = if only_forward { Persistence::Forever } else { Persistence::Bounded };
            work.host_failed(*host_idx, *attempt, problem, now, *jitter, persistence);
        }
        (
            phase @ (Phase::Transferring | Phase::Installing),
            Event::SourceRetired { host_idx, attempt, commit, problem },
        ) => {
            source_retired(work, phase, (*host_idx, *attempt), commit, problem, now);
        }
        (Phase::Transferring, Event::HostDone { host_idx, attempt, incarnation, report: HostReport::Staged }) => {
            staged(work, *host_idx, *attempt, *incarnation);
            if work.all_in(ParticipantPhase::Staged) {
                work.enter(Phase::Installing, "every host is staged");
            }
        }
        (Phase::Installing, Event::HostDone { host_idx, attempt, incarnation, report: HostReport::Staged }) => {
            staged(work, *host_idx, *attempt, *incarnation);
        }
        (Phase::Installing, Event::HostDone { host_idx, attempt, incarnation, report: HostReport::Installed }) => {
            // Ordered: a local source has nothing to pull again, so its retry is the install itself.
            installed(work, *host_idx, *attempt, *incarnation, &[ParticipantPhase::Staged, ParticipantPhase::Ordered]);
        }
        (Phase::Resolving, Event::HostDone { host_idx, attempt, incarnation, report: HostReport::Installed })
            if is_discarding(work) =>
        {
            installed(work, *host_idx, *attempt, *incarnation, &[ParticipantPhase::Ordered]);
            if work.all_in(ParticipantPhase::Installed) {
                work.enter(Phase::Fresh, "local checkpoints discarded as asked; nothing to restore anywhere, proven");
            }
        }
        (Phase::Installing, Event::Confirmed { incarnations, jitter }) if work.all_in(ParticipantPhase::Installed) => {
            confirm(work, incarnations, now, *jitter);
        }
        (_, Event::Superseded { by }) => {
            let id = work.round.id;
            work.fail(
                Problem::new(Reason::Superseded, format!("round {id} was superseded by pull {by}"))
                    .with("round", id)
                    .with("by", by),
            );
        }
        (_, Event::Adopted { base, .. }) => {
            // Its orders carry the old generation, and the engine starts from nothing that was not pulled in the new one.
            let (id, generation) = (work.round.id, base.generation);
            work.fail(
                Problem::new(
                    Reason::Superseded,
                    format!(
                        "round {id} was superseded by the take-over that started generation {generation}; pull again"
                    ),
                )
                .with("round", id)
                .with("generation", generation),
            );
        }
        _ => {}
    }
}

/// G5: the owner of the source has retired it, and something of it is gone. What is asked for by its id is that or nothing. Else another one is chosen, for all hosts; whatever the agents have
/// of the retired one is of an older attempt from here on. Once hosts install there is only forward, and nothing to go forward to (ADR 14): some may have it already.
fn source_retired(
    work: &mut Work,
    phase: Phase,
    (host_idx, attempt): (u32, Attempt),
    commit: &CommitRef,
    problem: &Problem,
    now: DateTime<Utc>,
) {
    let ordered = |p: &mut Participant| p.attempt == attempt && p.phase == ParticipantPhase::Ordered;
    if !work.participant(host_idx).is_some_and(ordered) {
        return;
    }
    let Some(pull) = state(work).filter(|pull| pull.resolved.as_ref().and_then(|from| from.commit) == Some(*commit))
    else {
        return;
    };
    let may_be_another = !matches!(pull.request.selector, PullSelector::Checkpoint(_));
    if phase != Phase::Transferring || !may_be_another {
        let mut problem = problem.clone();
        problem.message += "; pull another one";
        work.host_failed(host_idx, attempt, &problem, now, 0, Persistence::Bounded);
        return;
    }
    pull.resolved = None;
    pull.retired.push(*commit);
    for idx in (0..).take(work.round.participants.len()) {
        let Some(participant) = work.participant(idx).filter(|participant| !stays_staged(participant)) else {
            continue;
        };
        if !planted::is(Bug::ResolvedAnewInTheSameAttempt) {
            participant.attempt = participant.attempt.next();
        }
        (participant.local_checkpoint, participant.retry_at, participant.problem) = (None, None, None);
        let next = participant.attempt;
        work.move_host(idx, ParticipantPhase::Waiting, format!("attempt {next} is for what is chosen instead"));
    }
    let cause = format!("host {host_idx}, attempt {attempt}: {problem}; another one is chosen");
    work.round.problem = Some(problem.clone().with("host_idx", host_idx).with("attempt", attempt));
    work.enter(Phase::Resolving, cause);
}

/// Planted: what it has of the retired source is not given up for what is chosen instead.
fn stays_staged(participant: &Participant) -> bool {
    planted::is(Bug::StagedOfRetiredStays) && participant.phase == ParticipantPhase::Staged
}

/// Why nothing could be chosen, with what had been.
fn after_retired(work: &mut Work, mut problem: Problem) -> Problem {
    let Some(last) = state(work).and_then(|pull| pull.retired.last().copied()) else { return problem };
    problem.message += &format!(
        " (checkpoint {} was chosen before, and was retired by its owner while it was pulled: nothing was installed)",
        last.round
    );
    problem.with("retired", last.round)
}

fn resolve(work: &mut Work, resolved: &Resolved, hosts: &[FoundHost], discard: bool) {
    if let Some(pull) = state(work) {
        if let Some(again) = resolved.commit.filter(|commit| pull.retired.contains(commit)) {
            let problem = Problem::new(
                Reason::CheckpointNotFound,
                format!("checkpoint {} was found again, though its owner has retired it", again.round),
            );
            let problem = after_retired(work, problem.with("checkpoint", again.round));
            work.fail(problem);
            return;
        }
        pull.resolved = Some(resolved.clone());
    }
    work.round.problem = None;
    let step = resolved.step.map_or_else(|| "none".to_owned(), |step| step.to_string());
    for (host_idx, host) in (0..).zip(hosts) {
        if let Some(participant) = work.participant(host_idx).filter(|participant| !stays_staged(participant)) {
            participant.incarnation = Some(host.incarnation);
            participant.local_checkpoint = host.local_checkpoint;
        }
    }
    match resolved.source {
        Source::Fresh if !discard => work.enter(Phase::Fresh, "no checkpoint anywhere, proven"),
        Source::Fresh => {
            for (host_idx, host) in (0..).zip(hosts) {
                work.move_host(
                    host_idx,
                    ParticipantPhase::Ordered,
                    format!("discard local checkpoints, incarnation {}", host.incarnation),
                );
            }
        }
        Source::Local => {
            work.enter(Phase::Transferring, format!("step {step} is on every host's own disk"));
            for (host_idx, _) in (0..).zip(hosts) {
                work.move_host(host_idx, ParticipantPhase::Staged, "already on the host's disk");
            }
            work.enter(Phase::Installing, "nothing to download");
        }
        Source::Location | Source::ReadLocation => {
            let from = if resolved.source == Source::Location { "the location" } else { "the read location" };
            let which = resolved.commit.map_or_else(String::new, |c| format!(", commit {}-{}", c.generation, c.seq));
            work.enter(Phase::Transferring, format!("step {step} from {from}{which}"));
            for (host_idx, host) in (0..).zip(hosts) {
                let to_pull = work.participant(host_idx).filter(|participant| !stays_staged(participant));
                let Some(attempt) = to_pull.map(|participant| participant.attempt) else { continue };
                work.move_host(
                    host_idx,
                    ParticipantPhase::Ordered,
                    format!("attempt {attempt} for incarnation {}", host.incarnation),
                );
            }
        }
    }
}

fn staged(work: &mut Work, host_idx: u32, attempt: Attempt, incarnation: Incarnation) {
    let ordered = work.participant(host_idx).is_some_and(|p| p.phase == ParticipantPhase::Ordered);
    if ordered && work.is_present(host_idx, attempt, incarnation) {
        if let Some(participant) = work.participant(host_idx) {
            participant.problem = None;
        }
        work.move_host(host_idx, ParticipantPhase::Staged, format!("attempt {attempt} verified and synced"));
    }
}

fn installed(work: &mut Work, host_idx: u32, attempt: Attempt, incarnation: Incarnation, from: &[ParticipantPhase]) {
    let fits = work.participant(host_idx).is_some_and(|p| from.contains(&p.phase));
    if fits && work.is_present(host_idx, attempt, incarnation) {
        if let Some(participant) = work.participant(host_idx) {
            participant.problem = None;
        }
        work.move_host(host_idx, ParticipantPhase::Installed, format!("incarnation {incarnation} has it"));
    }
}

/// S12: `Installed` needs from each host's *present* incarnation an answer that it has this checkpoint. Hosts that restarted since they answered are
/// asked again; one that lost its disk meanwhile gets `Pull` again.
fn confirm(work: &mut Work, incarnations: &[Option<Incarnation>], now: DateTime<Utc>, jitter: u32) {
    if incarnations.len() != work.round.participants.len() {
        return;
    }
    let mut all = true;
    for (host_idx, present) in (0..).zip(incarnations) {
        let Some(participant) = work.participant(host_idx) else { continue };
        if present.is_some() && *present == participant.incarnation {
            continue;
        }
        all = false;
        let attempt = participant.attempt;
        let problem = match present {
            Some(incarnation) => Problem::new(
                Reason::AgentRestarted,
                format!("host {host_idx} restarted as incarnation {incarnation} after it had installed"),
            )
            .with("incarnation", incarnation),
            None => Problem::new(
                Reason::AgentUnreachable,
                format!("host {host_idx} does not answer after it had installed"),
            ),
        };
        work.host_failed(host_idx, attempt, &problem, now, jitter, Persistence::Forever);
    }
    if all {
        let step =
            state(work).and_then(|pull| pull.resolved.as_ref()?.step).map_or_else(String::new, |s| s.to_string());
        work.round.problem = None;
        work.enter(Phase::Installed, format!("every host's present incarnation has step {step}"));
    }
}
