//! What goes silent, or says what nobody expects: a line to an agent, a decision key.

use std::time::Duration;

use bytes::Bytes;
use lockstep_coordinator::{dispatch::DispatchOptions, store::RoundRecord};
use lockstep_devkit::line::Line;
use lockstep_protocol::{
    key::Key,
    round::{Kind, Phase},
};

use crate::{
    agent::Play,
    rig::{Rig, problem},
};

const EVEN: [&[u64]; 3] = [&[4], &[4], &[4]];

#[tokio::test(flavor = "multi_thread")]
async fn a_line_to_an_agent_that_goes_dead_while_it_transfers_costs_no_attempt() {
    let mut rig = Rig::new(EVEN).await;
    let server = rig.agents[0].address.trim_start_matches("http://").parse().unwrap();
    let line = Line::to(server).await.unwrap();
    rig.agents[0].address = format!("http://{}", line.address());
    // How long an agent may be silent: nothing that a busy machine adds to the keepalive's two seconds counts.
    let unreachable_after = Duration::from_secs(30);
    let _replica = rig.replica_with(DispatchOptions { unreachable_after, ..Rig::options("one") });
    let pipeline = rig.pipeline("orders").await;
    rig.agents[0].plays([Play::Hold]);
    let round = rig.start_push(&pipeline).await;
    rig.agents[0].called("push").await;
    line.go_dead();
    rig.agents[0].release();
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
    assert!(record.round.participants.iter().all(|host| host.attempt.get() == 1), "{record:?}");
}

fn tries(record: &RoundRecord) -> u32 {
    match &record.round.kind {
        Kind::Push(push) => push.settle.tries,
        Kind::Pull(_) => 0,
    }
}

/// Only the decision, or the base of the next fence, leads out of `Committing`: what can't be read is neither. Until somebody repairs the bucket or takes
/// over, the round says why it waits and when it asks next.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_key_that_cannot_be_read_shows_in_the_round_until_it_is_repaired() {
    let rig = Rig::new(EVEN).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    rig.agents[0].plays([Play::Hold]);
    let round = rig.start_push(&pipeline).await;
    rig.agents[0].called("push").await;
    let Kind::Push(push) = rig.store.get_round(round).await.unwrap().round.kind else { panic!("a pull") };
    let key = Rig::location().full_key(&Key::Commit(pipeline.generation, push.seq).to_string());
    rig.buckets.tamper("acme", &key, Some(Bytes::from_static(b"not a decision")));
    rig.agents[0].release();
    let stuck = rig.until(round, |record| tries(record) >= 3).await;
    assert_eq!(stuck.round.phase, Phase::Committing);
    assert!(problem(&stuck).message.contains("commits/"), "{:?}", problem(&stuck));
    let Kind::Push(push) = &stuck.round.kind else { panic!("a pull") };
    assert!(push.settle.retry_at.is_some(), "{push:?}");
    rig.buckets.tamper("acme", &key, None);
    let record = rig.ended(round).await;
    assert_eq!((record.round.phase, record.round.problem), (Phase::Committed, None));
}
