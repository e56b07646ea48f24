//! Each bug that concerns pull rounds, planted alone, is caught; the shortest trace is printed.

use lockstep_model::rounds::pull::{Bounds, From, Pull};
use lockstep_protocol::planted::Bug;

use crate::report::caught_only;

fn caught(bug: Bug, bounds: Bounds, rule: &str) {
    caught_only(bug, || Pull::new(bounds), rule);
}

const SOLO: Bounds = Bounds { hosts: 1, ..Bounds::CALM };

#[test]
fn an_install_before_it_is_stored_is_caught() {
    caught(Bug::EffectsBeforeStored, Bounds { cancel: true, ..SOLO }, "S12");
}

#[test]
fn success_at_the_first_host_is_caught() {
    caught(Bug::SuccessAtTheFirstHost, Bounds::CALM, "S12");
}

#[test]
fn orders_of_an_older_round_are_caught() {
    caught(Bug::OrderOfRoundsNotCompared, Bounds { rounds: 2, late_orders: 1, ..SOLO }, "S12");
}

#[test]
fn installed_without_one_more_look_is_caught() {
    caught(Bug::ConfirmSkipped, Bounds { lost_disks: 1, ..Bounds::CALM }, "S12");
}

#[test]
fn a_cancel_while_installing_is_caught() {
    caught(Bug::CancelWhileInstalling, Bounds { cancel: true, ..SOLO }, "S12");
}

#[test]
fn an_accepted_install_taken_for_done_is_caught() {
    caught(Bug::AcceptedTakenAsInstalled, SOLO, "S12");
}

#[test]
fn older_checkpoints_that_stay_are_caught() {
    caught(Bug::OtherCheckpointsStay, SOLO, "S12");
}

#[test]
fn a_lost_host_that_is_not_pulled_again_is_caught() {
    caught(Bug::LostHostIsNotPulledAgain, Bounds { lost_disks: 1, ..SOLO }, "L1");
}

#[test]
fn waiting_for_the_only_copy_of_a_lost_host_is_caught() {
    let bounds = Bounds { sources: [From::Local; 2], lost_disks: 1, ..SOLO };
    caught(Bug::WaitsForWhatIsGone, bounds, "L1");
}

#[test]
fn a_write_without_version_and_term_is_caught() {
    caught(Bug::NoGuardInWhere, SOLO, "S6");
}

#[test]
fn another_checkpoint_in_the_same_attempt_is_caught() {
    caught(Bug::ResolvedAnewInTheSameAttempt, Bounds { retired: 1, ..SOLO }, "S8");
}
