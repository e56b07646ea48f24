use lockstep_protocol::{
    id::{Attempt, Generation, PipelineName, RoundId, RoundNo, Term},
    order::{Admission, AgentIdentity, KnownTransfer, OrderMark, PipelineSelector, admit, check_identity, check_mark},
    problem::Reason,
};
use proptest::prelude::*;

use crate::sample;

fn identity() -> AgentIdentity {
    AgentIdentity {
        pipeline: PipelineSelector::Name(PipelineName::new("orders").unwrap()),
        slot: sample::layout(3).slot(1).unwrap(),
        incarnation: sample::incarnation(1),
        allowed: vec![sample::location()],
    }
}

#[test]
fn an_order_that_fits_is_accepted_by_name_and_by_id() {
    check_identity(&sample::header(), &identity(), &[&sample::location()]).unwrap();
    let by_id = AgentIdentity { pipeline: PipelineSelector::Id(sample::header().pipeline), ..identity() };
    check_identity(&sample::header(), &by_id, &[]).unwrap();
}

#[test]
fn each_mismatch_has_its_own_reason_and_shows_both_values() {
    let mut other_pipeline = sample::header();
    other_pipeline.pipeline_name = PipelineName::new("invoices").unwrap();
    let mut other_host = sample::header();
    other_host.slot = sample::layout(3).slot(2).unwrap();
    let mut other_size = sample::header();
    other_size.slot = sample::layout(4).slot(1).unwrap();
    let mut solo = sample::header();
    solo.slot = sample::layout(0).slot(0).unwrap();
    let mut restarted = sample::header();
    restarted.incarnation = sample::incarnation(7);
    for (header, reason, ordered, own) in [
        (other_pipeline, Reason::PipelineMismatch, "invoices".to_owned(), "orders".to_owned()),
        (other_host, Reason::HostInfoMismatch, "2/3".to_owned(), "1/3".to_owned()),
        (other_size, Reason::HostInfoMismatch, "1/4".to_owned(), "1/3".to_owned()),
        (solo, Reason::HostInfoMismatch, "solo".to_owned(), "1/3".to_owned()),
        (
            restarted,
            Reason::IncarnationMismatch,
            sample::incarnation(7).to_string(),
            sample::incarnation(1).to_string(),
        ),
    ] {
        let problem = check_identity(&header, &identity(), &[&sample::location()]).expect_err(reason.as_str());
        assert_eq!(problem.reason, reason);
        let shown = problem.metadata.get("ordered").or_else(|| problem.metadata.get("ordered_name"));
        assert_eq!(shown, Some(&ordered));
        assert_eq!(problem.metadata["own"], own);
    }
    let other = "s3://acme-ckpt/orders?endpoint=http://127.0.0.1:9001".parse().unwrap();
    let problem =
        check_identity(&sample::header(), &identity(), &[&sample::location(), &other]).expect_err("another endpoint");
    assert_eq!(problem.reason, Reason::LocationNotAllowed);
    assert!(problem.metadata["ordered"].contains("9001") && problem.metadata["allowed"].contains("9000"));
}

fn mark(generation: u64, round_no: u64, term: u64) -> OrderMark {
    OrderMark {
        generation: Generation::new(generation).unwrap(),
        round_no: RoundNo::new(round_no).unwrap(),
        term: Term::new(term).unwrap(),
    }
}

proptest! {
    /// R19: generation, round_no and term are compared in that order.
    #[test]
    fn lower_orders_are_stale_by_the_first_number_that_differs(g in 0_u64..3, r in 1_u64..4, t in 1_u64..4, hg in 0_u64..3, hr in 1_u64..4, ht in 1_u64..4) {
        let mut header = sample::header();
        header.generation = Generation::new(g).unwrap();
        header.round_no = RoundNo::new(r).unwrap();
        header.term = Term::new(t).unwrap();
        let verdict = check_mark(&header, Some(mark(hg, hr, ht)));
        if (g, r, t) >= (hg, hr, ht) {
            prop_assert!(verdict.is_ok());
        } else {
            let reason = if g < hg { Reason::StaleGeneration } else if r < hr { Reason::StaleRound } else { Reason::StaleTerm };
            prop_assert_eq!(verdict.unwrap_err().reason, reason);
        }
        prop_assert!(check_mark(&header, None).is_ok());
    }
}

#[test]
fn one_transfer_at_a_time() {
    let header = sample::header();
    let known = |round: RoundId, attempt: u32, running: bool| {
        Some(KnownTransfer { round, attempt: Attempt::new(attempt).unwrap(), running })
    };
    let other = RoundId::new(sample::uuid(0x3001));
    assert_eq!(admit(&header, None), Admission::Start);
    assert_eq!(admit(&header, known(header.round, 2, true)), Admission::Known);
    assert_eq!(admit(&header, known(header.round, 2, false)), Admission::Known);
    assert_eq!(admit(&header, known(header.round, 1, false)), Admission::Start);
    assert_eq!(admit(&header, known(other, 9, false)), Admission::Start);
    assert!(
        matches!(admit(&header, known(header.round, 1, true)), Admission::CancelRunning(p) if p.reason == Reason::TransferInProgress)
    );
    assert!(
        matches!(admit(&header, known(other, 9, true)), Admission::CancelRunning(p) if p.metadata["round"] == other.to_string())
    );
    assert!(
        matches!(admit(&header, known(header.round, 3, false)), Admission::Refuse(p) if p.reason == Reason::StaleAttempt)
    );
}
