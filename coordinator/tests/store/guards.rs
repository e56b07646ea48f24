//! Guarded writes: version and term (S6), leases, progress, cancels.

use std::time::Duration;

use chrono::Utc;
use lockstep_coordinator::store::{Applied, Change, HostProgress};
use lockstep_protocol::{
    fence::{FenceBase, Successor},
    id::{Attempt, Generation},
    problem::{Problem, Reason},
    round::{CancelRequest, DecisionKnown, Event, Kind, ParticipantPhase, Phase, decide},
};

use crate::rig::{
    LEASE, Rig, admitted, alice, events_of_a_push, part_done, planned, pull, push, refused, replica, resolved_locally,
};

#[tokio::test]
async fn each_stored_state_of_a_push_is_read_back_exactly() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let mut round = rig.claim().await;
    for event in events_of_a_push(&round, 10) {
        let version = round.version;
        round = rig.step(round, event).await;
        assert_eq!(round.version, version + 1);
        assert_eq!(rig.store.get_round(round.id).await.unwrap().round, round);
    }
    let Kind::Push(state) = &round.kind else { panic!("a push") };
    let digest = lockstep_protocol::digest::Digest::of(state.commit_bytes.as_ref().unwrap().as_bytes());
    assert_eq!(state.committed.unwrap().digest, digest);
}

#[tokio::test]
async fn a_backed_off_host_and_a_pull_read_back_exactly() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    let round = rig.step(round.clone(), planned(&round, 10)).await;
    let failed = Event::HostFailed {
        host_idx: 1,
        attempt: Attempt::FIRST,
        problem: Problem::new(Reason::StoreUnavailable, "reset").with("key", "host1/x"),
        jitter: 333,
    };
    let round = rig.step(round, failed).await;
    assert_eq!(round.participants[1].phase, ParticipantPhase::BackingOff);
    assert_eq!(rig.store.get_round(round.id).await.unwrap().round, round);
    let request = CancelRequest { by: "bob".to_owned(), cause: "enough".to_owned() };
    let round = rig.step(round, Event::CancelRequested(request)).await;
    assert_eq!(rig.store.get_round(round.id).await.unwrap().round, round);

    admitted(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    let round = rig.step(round.clone(), resolved_locally(&round, 10)).await;
    assert_eq!(rig.store.get_round(round.id).await.unwrap().round, round);
}

#[tokio::test]
async fn a_write_with_a_stale_version_or_term_changes_nothing() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let stale = rig.claim().await;
    let current = rig.step(stale.clone(), planned(&stale, 10)).await;
    let before = rig.store.get_round(current.id).await.unwrap();
    let trail = || rig.store.list_audit(Default::default(), Default::default());
    let events = trail().await.unwrap();

    let decision = decide(&stale, &planned(&stale, 11), Utc::now());
    assert_eq!(rig.store.apply(&stale, &decision, &replica()).await.unwrap(), Applied::Moved);
    let mut other_term = current.clone();
    other_term.term = other_term.term.next();
    let decision = decide(&other_term, &part_done(&current, 10, 0), Utc::now());
    assert_eq!(rig.store.apply(&other_term, &decision, &replica()).await.unwrap(), Applied::Moved);

    assert_eq!(rig.store.get_round(current.id).await.unwrap(), before);
    assert_eq!(trail().await.unwrap(), events);
}

#[tokio::test]
async fn of_two_replicas_one_claims_a_round_and_the_old_one_loses_its_right_to_write() {
    let rig = Rig::new().await;
    let other = rig.another().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let (one, two) = tokio::join!(rig.store.claim_round("one", LEASE), other.claim_round("two", LEASE));
    let claims: Vec<_> = [one.unwrap(), two.unwrap()].into_iter().flatten().collect();
    let [claimed] = claims.as_slice() else { panic!("{} claims", claims.len()) };
    let old = claimed.round.clone();
    assert_eq!((old.term.get(), old.version), (1, 2));
    assert!(rig.store.claim_round("three", LEASE).await.unwrap().is_none());

    // The lease runs out.
    assert!(rig.store.renew(old.id, old.term, Duration::ZERO).await.unwrap());
    let new = other.claim_round("two", LEASE).await.unwrap().expect("the lease is over").round;
    assert_eq!(new.term, old.term.next());
    assert!(!rig.store.renew(old.id, old.term, LEASE).await.unwrap());
    let decision = decide(&old, &planned(&old, 10), Utc::now());
    assert_eq!(rig.store.apply(&old, &decision, &replica()).await.unwrap(), Applied::Moved);
    let decision = decide(&new, &planned(&new, 10), Utc::now());
    assert!(matches!(other.apply(&new, &decision, &replica()).await.unwrap(), Applied::Stored(_)));
}

#[tokio::test]
async fn a_row_that_another_replica_is_claiming_is_skipped_and_not_waited_for() {
    use sqlx::Connection;
    let rig = Rig::new().await;
    for name in ["a", "b"] {
        let pipeline = rig.pipeline(name).await;
        admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    }
    let mut sql = rig.sql().await;
    let mut held = sql.begin().await.unwrap();
    let locked: uuid::Uuid = sqlx::query_scalar("SELECT id FROM rounds ORDER BY created_at LIMIT 1 FOR UPDATE")
        .fetch_one(&mut *held)
        .await
        .unwrap();
    let claimed = rig.store.claim_rounds("one", LEASE, 10).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_ne!(claimed[0].round.id.uuid(), locked);
    held.rollback().await.unwrap();
    assert_eq!(rig.store.claim_rounds("one", LEASE, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_released_round_is_claimed_at_once() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    // Somebody else's term hands nothing back.
    rig.store.release(round.id, round.term.next(), &replica()).await.unwrap();
    assert!(rig.store.claim_round("two", LEASE).await.unwrap().is_none());
    rig.store.release(round.id, round.term, &replica()).await.unwrap();
    assert_eq!(rig.store.claim_round("two", LEASE).await.unwrap().unwrap().round.term, round.term.next());
}

#[tokio::test]
async fn several_leases_are_renewed_at_once_and_lost_ones_are_left_out() {
    let rig = Rig::new().await;
    for name in ["a", "b"] {
        let pipeline = rig.pipeline(name).await;
        admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    }
    let rounds = rig.store.claim_rounds("one", LEASE, 10).await.unwrap();
    let [a, b] = rounds.as_slice() else { panic!("two rounds") };
    let held = vec![(a.round.id, a.round.term), (b.round.id, b.round.term.next())];
    assert_eq!(rig.store.renew_all(held, LEASE).await.unwrap(), [a.round.id]);
}

fn progress(attempt: u32, bytes_done: u64) -> HostProgress {
    HostProgress {
        host_idx: 1,
        attempt: Attempt::new(attempt).unwrap(),
        bytes_done,
        bytes_total: Some(100),
        files_done: 1,
        files_total: None,
        bytes_transferred: bytes_done / 2,
        bytes_per_second: 5,
    }
}

#[tokio::test]
async fn progress_needs_the_present_term_and_never_shows_an_older_attempt() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    assert!(rig.store.save_progress(round.id, round.term, &[progress(2, 50)]).await.unwrap());
    assert!(!rig.store.save_progress(round.id, round.term.next(), &[progress(3, 60)]).await.unwrap());
    assert!(rig.store.save_progress(round.id, round.term, &[progress(1, 99)]).await.unwrap());
    let record = rig.store.get_round(round.id).await.unwrap();
    assert_eq!(record.progress, [progress(2, 50)]);
    // Progress is no change of the round.
    assert_eq!(record.round, round);
}

#[tokio::test]
async fn a_cancel_stands_beside_the_round_and_the_first_one_counts() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let round = admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap()).round;
    assert_eq!(rig.store.pending_cancels(vec![round.id]).await.unwrap(), []);
    let request = |by: &str| CancelRequest { by: by.to_owned(), cause: "wrong step".to_owned() };
    let record = rig.store.request_cancel(round.id, request("alice"), &alice()).await.unwrap();
    assert_eq!(record.cancel_requested, Some(request("alice")));
    assert_eq!(record.round, round, "only who drives a round changes it");
    rig.store.request_cancel(round.id, request("bob"), &alice()).await.unwrap();
    assert_eq!(rig.store.pending_cancels(vec![round.id]).await.unwrap(), [(round.id, request("alice"))]);

    let driven = rig.claim().await;
    let ended = rig.step(driven, Event::CancelRequested(request("alice"))).await;
    assert_eq!(ended.phase, Phase::Cancelled);
    assert_eq!(rig.store.get_round(round.id).await.unwrap().round.cancel, Some(request("alice")));
}

#[tokio::test]
async fn what_can_not_be_cancelled_is_refused_and_leaves_no_request() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let committed = rig.commit(&pipeline, 10).await;
    let request = CancelRequest { by: "alice".to_owned(), cause: "late".to_owned() };
    let error = rig.store.request_cancel(committed.id, request.clone(), &alice()).await.unwrap_err();
    refused(error, Reason::RoundNotCancellable);
    assert_eq!(rig.store.pending_cancels(vec![committed.id]).await.unwrap(), []);
    let nobody = lockstep_protocol::id::RoundId::new(uuid::Uuid::from_u128(1));
    let error = rig.store.request_cancel(nobody, request, &alice()).await.unwrap_err();
    refused(error, Reason::RoundNotFound);
}

#[tokio::test]
async fn a_fenced_push_fences_its_pipeline_in_the_same_transaction() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let mut round = rig.claim().await;
    let mut events = events_of_a_push(&round, 10);
    events.pop();
    for event in events {
        round = rig.step(round, event).await;
    }
    let base = FenceBase { generation: Generation::FIRST.next(), newest: None, tombstones: Vec::new() };
    let settled =
        Event::Settled { decision: DecisionKnown::CommitStands, successor: Some(Successor::Base(base)), jitter: 0 };
    let round = rig.step(round, settled).await;
    assert_eq!(round.phase, Phase::Failed);
    let row = rig.store.get_pipeline(&pipeline.id.into()).await.unwrap();
    assert_eq!(row.fenced, round.problem);
    assert_eq!(row.last_commit, None);
    let problem = refused(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap_err(), Reason::Fenced);
    assert_eq!(problem.metadata["newer_generation"], "2");
    refused(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap_err(), Reason::Fenced);
}

#[tokio::test]
async fn a_message_with_a_nul_character_does_not_make_a_round_unwritable() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    let problem = Problem::new(Reason::NoCommonCheckpoint, "agent says \0").with("path\0", "a\0b");
    let round = rig.step(round, Event::Refused(problem)).await;
    let stored = rig.store.get_round(round.id).await.unwrap().round.problem.unwrap();
    assert_eq!(stored.message, "agent says \u{fffd}");
    assert_eq!(stored.metadata["path\u{fffd}"], "a\u{fffd}b");
}

#[tokio::test]
async fn another_replica_hears_of_an_admission() {
    let rig = Rig::new().await;
    let other = rig.another().await;
    let pipeline = rig.pipeline("orders").await;
    let mut changes = other.changes();
    // LISTEN stands once a subscriber hears of anything from the other side; until then each notice is repeated.
    let round = admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap()).round;
    let heard = async {
        loop {
            let request = CancelRequest { by: "alice".to_owned(), cause: "again".to_owned() };
            rig.store.request_cancel(round.id, request, &alice()).await.unwrap();
            let next = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
            if next == Ok(Change::Cancel(round.id)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heard).await.expect("a hint arrives");
}
