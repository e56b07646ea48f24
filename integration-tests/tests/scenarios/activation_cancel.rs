//! Scenario 27, where somebody thinks better of it: an activation is stopped before its fence is put, and only then.

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, agent_key},
    wait,
};

use crate::{
    activation::{pushed, request, states},
    pair::{HEIR, owner_and},
    standby::{holds, rounds},
};

async fn reaches(heir: &Cluster, phase: &str) {
    wait::until(&format!("the activation is {phase}"), || async {
        let filter = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
        let trail = heir.client.list_audit_events(filter, 1000).await.unwrap();
        if trail.iter().any(|event| event.to_phase == phase) { Ok(()) } else { Err(trail.len()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_an_activation_is_cancelled_while_its_hosts_are_warmed_and_nothing_is_fenced() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let before = states(&heir);
    heir.client.stop_standby(HEIR).await.unwrap();
    pushed(&owner, 30).await;
    let slow = FaultRule::new(FaultAction::Hang).method("GET").key_prefix("orders/host1/").access_key(agent_key(1));
    let slow = owner.s3.faults().add(slow);
    let waiting = tokio::spawn({
        let client = heir.client.clone();
        async move { client.activate(request()).await }
    });
    let pull = wait::until("the hosts are being warmed", || async {
        let rounds = rounds(&heir).await;
        let last = rounds.last().cloned().unwrap();
        if last.phase() == RoundPhase::Transferring { Ok(last) } else { Err(last.phase) }
    })
    .await;
    let cancelled = lockstep(&heir, &["standby", "cancel", HEIR, "--cause", "the primary is back"]);
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let told = waiting.await.unwrap().unwrap_err();
    assert_eq!(told.reason(), "CANCELLED", "{told}");
    assert!(told.to_string().contains("the primary is back"), "{told}");
    // Nor does its pull go on.
    let pull = heir.client.wait_round(&pull.id).await.unwrap();
    assert_eq!(pull.phase(), RoundPhase::Cancelled, "{:?}", pull.problem);
    assert!(owner.s3.faults().remove(slow));
    assert_eq!(states(&heir), before);
    assert_eq!(owner.s3.admin().keys(BUCKET, "orders/fences/").unwrap().len(), 1);
    // The owner is undisturbed, and the standby a standby as before: it may also be activated later.
    let (newest, expected) = pushed(&owner, 40).await;
    let done = heir.client.activate(request()).await.unwrap();
    assert_eq!((done.generation, done.newest.unwrap().round), (2, newest.id));
    assert_eq!(states(&heir), expected);
    let nothing = lockstep(&heir, &["standby", "cancel", HEIR]);
    assert_eq!(nothing.document["error"]["reason"].as_str(), Some("ROUND_NOT_CANCELLABLE"), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_an_activation_that_is_fencing_is_neither_cancelled_nor_deleted() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let fence = "orders/fences/00000000000000000002.json";
    let held = FaultRule::new(FaultAction::Hang).method("PUT").key_prefix(fence).access_key(COORDINATOR_KEY);
    let held = owner.s3.faults().add(held);
    let waiting = tokio::spawn({
        let client = heir.client.clone();
        async move { client.activate(request()).await }
    });
    reaches(&heir, "fencing").await;
    let refused = heir.client.cancel_take_over(HEIR, "", "too late").await.unwrap_err();
    assert_eq!(refused.reason(), "ROUND_NOT_CANCELLABLE", "{refused}");
    let refused = heir.client.delete_pipeline(HEIR, "").await.unwrap_err();
    assert_eq!(refused.reason(), "TAKE_OVER_IN_PROGRESS", "{refused}");
    assert!(refused.to_string().contains("is fencing: wait for it"), "{refused}");
    assert!(owner.s3.faults().remove(held));
    assert_eq!(waiting.await.unwrap().unwrap().generation, 2);
    heir.client.delete_pipeline(HEIR, "").await.unwrap();
}
