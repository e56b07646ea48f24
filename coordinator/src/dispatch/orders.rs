//! Orders as they follow from the stored round.

use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    host::Slot,
    order::OrderHeader,
    problem::{Problem, Reason},
    round::{Kind, Participant, Phase, Round, Source},
    spec::Transfer,
};

use crate::agents::{Deadline, Host, InstallWhat, PullOrder, PushOrder};

/// One host of a round as effects need it.
#[derive(Clone, Debug)]
pub(super) struct Ordered {
    pub(super) host: Host,
    pub(super) header: OrderHeader,
}

/// A row that says less than its phase needs. It can't be by construction; if it is, the round must say so instead of hanging.
fn incomplete(round: &Round, what: &str) -> Problem {
    Problem::new(Reason::DatabaseBehind, format!("round {} in phase {} has no {what}", round.id, round.phase))
        .with("round", round.id)
        .with("phase", round.phase)
        .with("missing", what)
}

fn participant(round: &Round, host_idx: u32) -> Result<(&Participant, Slot), Problem> {
    let participant = usize::try_from(host_idx).ok().and_then(|idx| round.participants.get(idx));
    let participant = participant.ok_or_else(|| incomplete(round, &format!("participant {host_idx}")))?;
    Ok((participant, round.layout.slot(host_idx)?))
}

/// Where a host's agent is.
pub(super) fn host(round: &Round, host_idx: u32) -> Result<Host, Problem> {
    let (participant, slot) = participant(round, host_idx)?;
    Ok(Host { slot, address: participant.address.clone() })
}

/// The header of the present attempt of a host.
pub(super) fn ordered(round: &Round, host_idx: u32) -> Result<Ordered, Problem> {
    let (participant, slot) = participant(round, host_idx)?;
    let incarnation = participant.incarnation.ok_or_else(|| incomplete(round, "incarnation"))?;
    let header = OrderHeader {
        pipeline: round.pipeline,
        pipeline_name: round.pipeline_name.clone(),
        slot,
        incarnation,
        generation: round.generation,
        round_no: round.round_no,
        term: round.term,
        round: round.id,
        attempt: participant.attempt,
        own_location: round.location.clone(),
    };
    Ok(Ordered { host: Host { slot, address: participant.address.clone() }, header })
}

/// The order of the present attempt of a push.
pub(super) fn push(
    round: &Round,
    host_idx: u32,
    base: Option<(CommitRef, &CommitDocument)>,
    (transfer, deadline): (Transfer, Deadline),
) -> Result<(Host, PushOrder), Problem> {
    let Kind::Push(push) = &round.kind else { return Err(incomplete(round, "push")) };
    let (participant, _) = participant(round, host_idx)?;
    let Ordered { host, header } = ordered(round, host_idx)?;
    let order = PushOrder {
        header,
        local_checkpoint: participant.local_checkpoint.ok_or_else(|| incomplete(round, "local checkpoint"))?,
        step: push.step.ok_or_else(|| incomplete(round, "step"))?,
        fingerprint: push.fingerprint,
        base: base.map(|(commit, document)| (commit, document.parts.clone())),
        deadline,
        transfer,
    };
    Ok((host, order))
}

/// The order of the present attempt of a pull.
pub(super) fn pull(
    round: &Round,
    host_idx: u32,
    (transfer, deadline): (Transfer, Deadline),
) -> Result<(Host, PullOrder), Problem> {
    let Kind::Pull(pull) = &round.kind else { return Err(incomplete(round, "pull")) };
    let resolved = pull.resolved.as_ref().ok_or_else(|| incomplete(round, "source"))?;
    let part = resolved.parts.iter().find(|part| part.host_idx == host_idx);
    let Ordered { host, header } = ordered(round, host_idx)?;
    let order = PullOrder {
        header,
        source: resolved.location.clone().ok_or_else(|| incomplete(round, "source location"))?,
        commit: resolved.commit.ok_or_else(|| incomplete(round, "source commit"))?,
        part: part.cloned().ok_or_else(|| incomplete(round, "part"))?,
        step: resolved.step.ok_or_else(|| incomplete(round, "step"))?,
        fingerprint: resolved.fingerprint,
        // Only forward: the deadline acts on the first two phases.
        deadline: (round.phase != Phase::Installing).then_some(deadline),
        transfer,
    };
    Ok((host, order))
}

/// What a host shall have as its only checkpoint.
pub(super) fn install(round: &Round, host_idx: u32) -> Result<InstallWhat, Problem> {
    let Kind::Pull(pull) = &round.kind else { return Err(incomplete(round, "pull")) };
    let resolved = pull.resolved.as_ref().ok_or_else(|| incomplete(round, "source"))?;
    if resolved.source == Source::Fresh {
        return Ok(InstallWhat::Fresh);
    }
    let (participant, _) = participant(round, host_idx)?;
    let id = participant.local_checkpoint.ok_or_else(|| incomplete(round, "local checkpoint"))?;
    Ok(InstallWhat::Checkpoint(id, resolved.step.ok_or_else(|| incomplete(round, "step"))?))
}
