//! Push steps 4 to 6, as `lockstep-bucket` and the dispatcher do them.

use lockstep_protocol::{
    commit::DecisionObject,
    digest::Digest,
    key::Key,
    planted::{self, Bug},
    problem::Problem,
    round::{DecisionKnown, Event, Kind, Round},
};

use super::{
    bucket::{self, Bytes, Created, Read},
    reader::{self, unavailable},
    world::Sim,
};

/// Which bytes are put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    Commit,
    Abort,
}

pub(super) async fn run(sim: &Sim, round: &Round, which: Which) -> Option<Event> {
    let Kind::Push(push) = &round.kind else { return None };
    let bytes = match which {
        Which::Commit => push.commit_bytes.as_ref()?,
        Which::Abort => push.abort_bytes.as_ref()?,
    };
    let early = match planted::is(Bug::FenceCheckBeforeCommit) {
        true => Some(reader::successor(sim, round.generation).await),
        false => None,
    };
    let key = Key::Commit(round.generation, push.seq);
    let decision = put(sim, &key, round, which, &bytes.clone().into_bytes().into()).await;
    // After the decision, never before: a fence that comes in between must be seen.
    let successor = match early {
        Some(early) => early,
        None => reader::successor(sim, round.generation).await,
    };
    Some(Event::Settled { decision, successor: successor.ok(), jitter: sim.jitter() })
}

async fn put(sim: &Sim, key: &Key, round: &Round, which: Which, bytes: &Bytes) -> DecisionKnown {
    let mine = match which {
        Which::Commit => DecisionKnown::CommitStands,
        Which::Abort => DecisionKnown::AbortStands,
    };
    match bucket::create(sim, key, bytes).await {
        Created::Done => return mine,
        Created::Exists if planted::is(Bug::ExistsTakenAsMine) => return mine,
        Created::Exists if planted::is(Bug::ExistsTakenAsFailed) => return DecisionKnown::OtherRound(round.id),
        Created::Exists | Created::Refused | Created::Unknown => {}
    }
    let unknown = || DecisionKnown::Unknown(unavailable(key));
    let name = key.to_string();
    match bucket::get(sim, &name).await {
        Read::Found(found) => judge(&name, &found, bytes, round, mine).unwrap_or_else(DecisionKnown::Unknown),
        Read::Absent | Read::Unknown => unknown(),
    }
}

/// Bytes are compared first: the own retried PUT is answered "exists" (R2).
fn judge(
    key: &str,
    found: &Bytes,
    bytes: &Bytes,
    round: &Round,
    mine: DecisionKnown,
) -> Result<DecisionKnown, Problem> {
    if found == bytes {
        return Ok(mine);
    }
    let Kind::Push(push) = &round.kind else { return Err(unavailable(key)) };
    let stored = push.commit_bytes.as_ref().map(|bytes| Digest::of(bytes.as_bytes()));
    match DecisionObject::parse(key, found)? {
        other if other.round() != round.id => Ok(DecisionKnown::OtherRound(other.round())),
        DecisionObject::Abort(_) => Ok(DecisionKnown::AbortStands),
        DecisionObject::Commit(_) if stored == Some(Digest::of(found)) => Ok(DecisionKnown::CommitStands),
        DecisionObject::Commit(_) => Err(unavailable(key)),
    }
}
