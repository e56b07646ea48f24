//! What shall happen outside, derived from the stored round alone: a replica that takes a round over after a crash finds the same effects.

use chrono::{DateTime, Utc};

use super::{Kind, ParticipantPhase, Phase, Round, Source, participant::all_in};
use crate::id::Attempt;

/// Something to carry out. Idempotent on (round, host, attempt); its result comes back as an event.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Effect {
    /// Push: compare the bucket with the database, describe the agents, list their local checkpoints, choose the cut.
    Plan,
    /// Pull: choose one source for all hosts.
    Resolve,
    /// Order the present attempt and follow it until it is done or failed.
    Transfer {
        /// Which host.
        host_idx: u32,
        /// Which try.
        attempt: Attempt,
    },
    /// Make the staged or local checkpoint the only one of this host; on a fresh start remove all.
    Install {
        /// Which host.
        host_idx: u32,
        /// Which try.
        attempt: Attempt,
    },
    /// Ask a host that backs off for its present process.
    Describe {
        /// Which host.
        host_idx: u32,
        /// The try that backs off.
        attempt: Attempt,
    },
    /// Push: read every part manifest and compare it with its report, the layout and the base.
    CheckParts,
    /// Push: put the stored commit bytes at the decision key, then read what follows this generation.
    SettleCommit,
    /// Push: put the stored abort bytes at the decision key, then read what follows this generation.
    SettleAbort,
    /// Pull: describe every host once more (S12).
    Confirm,
}

/// What the stored round wants to happen now.
pub fn effects(round: &Round, now: DateTime<Utc>) -> Vec<Effect> {
    match round.phase {
        Phase::Planning => vec![Effect::Plan],
        Phase::Resolving if discarding(round) => host_effects(round, now),
        Phase::Resolving => vec![Effect::Resolve],
        Phase::Transferring => {
            if all_in(round, ParticipantPhase::Done) {
                return vec![Effect::CheckParts];
            }
            host_effects(round, now)
        }
        Phase::Committing => {
            let Kind::Push(push) = &round.kind else { return Vec::new() };
            if push.settle.retry_at.is_some_and(|at| at > now) {
                return Vec::new();
            }
            vec![if push.abort_bytes.is_some() { Effect::SettleAbort } else { Effect::SettleCommit }]
        }
        Phase::Installing => {
            if all_in(round, ParticipantPhase::Installed) {
                return vec![Effect::Confirm];
            }
            host_effects(round, now)
        }
        Phase::Committed | Phase::Installed | Phase::Fresh | Phase::Failed | Phase::Cancelled => Vec::new(),
    }
}

/// A fresh start that was resolved but still has local checkpoints to remove: the round remains in `Resolving`.
pub(crate) fn discarding(round: &Round) -> bool {
    matches!(&round.kind, Kind::Pull(pull) if pull.resolved.as_ref().is_some_and(|r| r.source == Source::Fresh))
}

/// A local source without a commit: an ordered host has nothing to download, install is all there is.
pub(super) fn installs_without_transfer(round: &Round) -> bool {
    matches!(&round.kind, Kind::Pull(pull) if pull.resolved.as_ref().is_some_and(|r| r.commit.is_none()))
}

fn host_effects(round: &Round, now: DateTime<Utc>) -> Vec<Effect> {
    let installing = round.phase == Phase::Installing;
    let nothing_to_transfer = installs_without_transfer(round);
    let mut effects = Vec::new();
    for p in &round.participants {
        let (host_idx, attempt) = (p.host_idx, p.attempt);
        match p.phase {
            ParticipantPhase::Ordered if nothing_to_transfer => effects.push(Effect::Install { host_idx, attempt }),
            ParticipantPhase::Ordered => effects.push(Effect::Transfer { host_idx, attempt }),
            ParticipantPhase::Staged if installing => effects.push(Effect::Install { host_idx, attempt }),
            ParticipantPhase::BackingOff if p.retry_at.is_none_or(|at| at <= now) => {
                effects.push(Effect::Describe { host_idx, attempt });
            }
            _ => {}
        }
    }
    effects
}

/// When [`effects`] may change without any event: the next retry or the deadline.
pub fn next_wake(round: &Round) -> Option<DateTime<Utc>> {
    if round.phase.is_terminal() {
        return None;
    }
    let retries =
        round.participants.iter().filter(|p| p.phase == ParticipantPhase::BackingOff).filter_map(|p| p.retry_at);
    let settle = match &round.kind {
        Kind::Push(push) if round.phase == Phase::Committing => push.settle.retry_at,
        _ => None,
    };
    let deadline =
        matches!(round.phase, Phase::Planning | Phase::Resolving | Phase::Transferring).then_some(round.deadline);
    retries.chain(settle).chain(deadline).min()
}
