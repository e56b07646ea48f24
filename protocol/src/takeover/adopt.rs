//! What becomes of a pipeline's open round in the transaction that adopts a new generation (F4).

use chrono::{DateTime, Utc};

use crate::{
    fence::FenceBase,
    id::{Generation, Seq},
    round::{self, Event, KeyRead, Kind, Round},
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

fn apply(round: &Round, base: &FenceBase, key: KeyRead, now: DateTime<Utc>) -> Settlement {
    let decision = round::decide(round, &Event::Adopted { base: base.clone(), key }, now);
    if decision.next.phase.is_terminal() { Settlement::Settled(Box::new(decision)) } else { Settlement::Undecided }
}
