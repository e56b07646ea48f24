//! What a pooler before Postgres changes, and what it must not.

use std::time::Duration;

use lockstep_coordinator::store::{Change, Pooler, Store, StoreError, StoreOptions};
use lockstep_devkit::TestDatabase;
use lockstep_protocol::problem::{Reason, Retryable};
use sqlx::{Connection, Executor, PgConnection, Row, postgres::PgConnectOptions};

use crate::{
    ground::through_the_pooler,
    rig::{Rig, admitted, alice, push},
};

async fn connect(url: &str) -> Store {
    Store::connect(url, StoreOptions::default()).await.unwrap()
}

#[tokio::test]
async fn a_pooler_is_noticed_and_a_plain_postgres_is_not() {
    let database = TestDatabase::create().await.unwrap();
    let pooled = through_the_pooler(&database).await;
    for _ in 0..20 {
        assert!(connect(&pooled).await.is_pooled());
        assert!(!connect(database.url()).await.is_pooled());
    }
    for (pooler, expected) in [(Pooler::Yes, true), (Pooler::No, false)] {
        let options = StoreOptions { pooler, ..StoreOptions::default() };
        assert_eq!(Store::connect(database.url(), options).await.unwrap().is_pooled(), expected);
    }
}

#[tokio::test]
async fn with_a_pooler_alone_an_old_schema_is_refused_with_the_command_that_helps_and_a_present_one_serves() {
    let database = TestDatabase::create().await.unwrap();
    let pooled = connect(&through_the_pooler(&database).await).await;
    let problem = pooled.migrate().await.unwrap_err();
    assert_eq!((problem.reason, problem.retryable()), (Reason::DatabaseUnavailable, Retryable::AfterFix));
    assert!(problem.message.contains("lockstep-coordinator migrate"), "{problem}");
    assert!(problem.message.contains("LOCKSTEP_DIRECT_DATABASE_URL"), "{problem}");
    assert!(pooled.schema().await.unwrap().missing > 0, "nothing was done over the pooler");

    connect(database.url()).await.migrate().await.unwrap();
    assert_eq!(pooled.migrate().await.unwrap().missing, 0);
    pooled.identity().await.unwrap();
}

#[tokio::test]
async fn a_direct_url_brings_what_other_replicas_tell_and_a_pooler_alone_is_polled() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let alone = connect(&through_the_pooler(&rig.database).await).await;
    let around = rig.another().await;
    let (mut alone_hears, mut around_hears) = (alone.changes(), around.changes());
    // The first hint only says that LISTEN stands.
    assert_eq!(around_hears.next().await, Change::Anything);
    let round = admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap()).round;
    while around_hears.next().await != Change::Round(round.id) {}
    let unheard = futures::FutureExt::now_or_never(alone_hears.next());
    assert_eq!(unheard, None, "nothing listens through a pooler");
    assert_eq!(alone.get_round(round.id).await.unwrap().round, round, "polling finds it");
}

#[tokio::test]
async fn a_direct_url_that_leads_to_a_pooler_or_elsewhere_is_refused() {
    let (database, other) = (TestDatabase::create().await.unwrap(), TestDatabase::create().await.unwrap());
    let pooled = through_the_pooler(&database).await;
    for (direct, expected) in [(pooled.as_str(), "leads to a pooler too"), (other.url(), "leads to another database")] {
        let problem = Store::connect_around(&pooled, Some(direct), StoreOptions::default()).await.unwrap_err();
        assert_eq!((problem.reason, problem.retryable()), (Reason::DatabaseUnavailable, Retryable::AfterFix));
        assert!(problem.message.contains(expected), "{problem}");
    }
}

/// A connection of somebody else's through the same pooler.
async fn stranger(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().unwrap();
    PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap()
}

#[tokio::test]
async fn nothing_of_ours_stays_behind_on_connections_that_others_use_too() {
    let rig = Rig::new().await;
    rig.pipeline("orders").await;
    let url = through_the_pooler(&rig.database).await;
    // Two at a time, so that both server connections are looked at.
    let (mut one, mut two) = (stranger(&url).await, stranger(&url).await);
    for connection in [&mut one, &mut two] {
        connection.execute("BEGIN").await.unwrap();
    }
    for connection in [&mut one, &mut two] {
        let row = connection
            .fetch_one(
                "SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
                        (SELECT count(*) FROM pg_prepared_statements)::text AS prepared,
                        (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')::text AS locks",
            )
            .await
            .unwrap();
        for column in ["statement", "lock", "prepared", "locks"] {
            assert_eq!(row.get::<String, _>(column), "0", "{column}");
        }
    }
}

#[tokio::test]
async fn a_driver_that_names_its_statements_is_told_of_the_pooler() {
    let rig = Rig::new().await;
    let url = through_the_pooler(&rig.database).await;
    let blind =
        || StoreOptions { pooler: Pooler::No, acquire_timeout: Duration::from_secs(30), ..StoreOptions::default() };
    let one = Store::connect(&url, blind()).await.unwrap();
    let two = Store::connect(&url, blind()).await.unwrap();
    // Both name their first statement alike, on two server connections at most.
    for _ in 0..1000 {
        for store in [&one, &two] {
            let Err(error) = store.active_rounds().await else { continue };
            let StoreError::Problem(problem) = &error else { panic!("{error:?}") };
            assert!(problem.message.contains("--database-pooler yes"), "{problem}");
            return;
        }
    }
    panic!("two drivers that share server connections never met");
}
