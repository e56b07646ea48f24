//! Pushes.

use std::time::Duration;

use lockstep_bucket::{
    Operation,
    memory::fault::{Fault, FaultRule},
};
use lockstep_coordinator::store::RoundRecord;
use lockstep_protocol::{
    id::{Generation, Seq},
    key::Key,
    problem::Reason,
    round::{Kind, Participant, Phase, Round},
};

use crate::{
    agent::Play,
    rig::{Rig, problem},
};

const EVEN: [&[u64]; 3] = [&[3, 4], &[4], &[4, 5]];

fn seq(round: &Round) -> Seq {
    match &round.kind {
        Kind::Push(push) => push.seq,
        Kind::Pull(_) => panic!("a pull"),
    }
}

fn attempts(record: &RoundRecord) -> Vec<u32> {
    record.round.participants.iter().map(|participant| participant.attempt.get()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_planned_transferred_checked_and_committed() {
    let rig = Rig::new(EVEN).await;
    let replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    assert_eq!(pipeline.generation, Generation::FIRST);
    let record = rig.ended(rig.start_push(&pipeline).await).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
    let row = rig.store.get_pipeline(&pipeline.id.into()).await.unwrap();
    let last = row.last_commit.unwrap();
    assert_eq!((last.step.get(), last.commit.round), (4, record.round.id));
    let sent = |host: &Participant| host.part.as_ref().map(|part| (part.bytes, part.bytes_uploaded));
    assert!(record.round.participants.iter().all(|host| sent(host) == Some((5, 5))), "{record:?}");
    // The second one builds on the first.
    let second = rig.ended(rig.start_push(&pipeline).await).await;
    let Kind::Push(push) = &second.round.kind else { panic!("a pull") };
    assert_eq!((push.base, push.parent), (Some(last.commit), Some(last.commit)));
    replica.stop().await;
    assert!(rig.holds(&Key::Head));
    assert_eq!(rig.overwritten(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_puts_off_or_forgets_is_ordered_again_and_counts_as_no_attempt() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[0].plays([Play::BusyFor(3)]);
    rig.agents[1].plays([Play::Forget]);
    let record = rig.ended(rig.start_push(&pipeline).await).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
    assert_eq!(attempts(&record), [1, 1, 1]);
    assert_eq!((rig.agents[0].calls("push"), rig.agents[1].calls("push")), (vec![1; 4], vec![1; 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_a_passing_failure_and_a_false_part_each_cost_one_attempt() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[0].plays([Play::Restart]);
    rig.agents[1].plays([Play::Fail(Reason::StoreUnavailable)]);
    rig.agents[2].plays([Play::Lie]);
    let round = rig.start_push(&pipeline).await;
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
    assert_eq!(attempts(&record), [2, 2, 2]);
    let causes = rig.causes(round).await.join("\n");
    for reason in [Reason::AgentRestarted, Reason::StoreUnavailable, Reason::Integrity] {
        assert!(causes.contains(reason.as_str()), "{reason} is missing in\n{causes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_attempt_can_mend_fails_the_round_and_stops_the_other_hosts() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[0].plays([Play::Hold]);
    rig.agents[2].plays([Play::Fail(Reason::SourceUnsupported)]);
    let record = rig.ended(rig.start_push(&pipeline).await).await;
    assert_eq!((record.round.phase, problem(&record).reason), (Phase::Failed, Reason::SourceUnsupported));
    assert_eq!(problem(&record).metadata["host_idx"], "2");
    rig.agents[0].called("cancel").await;
    assert!(!rig.holds(&Key::Commit(Generation::FIRST, seq(&record.round))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_stands_still_is_stopped_and_tried_again() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[1].plays([Play::Stand]);
    let round = rig.start_push(&pipeline).await;
    let record = rig.ended(round).await;
    assert_eq!((record.round.phase, attempts(&record)), (Phase::Committed, vec![1, 2, 1]));
    assert_eq!(rig.agents[1].calls("cancel"), [1]);
    assert!(
        rig.causes(round)
            .await
            .iter()
            .any(|cause| cause.contains("TRANSFER_STALLED") && cause.contains("0 of 5 bytes"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_stops_the_transfer_at_every_host() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    for agent in &rig.agents {
        agent.plays([Play::Hold]);
    }
    let round = rig.start_push(&pipeline).await;
    rig.agents[2].called("push").await;
    rig.cancel(round).await;
    let record = rig.ended(round).await;
    assert_eq!((record.round.phase, problem(&record).reason), (Phase::Cancelled, Reason::Cancelled));
    for agent in &rig.agents {
        agent.called("cancel").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_names_the_hosts_that_are_not_done() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[1].plays([Play::Hold]);
    let record = rig.ended(rig.start_push_within(&pipeline, Duration::from_secs(10)).await).await;
    assert_eq!((record.round.phase, problem(&record).reason), (Phase::Failed, Reason::RoundDeadline));
    assert_eq!(problem(&record).metadata["hosts"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_commit_is_found_out_by_reading() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.buckets.inject(FaultRule::new(Fault::LoseAnswer).operation(Operation::Create).key("/commits/").times(1));
    let record = rig.ended(rig.start_push(&pipeline).await).await;
    assert_eq!(record.round.phase, Phase::Committed);
    assert_eq!(rig.overwritten(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_committing_wins_the_key_and_the_late_commit_lands_on_it_in_vain() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    // R1: every try of the commit is under way for ever, and reads say nothing.
    rig.buckets.inject(FaultRule::new(Fault::LandLate).operation(Operation::Create).key("/commits/"));
    let round = rig.start_push(&pipeline).await;
    rig.until(round, |record| record.round.phase == Phase::Committing && record.round.problem.is_some()).await;
    rig.cancel(round).await;
    rig.until(round, |record| record.round.cancel.is_some()).await;
    let key = {
        let record = rig.store.get_round(round).await.unwrap();
        assert_eq!(record.round.phase, Phase::Committing, "a cancel is not told before it is known");
        Key::Commit(Generation::FIRST, seq(&record.round))
    };
    rig.buckets.calm();
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Cancelled);
    rig.buckets.land_all();
    let stands = rig.buckets.read("acme", &Rig::location().full_key(&key.to_string())).unwrap();
    assert!(String::from_utf8(stands.to_vec()).unwrap().contains("a better idea"), "the abort still stands");
    let next = rig.ended(rig.start_push(&pipeline).await).await;
    assert_eq!(next.round.phase, Phase::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_the_commit_never_shows_the_push_as_done() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::Create).key("/commits/"));
    let round = rig.start_push(&pipeline).await;
    let record =
        rig.until(round, |record| record.round.phase == Phase::Committing && record.round.problem.is_some()).await;
    assert_eq!(problem(&record).reason, Reason::StoreDenied);
    assert_eq!(problem(&record).metadata["http_status"], "403");
    rig.buckets.calm();
    assert_eq!(rig.ended(round).await.round.phase, Phase::Committed);
}
