//! What becomes of a pipeline's open round in the transaction that adopts a new generation (F4).

use chrono::{DateTime, Utc};

use crate::{
    commit::CommitDocument,
    fence::FenceBase,
    id::{Generation, Seq},
    key::Key,
    round::{self, Event, KeyRead, Kind, ParticipantPhase, Round, Transition},
};

/// What becomes of one open round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// To be stored in the adopting transaction, like any decision; the round is terminal.
    Settled(Box<round::Decision>),
    /// Another base decides: exactly that of the generation after the round's own.
    NeedsBase(Generation),
    /// The base includes its place but names a later commit, so its decision key decides: read it, and its tombstone where it is absent, and settle again.
    NeedsKey(Generation, Seq),
    /// Its key is empty, and what lands there would count: carry out the round's own effects with this base as successor, and adopt when it is terminal.
    Undecided,
}

/// Settles `round`, which is not terminal, by the base of exactly the generation after its own (F1), also where a later one is adopted.
///
/// A push that the base excludes is `FENCED`, whatever its phase and even if its key is empty. One whose commit the base names or includes is committed. A pull is
/// `SUPERSEDED`, also while installing: its orders carry the old generation, and engines start only after a pull of the new one.
pub fn settle(round: &Round, base: &FenceBase, key: KeyRead, now: DateTime<Utc>) -> Settlement {
    let Kind::Push(push) = &round.kind else { return apply(round, base, key, now) };
    let deciding = round.generation.next();
    if base.generation != deciding {
        return Settlement::NeedsBase(deciding);
    }
    match apply(round, base, key, now) {
        Settlement::Undecided if key == KeyRead::NotYet => Settlement::NeedsKey(round.generation, push.seq),
        other => other,
    }
}

/// What a commit document says of the push that it commits, whose row may be from before its hosts were done (R13). What the row knows by itself stays.
pub fn learn_commit(decision: &mut round::Decision, document: &CommitDocument) {
    let Kind::Push(push) = &mut decision.next.kind else { return };
    if push.step.is_some() && push.commit_bytes.is_some() {
        return;
    }
    push.step = Some(document.step);
    push.fingerprint = document.fingerprint;
    push.parent = document.parent;
    for part in &document.parts {
        let host = usize::try_from(part.host_idx).ok().and_then(|index| decision.next.participants.get_mut(index));
        let Some(host) = host.filter(|host| host.part.as_ref() != Some(part)) else { continue };
        if host.phase != ParticipantPhase::Done {
            decision.transitions.push(Transition {
                host_idx: Some(part.host_idx),
                from: host.phase.as_str(),
                to: ParticipantPhase::Done.as_str(),
                cause: "its part is in the commit that stands".to_owned(),
            });
        }
        if let Some(Key::PartManifest(path)) = Key::parse(&part.manifest) {
            (host.attempt, host.incarnation) = (path.attempt, Some(path.incarnation));
        }
        host.phase = ParticipantPhase::Done;
        host.local_checkpoint = Some(part.local_checkpoint);
        host.part = Some(part.clone());
        (host.problem, host.retry_at) = (None, None);
    }
}

fn apply(round: &Round, base: &FenceBase, key: KeyRead, now: DateTime<Utc>) -> Settlement {
    let decision = round::decide(round, &Event::Adopted { base: base.clone(), key }, now);
    if decision.next.phase.is_terminal() { Settlement::Settled(Box::new(decision)) } else { Settlement::Undecided }
}
