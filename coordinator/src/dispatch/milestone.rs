//! Which failpoints lie around the write of a decision: what it stores of a round says so.

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    round::{Kind, Phase, Round},
    takeover::{self, TakeOver},
};

/// The places right before and right after the write.
pub(super) type Milestone = Option<[Point; 2]>;

/// None: nothing that a crash could tell apart from what stood before.
pub(super) fn of(before: &Round, next: &Round) -> Milestone {
    if next.phase == before.phase {
        let begins_to_abort = match (&before.kind, &next.kind) {
            (Kind::Push(before), Kind::Push(next)) => before.abort_bytes.is_none() && next.abort_bytes.is_some(),
            _ => false,
        };
        return if begins_to_abort {
            Some([Point::AbortBeforeStored, Point::AbortStored])
        } else {
            (next.participants != before.participants).then_some([Point::ReportsBeforeStored, Point::ReportsStored])
        };
    }
    match next.phase {
        Phase::Planning => None,
        // What hosts were ordered is void: its source was retired.
        Phase::Resolving => Some([Point::ReportsBeforeStored, Point::ReportsStored]),
        Phase::Transferring => Some([Point::TransferringBeforeStored, Point::TransferringStored]),
        Phase::Committing => Some([Point::CommittingBeforeStored, Point::CommittingStored]),
        Phase::Committed => Some([Point::CommittedBeforeStored, Point::CommittedStored]),
        Phase::Installing => Some([Point::InstallingBeforeStored, Point::InstallingStored]),
        Phase::Installed => Some([Point::InstalledBeforeStored, Point::InstalledStored]),
        Phase::Fresh => Some([Point::FreshBeforeStored, Point::FreshStored]),
        Phase::Failed | Phase::Cancelled => Some([Point::GivenUpBeforeStored, Point::GivenUpStored]),
    }
}

/// The same of a take-over.
pub(super) fn of_take_over(before: &TakeOver, next: &TakeOver) -> Milestone {
    if next.phase == before.phase {
        return None;
    }
    match next.phase {
        takeover::Phase::Fencing => Some([Point::FencingBeforeStored, Point::FencingStored]),
        takeover::Phase::Basing => Some([Point::BasingBeforeStored, Point::BasingStored]),
        takeover::Phase::Adopting => Some([Point::AdoptingBeforeStored, Point::AdoptingStored]),
        takeover::Phase::Done => Some([Point::AdoptedBeforeStored, Point::AdoptedStored]),
        takeover::Phase::Preparing => Some([Point::WarmedBeforeStored, Point::WarmedStored]),
        takeover::Phase::Pulling => Some([Point::PullingBeforeStored, Point::PullingStored]),
        takeover::Phase::Warming | takeover::Phase::Failed | takeover::Phase::Cancelled => None,
    }
}

/// The decision is about to be stored.
pub(super) fn before_stored(milestone: Milestone) {
    if let Some([before, _]) = milestone {
        reached(before);
    }
}

/// It is stored.
pub(super) fn stored(milestone: Milestone) {
    if let Some([_, after]) = milestone {
        reached(after);
    }
}
