//! Take-overs: every reachable state of each world, safety in each, and from each the end can be reached. And each planted bug that concerns them is caught.

use lockstep_model::takeover::{Ask, Bounds, TakeOvers};
use lockstep_protocol::{latest::Access, planted::Bug};

use crate::report::{caught, closed};

fn closes(name: &str, bounds: Bounds) {
    closed(&format!("take-over, {name}"), &TakeOvers::new(bounds), &bounds);
}

fn is_caught_by(bug: Bug, bounds: Bounds, rule: &str) {
    caught(bug, &TakeOvers::new(bounds), rule);
}

const ONE: Bounds =
    Bounds { pushes: [1, 0, 0], takers: &[Ask::Activate(1)], readers: &[], crashes: false, damage: false };
const READ: Bounds = Bounds { readers: &[Access::Own], ..ONE };
const THREE: Bounds = Bounds { pushes: [1, 1, 0], takers: &[Ask::TakeOver(1), Ask::Activate(2)], ..ONE };
/// The newest commit may be lost: then the activation ends, and somebody goes on from the one before.
const LOST: Bounds =
    Bounds { pushes: [2, 1, 0], takers: &[Ask::Activate(1), Ask::ActivateFrom(1, (1, 1))], damage: true, ..ONE };

#[test]
fn one_taker_a_writer_that_is_alive_and_a_reader() {
    closes("one taker", Bounds { pushes: [2, 1, 0], crashes: true, ..READ });
}

#[test]
fn a_pipeline_takes_its_own_location_over_with_a_push_open() {
    let own =
        Bounds { pushes: [2, 0, 0], takers: &[Ask::TakeOver(0)], readers: &[Access::ReadOnly], crashes: true, ..ONE };
    closes("own location", own);
}

#[test]
fn two_takers_and_three_generations() {
    closes("three generations", Bounds { crashes: true, ..THREE });
}

#[test]
fn two_takers_one_of_them_the_writer_itself() {
    closes("own and other", Bounds { takers: &[Ask::TakeOver(0), Ask::Activate(1)], crashes: true, ..ONE });
}

#[test]
fn an_activation_ends_where_its_base_is_lost_and_the_next_goes_on_from_an_older_commit() {
    closes("lost base", Bounds { crashes: true, ..LOST });
}

#[test]
fn whoever_takes_over_after_an_activation_that_ended_starts_where_it_would_have() {
    let next = Bounds { pushes: [1, 0, 1], takers: &[Ask::Activate(1), Ask::Activate(2)], damage: true, ..ONE };
    closes("lost base, another standby", Bounds { crashes: true, ..next });
}

/// Ten million states and more: `LOCKSTEP_MODEL=large`.
#[test]
fn larger_worlds_on_demand() {
    if std::env::var("LOCKSTEP_MODEL").as_deref() != Ok("large") {
        return;
    }
    closes("own and other, read", Bounds { takers: &[Ask::TakeOver(0), Ask::Activate(1)], ..READ });
    closes("three generations, read", Bounds { readers: &[Access::Own], ..THREE });
    closes("three generations, pushes", Bounds { pushes: [2, 1, 0], crashes: true, ..THREE });
}

#[test]
fn a_taker_that_lists_before_its_fence_is_caught() {
    is_caught_by(Bug::TakerListsBeforeItsFence, ONE, "S15");
}

#[test]
fn a_base_of_an_old_listing_is_caught() {
    is_caught_by(Bug::BaseFromOldListing, READ, "S15");
}

#[test]
fn an_unconditional_fence_is_caught() {
    is_caught_by(Bug::UnconditionalFence, Bounds { takers: &[Ask::TakeOver(1), Ask::Activate(2)], ..ONE }, "S7");
}

#[test]
fn an_unconditional_base_is_caught() {
    is_caught_by(Bug::UnconditionalBase, READ, "S7");
}

#[test]
fn a_fence_that_exists_and_is_taken_for_lost_is_caught() {
    is_caught_by(Bug::ExistingFenceIsLost, ONE, "S5");
}

#[test]
fn a_reader_without_a_second_look_is_caught() {
    is_caught_by(Bug::ReaderWithoutSecondLook, READ, "S11");
}

#[test]
fn an_activation_that_pulls_for_ever_what_is_lost_is_caught() {
    is_caught_by(Bug::LostBaseIsPulledForEver, LOST, "L1");
}

#[test]
fn an_activation_that_owns_without_its_last_pull_is_caught() {
    is_caught_by(Bug::UnpulledActivationOwns, LOST, "S12");
}

#[test]
fn a_base_that_forgets_what_an_empty_generation_started_from_is_caught() {
    is_caught_by(Bug::EmptyGenerationEndsTheChain, LOST, "S15");
}

#[test]
fn asking_a_later_base_is_caught() {
    is_caught_by(Bug::LaterBaseDecides, THREE, "S15");
}
