//! What goes wrong around the store: dropped callers, dead servers, lost connections, replicas that start together.

use std::time::Duration;

use chrono::Utc;
use lockstep_coordinator::store::{Admission, Applied, Store, StoreError, StoreOptions};
use lockstep_devkit::{Postgres, PostgresOptions, TestDatabase};
use lockstep_protocol::{problem::Reason, round::decide};

use crate::rig::{Rig, admitted, alice, planned, push, replica, request_id};

#[tokio::test]
async fn replicas_that_migrate_at_the_same_time_agree_on_one_identity() {
    let database = TestDatabase::create().await.unwrap();
    let starts = (0..4).map(|_| {
        let url = database.url().to_owned();
        tokio::spawn(async move {
            let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
            store.migrate().await.unwrap();
            store.identity().await.unwrap()
        })
    });
    let mut identities = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        identities.push(start.await.unwrap());
    }
    identities.dedup();
    let [identity] = identities.as_slice() else { panic!("{identities:?}") };
    assert!(identity.timeline >= 1);
    assert!(identity.system_identifier.parse::<u64>().is_ok());

    // A restart, with a migration that finds nothing to do.
    let again = Store::connect(database.url(), StoreOptions::default()).await.unwrap();
    again.migrate().await.unwrap();
    assert_eq!(again.identity().await.unwrap(), *identity);
    let other = TestDatabase::create().await.unwrap();
    let other = Store::connect(other.url(), StoreOptions::default()).await.unwrap();
    other.migrate().await.unwrap();
    assert_ne!(other.identity().await.unwrap().database, identity.database);
}

#[tokio::test]
async fn an_unreachable_database_is_named_without_its_password() {
    // Bound and never accepted from: nobody else gets the port.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for url in [
        format!("postgres://someone:hunter2@127.0.0.1:{port}/lockstep"),
        "postgres://someone:hunter2@[::bad/lockstep".to_owned(),
        "hunter2".to_owned(),
    ] {
        let problem = Store::connect(&url, StoreOptions::default()).await.unwrap_err();
        assert_eq!(problem.reason, Reason::DatabaseUnavailable);
        let shown = format!("{problem} {problem:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let url = format!("postgres://someone:hunter2@127.0.0.1:{port}/lockstep");
    let problem = Store::connect(&url, StoreOptions::default()).await.unwrap_err();
    assert_eq!(problem.metadata["host"], "127.0.0.1");
    assert_eq!(problem.metadata["port"], port.to_string());
    assert_eq!(problem.metadata["database"], "lockstep");
}

#[tokio::test]
async fn what_a_store_prints_of_itself_holds_no_password() {
    let rig = Rig::new().await;
    let url = rig.database.url().replacen("://", "://someone:hunter2@", 1);
    let with_password = rig.database.url().split_once('@').map(|(user, place)| format!("{user}:hunter2@{place}"));
    let store = Store::connect(&with_password.unwrap_or(url), StoreOptions::default()).await.unwrap();
    assert!(!format!("{store:?}").contains("hunter2"));
}

/// Connections that are inside a transaction and wait for their client.
async fn idle_in_transaction(rig: &Rig) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()",
    )
    .fetch_one(&mut rig.sql().await)
    .await
    .unwrap()
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("{what} never held"));
}

/// R12: with sqlx alone, a dropped `begin()` leaves the pooled connection inside a transaction, and what is written there next is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_callers_leave_no_open_transaction_and_lose_no_later_write() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    for i in 0..200_u64 {
        let (store, ask) = (rig.store.clone(), push(&pipeline));
        let call = tokio::spawn(async move { store.admit_push(ask, &alice()).await });
        // Another moment each time.
        for _ in 0..i % 20 {
            tokio::task::yield_now().await;
        }
        call.abort();
        let _ = call.await;
    }
    eventually("no connection idle in a transaction", async || idle_in_transaction(&rig).await == 0).await;
    // One that stays: it makes the round, unless a dropped one got far enough to have made it.
    match rig.store.admit_push(push(&pipeline), &alice()).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.problem().reason, Reason::RoundInProgress),
    }
    eventually("one round", async || rig.store.active_rounds().await.unwrap() == 1).await;
    let round = rig.claim().await;
    let round = rig.step(round.clone(), planned(&round, 10)).await;
    let phase: String = sqlx::query_scalar("SELECT phase FROM rounds WHERE id = $1")
        .bind(round.id.uuid())
        .fetch_one(&mut rig.sql().await)
        .await
        .unwrap();
    assert_eq!(phase, "transferring", "another connection sees it");
}

#[tokio::test]
async fn connections_that_died_while_idle_are_replaced_without_an_error() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .execute(&mut rig.sql().await)
    .await
    .unwrap();
    // A connection that was used a moment ago isn't asked whether it lives: the call may fail once, but says so honestly.
    let mut ask = push(&pipeline);
    ask.request_id = Some(request_id());
    let admission = loop {
        match rig.store.admit_push(ask.clone(), &alice()).await {
            Ok(admission) => break admission,
            Err(StoreError::Unavailable(_) | StoreError::UnknownOutcome(_)) => {}
            Err(error @ StoreError::Problem(_)) => panic!("{error}"),
        }
    };
    assert!(matches!(admission, Admission::New(_) | Admission::Known(_)));
    assert_eq!(rig.store.active_rounds().await.unwrap(), 1);
}

/// R6: connections are cut again and again while a round is moved to and fro; each answer must be what the database then shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_never_reported_wrongly() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    let mut round = rig.step(round.clone(), planned(&round, 10)).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut killer = rig.sql().await;
    let killing = stop.clone();
    let killer = tokio::spawn(async move {
        let mut killed = 0;
        // Bounded: on a fast machine it would hit nearly every write, and hardly one would ever be stored.
        while killed < 25 && !killing.is_cancelled() {
            killed += sqlx::query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%WITH moved AS%' AND state = 'active'",
            )
            .execute(&mut killer)
            .await
            .unwrap()
            .rows_affected();
        }
        killed
    });
    let (mut stored, mut unsure) = (0, 0);
    while stored < 50 {
        // Two states of the whole round's problem, so that each decision differs.
        let mut decision = decide(&round, &lockstep_protocol::round::Event::Tick, Utc::now());
        let text = format!("write {}", round.version);
        decision.next.problem = Some(lockstep_protocol::problem::Problem::new(Reason::StoreThrottled, text));
        match rig.store.apply(&round, &decision, &replica()).await {
            Ok(Applied::Stored(next)) => {
                assert_eq!(next.version, round.version + 1);
                round = next;
                stored += 1;
            }
            Ok(refused) => panic!("nobody else writes: {refused:?}"),
            Err(StoreError::Problem(problem)) => panic!("{problem}"),
            Err(StoreError::Unavailable(_) | StoreError::UnknownOutcome(_)) => {
                unsure += 1;
                let Ok(found) = rig.store.get_round(round.id).await else { continue };
                assert!(found.round.version <= round.version + 1, "written twice");
                round = found.round;
            }
        }
    }
    stop.cancel();
    let killed = killer.await.unwrap();
    println!("{killed} connections killed, {stored} writes stored, {unsure} times unsure");
    assert!(killed > 0, "no write was ever hit");
    assert_eq!(rig.store.get_round(round.id).await.unwrap().round, round);
}

#[tokio::test]
async fn a_database_that_stops_is_unavailable_and_serves_again_after_its_restart() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let data_dir = directory.path().join("data");
    let options = || PostgresOptions { data_dir: Some(data_dir.clone()), durable: true, ..PostgresOptions::default() };
    let postgres = Postgres::start(options()).await.unwrap();
    let url = postgres.create_database("restarted").await.unwrap();
    let patience = StoreOptions { acquire_timeout: Duration::from_secs(3), ..StoreOptions::default() };
    let store = Store::connect(&url, patience.clone()).await.unwrap();
    store.migrate().await.unwrap();
    let identity = store.identity().await.unwrap();
    postgres.stop().await.unwrap();
    let error = store.now().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable(problem) if problem.reason == Reason::DatabaseUnavailable),
        "{error}"
    );

    let postgres = Postgres::start(options()).await.unwrap();
    // The launcher takes another free port.
    let store = Store::connect(&postgres.url("restarted"), patience).await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(store.identity().await.unwrap(), identity);
    postgres.stop().await.unwrap();
}
