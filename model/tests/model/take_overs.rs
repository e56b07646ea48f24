//! Take-overs: every reachable state of each world, safety in each, and from each the end can be reached. And each planted bug that concerns them is caught.

use lockstep_model::takeover::{Bounds, TakeOvers};
use lockstep_protocol::{latest::Access, planted::Bug};

use crate::report::{caught, closed};

fn closes(name: &str, bounds: Bounds) {
    closed(&format!("take-over, {name}"), &TakeOvers::new(bounds), &bounds);
}

fn is_caught_by(bug: Bug, bounds: Bounds, rule: &str) {
    caught(bug, &TakeOvers::new(bounds), rule);
}

const ONE: Bounds = Bounds { pushes: [1, 0, 0], takers: &[1], readers: &[], crashes: false };
const READ: Bounds = Bounds { readers: &[Access::Own], ..ONE };
const THREE: Bounds = Bounds { pushes: [1, 1, 0], takers: &[1, 2], ..ONE };

#[test]
fn one_taker_a_writer_that_is_alive_and_a_reader() {
    closes("one taker", Bounds { pushes: [2, 1, 0], crashes: true, ..READ });
}

#[test]
fn a_pipeline_takes_its_own_location_over_with_a_push_open() {
    let own = Bounds { pushes: [2, 0, 0], takers: &[0], readers: &[Access::ReadOnly], crashes: true };
    closes("own location", own);
}

#[test]
fn two_takers_and_three_generations() {
    closes("three generations", Bounds { crashes: true, ..THREE });
}

#[test]
fn two_takers_one_of_them_the_writer_itself_and_a_reader() {
    closes("own and other", Bounds { takers: &[0, 1], ..READ });
}

/// Ten million states and more: `LOCKSTEP_MODEL=large`.
#[test]
fn larger_worlds_on_demand() {
    if std::env::var("LOCKSTEP_MODEL").as_deref() != Ok("large") {
        return;
    }
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
    is_caught_by(Bug::UnconditionalFence, Bounds { takers: &[1, 2], ..ONE }, "S7");
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
fn asking_a_later_base_is_caught() {
    is_caught_by(Bug::LaterBaseDecides, THREE, "S15");
}
