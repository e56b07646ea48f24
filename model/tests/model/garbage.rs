//! Garbage: every reachable state of each world, safety in each, and from each all garbage can still go. And each planted bug that concerns it is caught.

use lockstep_model::garbage::{Bounds, Garbage};
use lockstep_protocol::planted::Bug;

use crate::report::{caught, closed};

fn closes(name: &str, bounds: Bounds) {
    closed(&format!("garbage, {name}"), &Garbage::new(bounds), &bounds);
}

fn is_caught_by(bug: Bug, bounds: Bounds, rule: &str) {
    caught(bug, &Garbage::new(bounds), rule);
}

const RETIRE: Bounds = Bounds { retire: true, ..Bounds::NOTHING };
const PUSH: Bounds = Bounds { pushes: 1, damage: true, ..RETIRE };
const PUSHES: Bounds = Bounds { pushes: 2, ..RETIRE };
const OWN_PULL: Bounds = Bounds { own_pull: true, ..RETIRE };
const FOREIGN_PULL: Bounds = Bounds { foreign_pull: true, ..RETIRE };
const ORPHANS: Bounds = Bounds { pushes: 1, orphans: true, ..Bounds::NOTHING };
const LOSS: Bounds = Bounds { pushes: 1, loss: true, ..RETIRE };
/// Only the taker pushes.
const TAKER: Bounds = Bounds { taker: true, taken: true, ..RETIRE };

#[test]
fn pushes_reuse_what_is_being_retired() {
    closes("pushes", Bounds { damage: true, crashes: true, ..PUSHES });
}

#[test]
fn pulls_of_the_own_and_of_another_database() {
    closes("pulls", Bounds { own_pull: true, foreign_pull: true, pushes: 1, crashes: true, ..RETIRE });
}

#[test]
fn two_replicas_collect_at_once() {
    closes("two collectors", Bounds { pushes: 1, orphans: true, twin: true, ..RETIRE });
}

#[test]
fn late_agents_of_dead_rounds() {
    closes("orphans", Bounds { pushes: 2, retire: true, crashes: true, ..ORPHANS });
}

#[test]
fn an_old_owner_retires_and_sweeps_during_a_take_over() {
    closes("take-over", Bounds { crashes: true, ..TAKER });
}

#[test]
fn an_old_owner_pushes_and_collects_orphans_during_a_take_over() {
    closes("orphans and take-over", Bounds { pushes: 1, orphans: true, retire: false, taken: false, ..TAKER });
}

#[test]
fn a_live_commit_loses_its_part_manifest() {
    closes("a lost manifest", Bounds { orphans: true, ..LOSS });
}

#[test]
fn a_live_commit_loses_its_part_manifest_during_a_take_over() {
    closes("a lost manifest and take-over", Bounds { loss: true, ..TAKER });
}

/// Some million states more: `LOCKSTEP_MODEL=large`.
#[test]
fn larger_worlds_on_demand() {
    if std::env::var("LOCKSTEP_MODEL").as_deref() != Ok("large") {
        return;
    }
    closes("take-over, both push", Bounds { pushes: 1, crashes: true, ..TAKER });
    closes("orphans and take-over, both push", Bounds { pushes: 1, orphans: true, retire: false, ..TAKER });
    closes("all during a take-over", Bounds { orphans: true, ..TAKER });
    closes("pulls during a take-over", Bounds { own_pull: true, foreign_pull: true, ..TAKER });
}

#[test]
fn a_base_that_is_not_pinned_is_caught() {
    is_caught_by(Bug::BaseNotPinned, PUSH, "S10");
}

#[test]
fn a_base_chosen_outside_admission_is_caught() {
    is_caught_by(Bug::BaseChosenOutsideAdmission, Bounds { damage: true, ..PUSHES }, "S10");
}

#[test]
fn retiring_without_the_lock_is_caught() {
    is_caught_by(Bug::RetireWithoutTheLock, OWN_PULL, "S10");
}

#[test]
fn a_sweep_before_the_tombstone_landed_is_caught() {
    is_caught_by(Bug::SweepBeforeTombstoneLanded, RETIRE, "S1");
}

#[test]
fn pins_listed_before_the_tombstone_are_caught() {
    is_caught_by(Bug::PinsListedBeforeTombstone, FOREIGN_PULL, "S10");
}

#[test]
fn a_refused_listing_of_pins_taken_for_none_is_caught() {
    is_caught_by(Bug::EmptyListingOnDenied, FOREIGN_PULL, "S10");
}

#[test]
fn a_sweep_without_reading_the_next_fence_is_caught() {
    is_caught_by(Bug::SweepWithoutReadingTheNextFence, TAKER, "S1");
}

#[test]
fn a_sweep_that_reads_the_next_fence_too_early_is_caught() {
    is_caught_by(Bug::SweepReadsTheNextFenceTooEarly, TAKER, "S1");
}

#[test]
fn orphans_without_reading_the_next_fence_are_caught() {
    is_caught_by(Bug::OrphansWithoutReadingTheNextFence, Bounds { orphans: true, ..TAKER }, "S1");
}

#[test]
fn orphans_by_the_database_before_the_listing_are_caught() {
    is_caught_by(Bug::OrphansByDatabaseBeforeListing, ORPHANS, "G3");
}

#[test]
fn inherited_manifests_that_are_not_followed_are_caught() {
    is_caught_by(Bug::InheritedManifestsNotFollowed, RETIRE, "S1");
}

#[test]
fn a_lost_manifest_that_reaches_nothing_is_caught() {
    is_caught_by(Bug::LostManifestReachesNothing, LOSS, "S1");
}

#[test]
fn tombstones_of_a_fenced_owner_that_count_are_caught() {
    is_caught_by(Bug::TombstoneOfFencedOwnerCounts, TAKER, "S1");
}
