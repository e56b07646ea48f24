//! Each bug that concerns push rounds, planted alone, is caught; the shortest trace is printed.

use lockstep_model::{
    explore::{Options, Outcome, explore},
    rounds::push::{Bounds, Push},
};
use lockstep_protocol::planted::Bug;

use crate::report::caught_only;

fn caught(bug: Bug, bounds: Bounds, rule: &str) {
    caught_only(bug, || Push::new(bounds), rule);
}

const SOLO: Bounds = Bounds { hosts: 1, ..Bounds::CALM };
const STORE: Bounds = Bounds { puts: 1, ..SOLO };
const TAKER: Bounds = Bounds { taker: true, ..STORE };
const CANCEL: Bounds = Bounds { cancel: true, ..STORE };

#[test]
fn an_acknowledgement_without_the_fence_check_is_caught() {
    caught(Bug::AckWithoutFenceCheck, TAKER, "S15");
}

#[test]
fn a_fence_check_before_the_commit_stood_is_caught() {
    caught(Bug::FenceCheckBeforeCommit, TAKER, "S15");
}

#[test]
fn an_abort_only_in_the_database_is_caught() {
    caught(Bug::AbortOnlyInDatabase, CANCEL, "S5");
}

#[test]
fn a_deadline_in_committing_is_caught() {
    caught(Bug::DeadlineInCommitting, Bounds { deadline: true, ..STORE }, "S5");
}

#[test]
fn an_unknown_put_taken_as_failed_is_caught() {
    caught(Bug::UnknownTakenAsFailed, STORE, "S5");
}

#[test]
fn an_existing_key_taken_as_failed_is_caught() {
    caught(Bug::ExistsTakenAsFailed, STORE, "S5");
}

#[test]
fn an_existing_key_taken_as_ours_is_caught() {
    caught(Bug::ExistsTakenAsMine, CANCEL, "S5");
}

#[test]
fn a_round_fenced_without_reading_the_base_is_caught() {
    caught(Bug::FencedWithoutReadingTheBase, TAKER, "S5");
}

#[test]
fn an_unconditional_commit_is_caught() {
    caught(Bug::UnconditionalCommitPut, CANCEL, "S3");
}

#[test]
fn bytes_put_before_they_are_stored_are_caught() {
    caught(Bug::EffectsBeforeStored, SOLO, "S4");
}

#[test]
fn a_write_without_version_is_caught() {
    caught(Bug::NoVersionInWhere, Bounds { writes: 1, ..SOLO }, "S6");
}

#[test]
fn a_write_without_version_and_term_is_caught() {
    caught(Bug::NoGuardInWhere, SOLO, "S6");
}

#[test]
fn reports_of_another_attempt_are_caught() {
    caught(Bug::AttemptNotComparedInReports, Bounds { unreachable: 1, late_reports: 1, ..SOLO }, "S8");
}

#[test]
fn orders_and_reports_of_another_process_are_caught() {
    caught(Bug::IncarnationNotCompared, Bounds { restarts: 1, late_orders: 1, ..SOLO }, "S7");
}

#[test]
fn keys_without_the_attempt_are_caught() {
    caught(Bug::AttemptNotInKeys, Bounds { unreachable: 1, ..SOLO }, "S7");
}

#[test]
fn success_at_the_first_host_is_caught() {
    caught(Bug::SuccessAtTheFirstHost, Bounds::CALM, "L1");
}

#[test]
fn a_second_active_round_is_caught() {
    caught(Bug::SecondRoundAdmitted, Bounds { rounds: 2, ..SOLO }, "S13");
}

/// A claim raises term and version together, so a stale term is always a stale version too. The term in the WHERE clause is a second lock on the
/// same door: without it nothing can go wrong that this world has.
#[test]
fn a_write_without_the_term_is_covered_by_its_version() {
    let bounds = Bounds { writes: 1, restarts: 1, claims: 3, ..SOLO };
    let options = Options { planted: Some(Bug::NoTermInWhere), ..Options::default() };
    let (with, without) = (explore(&Push::new(bounds), &options), explore(&Push::new(bounds), &Options::default()));
    assert_eq!((with.outcome, with.states), (Outcome::Closed, without.states));
}
