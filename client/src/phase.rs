//! Which phases of a round are final.

use lockstep_proto::v1::{Round, RoundPhase};

/// Whether the round has ended: nothing about it will change any more.
pub fn is_terminal(round: &Round) -> bool {
    matches!(round.phase(), RoundPhase::Failed | RoundPhase::Cancelled) || succeeded(round)
}

/// Whether the round did what was asked: a push is committed; a pull is installed, or found nothing and was allowed to
/// start fresh.
pub fn succeeded(round: &Round) -> bool {
    matches!(round.phase(), RoundPhase::Committed | RoundPhase::Installed | RoundPhase::Fresh)
}
