//! Push rounds: every reachable state of each world, safety in each, and from each the end can be reached.

use lockstep_model::rounds::push::{Bounds, Push, Reached};

use crate::report::{closed, large};

/// The world is closed, and what it is for does happen in it.
fn closes(name: &str, bounds: Bounds, reached: &[Reached]) {
    let world = Push::new(bounds);
    closed(&format!("push, {name}"), &world, &bounds);
    let (rounds, decisions) = world.distinct();
    println!("  {rounds} distinct rounds, {decisions} distinct decisions");
    for outcome in reached {
        assert!(world.has_reached(*outcome), "{name}: {outcome:?} never happens");
    }
}

const SOLO: Bounds = Bounds { hosts: 1, ..Bounds::CALM };

#[test]
fn agents_restart_and_orders_and_reports_come_late_and_twice() {
    let bounds =
        Bounds { restarts: 1, unreachable: 1, late_orders: 1, late_reports: 1, deadline: large(), ..Bounds::CALM };
    closes("agents", bounds, &[Reached::Committed, Reached::Failed]);
}

#[test]
fn the_database_loses_answers_and_writes_late() {
    let bounds =
        Bounds { restarts: 1, unreachable: large().into(), writes: 1, cancel: true, deadline: true, ..Bounds::CALM };
    closes("database", bounds, &[Reached::Committed, Reached::Failed, Reached::Cancelled, Reached::CommitUnknown]);
}

#[test]
fn a_decision_is_put_late_while_somebody_cancels_takes_over_and_reads() {
    let bounds = Bounds { puts: 1 + u8::from(large()), writes: 1, cancel: true, taker: true, reader: true, ..SOLO };
    let reached = [
        Reached::Committed,
        Reached::Cancelled,
        Reached::AbortStands,
        Reached::Fenced,
        Reached::Included,
        Reached::CommitUnknown,
    ];
    closes("decision", bounds, &reached);
}

#[test]
fn three_claims_of_two_replicas() {
    let bounds =
        Bounds { claims: 3, puts: 1, writes: 1 + u8::from(large()), restarts: 1, cancel: true, deadline: true, ..SOLO };
    closes("claims", bounds, &[Reached::Committed, Reached::Cancelled, Reached::AbortStands, Reached::CommitUnknown]);
}

#[test]
fn orders_of_the_first_round_arrive_in_the_second() {
    let bounds = Bounds { rounds: 2, restarts: 1, late_orders: 1, unreachable: large().into(), ..Bounds::CALM };
    closes("two rounds", bounds, &[Reached::Committed, Reached::Second]);
}

#[test]
fn the_first_decision_is_late_and_a_second_round_and_a_taker_come() {
    let bounds = Bounds { rounds: 2, puts: 1, cancel: true, taker: true, reader: large(), ..SOLO };
    let reached = [Reached::Second, Reached::Cancelled, Reached::AbortStands, Reached::Fenced, Reached::Included];
    closes("two decisions", bounds, &reached);
}

#[test]
fn three_hosts() {
    let bounds = Bounds { hosts: 3, restarts: 1, unreachable: large().into(), ..Bounds::CALM };
    closes("three hosts", bounds, &[Reached::Committed]);
}
