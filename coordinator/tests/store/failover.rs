//! A fail-over that leads connections to a server which is still a standby: nothing is read from it, everybody is told, and once it is promoted all
//! goes on by itself.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use lockstep_coordinator::store::{Store, StoreError, StoreOptions};
use lockstep_devkit::{PgBouncer, PgBouncerOptions, Postgres, PostgresOptions};
use sqlx::{Connection as _, PgConnection};

use crate::wire::Wire;

struct Pair {
    primary: Postgres,
    standby: Postgres,
    _directory: tempfile::TempDir,
}

async fn pair() -> Pair {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let primary = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = primary.create_database("orders").await.unwrap();
    Store::connect(&url, StoreOptions::default()).await.unwrap().migrate().await.unwrap();
    let standby = primary.standby(&directory.path().join("standby")).await.unwrap();
    Pair { primary, standby, _directory: directory }
}

async fn promote(standby: &Postgres) {
    let mut sql = PgConnection::connect(&standby.url("orders")).await.unwrap();
    assert!(sqlx::query_scalar::<_, bool>("SELECT pg_promote()").fetch_one(&mut sql).await.unwrap());
}

/// Asks until the store says that it came to a standby: an answer that was under way may come first, and one that was cut.
async fn refused_as_standby(store: &Store) {
    let asking = async {
        loop {
            match store.active_rounds().await {
                Err(StoreError::Unavailable(problem)) if problem.metadata.contains_key("in_recovery") => {
                    assert!(problem.message.contains("lead DATABASE_URL to the primary"), "{problem}");
                    return;
                }
                Ok(_) | Err(StoreError::Unavailable(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.expect("a standby was never refused");
    for _ in 0..20 {
        assert!(store.active_rounds().await.is_err(), "a standby was believed");
        assert!(store.claim_rounds("one", Duration::from_secs(1), 1).await.is_err());
    }
}

async fn serves_again(store: &Store) {
    let asking = async {
        while store.claim_rounds("one", Duration::from_secs(1), 1).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.expect("the promoted server was never used");
    store.active_rounds().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_that_leads_to_a_standby_is_refused_until_that_is_promoted() {
    let pair = pair().await;
    let wire = Wire::before(pair.primary.port()).await;
    let options = StoreOptions { acquire_timeout: Duration::from_secs(3), ..StoreOptions::default() };
    let store = Store::connect(&wire.url(&pair.primary.url("orders")), options).await.unwrap();
    let timeline = store.identity().await.unwrap().timeline;
    wire.lead_to(pair.standby.port());
    pair.primary.stop().await.unwrap();
    refused_as_standby(&store).await;
    promote(&pair.standby).await;
    serves_again(&store).await;
    assert_eq!(store.identity().await.unwrap().timeline, timeline + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_was_led_to_a_standby_is_noticed_by_the_next_transaction() {
    let pair = pair().await;
    let options = PgBouncerOptions { databases: vec!["orders".to_owned()], ..PgBouncerOptions::default() };
    let pooler = PgBouncer::start(pair.primary.port(), options).await.unwrap();
    let store = Store::connect(&pooler.url("orders"), StoreOptions::default()).await.unwrap();
    assert!(store.is_pooled());
    store.active_rounds().await.unwrap();
    // Our own connections stay: only what stands behind them changes.
    pooler.lead_to(pair.standby.port()).await.unwrap();
    refused_as_standby(&store).await;
    promote(&pair.standby).await;
    serves_again(&store).await;
}
