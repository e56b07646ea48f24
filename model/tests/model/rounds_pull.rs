//! Pull rounds: every reachable state of each world, safety in each, and from each the end can be reached.

use lockstep_model::rounds::pull::{Bounds, From, Pull, Reached};

use crate::report::{closed, large};

/// The world is closed, and what it is for does happen in it.
fn closes(name: &str, bounds: Bounds, reached: &[Reached]) -> Pull {
    let world = Pull::new(bounds);
    closed(&format!("pull, {name}"), &world, &bounds);
    let (rounds, decisions) = world.distinct();
    println!("  {rounds} distinct rounds, {decisions} distinct decisions");
    for outcome in reached {
        assert!(world.has_reached(*outcome), "{name}: {outcome:?} never happens");
    }
    assert!(!world.has_reached(Reached::Capped), "{name}: attempts met the model's own bound");
    world
}

const TWO: Bounds = Bounds { rounds: 2, ..Bounds::CALM };

#[test]
fn hosts_restart_and_lose_their_disks_after_staged_and_after_installed() {
    let bounds = Bounds { restarts: 1, lost_disks: 1, unreachable: large().into(), ..Bounds::CALM };
    closes("disks", bounds, &[Reached::Installed, Reached::PulledAgain, Reached::NotConfirmed]);
}

#[test]
fn hosts_are_unreachable_and_lose_their_disks() {
    let bounds = Bounds { lost_disks: 1, unreachable: 1, deadline: large(), ..Bounds::CALM };
    closes("unreachable", bounds, &[Reached::Installed, Reached::PulledAgain, Reached::NotConfirmed]);
}

#[test]
fn the_database_loses_answers_and_writes_late() {
    let bounds =
        Bounds { restarts: 1, writes: 1, cancel: true, deadline: true, claims: 2 + u8::from(large()), ..Bounds::CALM };
    closes("database", bounds, &[Reached::Installed, Reached::Cancelled, Reached::Failed]);
}

#[test]
fn a_newer_pull_supersedes_one_that_is_installing() {
    let bounds = Bounds { lost_disks: 1, deadline: large(), ..TWO };
    closes("superseded", bounds, &[Reached::Superseded, Reached::Second, Reached::PulledAgain]);
}

#[test]
fn orders_of_a_superseded_pull_arrive_late() {
    let bounds = Bounds { late_orders: 1, restarts: large().into(), ..TWO };
    closes("late orders", bounds, &[Reached::Superseded, Reached::Second]);
}

#[test]
fn orders_of_a_superseded_pull_arrive_late_at_a_host_that_restarts() {
    let bounds =
        Bounds { late_orders: 1 + u8::from(large()), restarts: 1, lost_disks: large().into(), hosts: 1, ..TWO };
    closes("late orders, solo", bounds, &[Reached::Superseded, Reached::Second]);
}

#[test]
fn a_local_pull_whose_only_copy_is_lost_ends_and_the_next_one_succeeds() {
    let bounds = Bounds { sources: [From::Local, From::Location], lost_disks: 1, restarts: large().into(), ..TWO };
    closes("local", bounds, &[Reached::Failed, Reached::Superseded, Reached::Second]);
}

#[test]
fn a_local_pull_whose_copy_is_lost_takes_it_from_the_commit() {
    let bounds = Bounds { sources: [From::LocalAndCommit; 2], lost_disks: 1, restarts: 1, ..Bounds::CALM };
    closes("local, committed", bounds, &[Reached::Installed, Reached::PulledAgain]);
}

#[test]
fn three_hosts() {
    let bounds = Bounds { hosts: 3, lost_disks: 1, ..Bounds::CALM };
    closes("three hosts", bounds, &[Reached::Installed, Reached::PulledAgain, Reached::NotConfirmed]);
}

#[test]
fn a_source_that_its_owner_retires_is_chosen_anew_and_every_host_has_the_other_one() {
    let bounds = Bounds { retired: 1 + u8::from(large()), ..Bounds::CALM };
    let world = closes("retired", bounds, &[Reached::Installed, Reached::ChosenAnew]);
    assert!(!world.has_reached(Reached::Failed), "there is always another one");
}

#[test]
fn a_source_is_retired_while_hosts_restart_and_orders_of_the_retired_one_arrive_late() {
    let hosts = 1 + u8::from(large());
    let bounds = Bounds { hosts, retired: 1, restarts: 1, late_orders: 1, ..Bounds::CALM };
    closes("retired, late orders", bounds, &[Reached::Installed, Reached::ChosenAnew]);
}

#[test]
fn a_source_is_retired_while_the_database_loses_answers_and_writes_late() {
    let bounds = Bounds { retired: 1, writes: 1, cancel: true, deadline: true, ..Bounds::CALM };
    closes("retired, database", bounds, &[Reached::ChosenAnew, Reached::Cancelled, Reached::Failed]);
}

#[test]
fn a_disk_that_is_lost_once_hosts_install_what_was_retired_ends_the_pull_and_the_next_one_succeeds() {
    let bounds = Bounds { hosts: 1 + u8::from(large()), retired: 1, lost_disks: 1, ..TWO };
    closes("retired, disks", bounds, &[Reached::Failed, Reached::ChosenAnew, Reached::Second]);
}
