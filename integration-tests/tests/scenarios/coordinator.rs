//! Coordinators that die, pause and come in twos; idempotency; the audit trail.

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE, agent_key, client_of},
    wait,
};
use sqlx::{Connection as _, PgConnection, Row as _};

fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("a", format!("{} {step}", host.idx).as_bytes())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_in_the_middle_of_a_push_finishes_it_when_it_is_started_again() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let fault = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject");
    let fault = cluster.s3.faults().add(fault);
    let round = cluster.start_push().await;
    let before = cluster.round_when(&round.id, "it transfers", |round| round.phase() == RoundPhase::Transferring).await;
    cluster.kill_coordinator();
    cluster.s3.faults().remove(fault);
    cluster.start_coordinator().await;
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Committed, "{:?}", round.problem);
    assert!(round.term > before.term, "another claim, another term");
    assert!(round.participants.iter().all(|p| p.attempt == 1), "nothing was sent twice: {:?}", round.participants);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_while_its_commit_put_is_unanswered_ends_in_that_commit() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let fault = FaultRule::new(FaultAction::HangAfterWrite)
        .access_key(COORDINATOR_KEY)
        .operation("PutObject")
        .key_contains("/commits/");
    let fault = cluster.s3.faults().add(fault);
    let round = cluster.start_push().await;
    cluster.round_when(&round.id, "it commits", |round| round.phase() == RoundPhase::Committing).await;
    wait::until("the write has happened", || async {
        let keys = cluster.s3.admin().keys(BUCKET, "orders/commits/").map_err(|error| error.to_string())?;
        if keys.is_empty() { Err("no commit yet".to_owned()) } else { Ok(()) }
    })
    .await;
    cluster.kill_coordinator();
    let bytes =
        cluster.s3.admin().read(BUCKET, &cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap()[0]).unwrap();
    cluster.s3.faults().remove(fault);
    cluster.start_coordinator().await;
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Committed, "{:?}", round.problem);
    let keys = cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(cluster.s3.admin().read(BUCKET, &keys[0]).unwrap(), bytes, "the same bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_while_installing_finishes_the_pull_when_it_is_started_again() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let before: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    let fault = FaultRule::new(FaultAction::Hang).access_key(agent_key(2)).operation("GetObject");
    let fault = cluster.s3.faults().add(fault);
    let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    cluster.round_when(&round.id, "it transfers", |round| round.phase() == RoundPhase::Transferring).await;
    cluster.kill_coordinator();
    cluster.s3.faults().remove(fault);
    cluster.start_coordinator().await;
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), RoundPhase::Installed, "{:?}", round.problem);
    let after: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    assert_eq!(after, before);
}

/// R4: a paused coordinator wakes after its lease. Its writes carry an old term and change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_do_not_corrupt_a_round_when_one_sleeps_through_its_lease() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let fault = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject");
    let fault = cluster.s3.faults().add(fault);
    let round = cluster.start_push().await;
    let first = cluster.round_when(&round.id, "it transfers", |round| round.phase() == RoundPhase::Transferring).await;
    cluster.pause_coordinator(true);
    let (_second, address) = cluster.another_coordinator("second", "127.0.0.1:0", "coordinator-secret").await;
    let second = client_of(&format!("http://{address}"));
    let taken = wait::until("the second replica has claimed the round", || async {
        let round = second.get_round(&round.id).await.map_err(|error| error.to_string())?;
        if round.term > first.term { Ok(round) } else { Err(format!("term {}", round.term)) }
    })
    .await;
    cluster.s3.faults().remove(fault);
    cluster.pause_coordinator(false);
    let ended = second.wait_round(&round.id).await.unwrap();
    assert_eq!(ended.phase(), RoundPhase::Committed, "{:?}", ended.problem);
    assert!(ended.term >= taken.term);
    assert_eq!(cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap().len(), 1);
    // Both go on serving: rounds of either are driven by whoever claims them.
    checkpoint_all(&cluster, 20);
    cluster.pushed().await;
    cluster.kill_coordinator();
    checkpoint_all(&cluster, 30);
    let push = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..v1::StartPushRequest::default() };
    let third = second.start_push(push).await.unwrap();
    assert_eq!(second.wait_round(&third.id).await.unwrap().phase(), RoundPhase::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_rounds_back_and_exits_with_0() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let fault = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject");
    let fault = cluster.s3.faults().add(fault);
    let round = cluster.start_push().await;
    cluster.round_when(&round.id, "it transfers", |round| round.phase() == RoundPhase::Transferring).await;
    assert!(cluster.terminate_coordinator().await.success());
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    let leased: i64 =
        sqlx::query_scalar("SELECT count(*) FROM rounds WHERE lease_until > clock_timestamp() AND ended_at IS NULL")
            .fetch_one(&mut database)
            .await
            .unwrap();
    assert_eq!(leased, 0, "the lease was handed back, not left to expire");
    cluster.s3.faults().remove(fault);
    cluster.start_coordinator().await;
    assert_eq!(cluster.client.wait_round(&round.id).await.unwrap().phase(), RoundPhase::Committed);
    for idx in 0..3 {
        assert!(cluster.terminate_agent(idx).await.success(), "agent {idx}");
    }
}

/// S14.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_id_gives_the_same_round_and_other_parameters_are_an_error() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let id = uuid::Uuid::new_v4().to_string();
    let push = v1::StartPushRequest {
        pipeline: PIPELINE.to_owned(),
        request_id: id.clone(),
        ..v1::StartPushRequest::default()
    };
    let first = cluster.client.start_push(push.clone()).await.unwrap();
    cluster.client.wait_round(&first.id).await.unwrap();
    checkpoint_all(&cluster, 20);
    assert_eq!(cluster.client.start_push(push.clone()).await.unwrap().id, first.id, "also after it ended");
    let other = v1::StartPushRequest { force: true, ..push };
    assert_eq!(cluster.client.start_push(other).await.expect_err("other parameters").reason(), "REQUEST_ID_REUSED");
    let pull = v1::StartPullRequest { request_id: id, ..Cluster::pull_request() };
    assert_eq!(cluster.client.start_pull(pull).await.expect_err("another kind").reason(), "REQUEST_ID_REUSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_pull_supersedes_one_that_is_installing() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    let fault = FaultRule::new(FaultAction::Hang).access_key(agent_key(2)).operation("GetObject");
    let fault = cluster.s3.faults().add(fault);
    let first = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    cluster
        .round_when(&first.id, "two are staged", |round| {
            round.participants.iter().filter(|p| p.phase() == v1::ParticipantPhase::Staged).count() == 2
        })
        .await;
    let error = cluster.client.start_pull(Cluster::pull_request()).await.expect_err("not installing yet");
    assert_eq!(error.reason(), "ROUND_IN_PROGRESS");
    // Host 0 goes away for good; host 2 gets on: the round is installing and can't end.
    cluster.kill_agent(0);
    cluster.s3.faults().remove(fault);
    cluster.round_when(&first.id, "it installs", |round| round.phase() == RoundPhase::Installing).await;
    let second = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    let old = cluster.client.get_round(&first.id).await.unwrap();
    assert_eq!((old.phase(), old.problem.unwrap().reason.as_str()), (RoundPhase::Failed, "SUPERSEDED"));
    cluster.start_agent(0).await;
    let second = cluster.client.wait_round(&second.id).await.unwrap();
    assert_eq!(second.phase(), RoundPhase::Installed, "{:?}", second.problem);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_tells_who_did_what_and_why_and_cannot_be_changed() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let round = cluster.pushed().await;
    let filter =
        v1::ListAuditEventsRequest { pipeline: PIPELINE.to_owned(), round: round.id.clone(), ..Default::default() };
    let events = cluster.client.list_audit_events(filter, 1000).await.unwrap();
    let phases: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event.host_idx.is_none() && !event.to_phase.is_empty() && event.from_phase != event.to_phase)
        .map(|event| (event.from_phase.as_str(), event.to_phase.as_str()))
        .collect();
    let steps = [("planning", "transferring"), ("transferring", "committing"), ("committing", "committed")];
    assert!(phases.ends_with(&steps), "{phases:?}");
    let admitted = events.first().unwrap();
    assert_eq!(admitted.actor, "scenario", "{admitted:?}");
    assert!(events.iter().all(|event| !event.actor.is_empty() && event.time.is_some()));
    for host in 0..3 {
        assert!(events.iter().any(|event| event.host_idx == Some(host) && event.to_phase == "done"), "host {host}");
    }
    let mut database = PgConnection::connect(cluster.database.url()).await.unwrap();
    for statement in ["UPDATE audit_events SET actor = 'x'", "DELETE FROM audit_events", "TRUNCATE audit_events"] {
        sqlx::query(statement).execute(&mut database).await.expect_err(statement);
    }
    let row = sqlx::query("SELECT phase, step, commit_bytes IS NOT NULL AS has_bytes FROM rounds WHERE id = $1::uuid")
        .bind(&round.id)
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(
        (row.get::<&str, _>("phase"), row.get::<i64, _>("step"), row.get::<bool, _>("has_bytes")),
        ("committed", 10, true)
    );
}

/// S4: whatever Postgres says is committed stands in the bucket; verify reads it back.
#[tokio::test(flavor = "multi_thread")]
async fn verify_reads_every_object_and_names_what_differs() {
    let cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let round = cluster.pushed().await;
    let good = cluster.verify(&round.id).await;
    assert!(good.problems.is_empty(), "{:?}", good.problems);
    let key = cluster
        .s3
        .admin()
        .keys(BUCKET, "orders/host1/")
        .unwrap()
        .into_iter()
        .find(|key| key.contains("data-"))
        .unwrap();
    cluster.s3.admin().flip_byte(BUCKET, &key, 0).unwrap();
    let bad = cluster.verify(&round.id).await;
    assert_eq!(bad.problems.len(), 1, "{:?}", bad.problems);
    assert!(bad.problems[0].message.contains("host 1"), "{:?}", bad.problems);
    cluster.s3.admin().remove(BUCKET, &key).unwrap();
    let gone = cluster.verify(&round.id).await;
    assert!(!gone.problems.is_empty());
}
