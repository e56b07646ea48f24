//! Time-outs that Postgres itself keeps, so that a paused or cut off replica holds nobody up.

use std::time::Duration;

use lockstep_coordinator::store::{StoreError, StoreOptions};
use lockstep_protocol::problem::Reason;
use sqlx::{Connection, Executor, Row};

use crate::{
    ground,
    rig::{Rig, alice, push},
};

fn short() -> StoreOptions {
    StoreOptions {
        statement_timeout: Duration::from_secs(20),
        lock_timeout: Duration::from_millis(200),
        idle_in_transaction_timeout: Duration::from_millis(7000),
        ..StoreOptions::default()
    }
}

#[tokio::test]
async fn every_transaction_of_a_store_has_its_three_time_outs() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let mut sql = rig.sql().await;
    // Whoever writes to the trail leaves behind what it was told.
    sql.execute(
        "CREATE TABLE told (statement text, lock text, idle text, isolation text, zone text);
         CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO told VALUES (current_setting('statement_timeout'), current_setting('lock_timeout'),
                 current_setting('idle_in_transaction_session_timeout'), current_setting('transaction_isolation'), current_setting('timezone'));
             RETURN NEW;
         END $$;
         CREATE TRIGGER tell BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION tell()",
    )
    .await
    .unwrap();
    let store = ground::connect_with(&rig.database, short()).await;
    // A transaction of several statements, and a statement that is one by itself.
    store.admit_push(push(&pipeline), &alice()).await.unwrap();
    assert_eq!(store.claim_rounds("one", Duration::from_secs(60), 1).await.unwrap().len(), 1);
    let told = sql.fetch_all("SELECT DISTINCT * FROM told").await.unwrap();
    let told: Vec<Vec<String>> = told.iter().map(|row| (0..5).map(|column| row.get(column)).collect()).collect();
    assert_eq!(told, [["20s", "200ms", "7s", "read committed", "UTC"]]);
}

#[tokio::test]
async fn who_waits_too_long_for_a_lock_is_told_so_and_nothing_is_written() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let store = ground::connect_with(&rig.database, short()).await;
    let mut sql = rig.sql().await;
    let mut holder = sql.begin().await.unwrap();
    holder.execute("SELECT 1 FROM pipelines FOR UPDATE").await.unwrap();
    let error = store.admit_push(push(&pipeline), &alice()).await.unwrap_err();
    let StoreError::Unavailable(problem) = error else { panic!("{error:?}") };
    assert_eq!((problem.reason, problem.metadata["sqlstate"].as_str()), (Reason::DatabaseUnavailable, "55P03"));
    holder.rollback().await.unwrap();
    assert_eq!(store.active_rounds().await.unwrap(), 0);
    store.admit_push(push(&pipeline), &alice()).await.unwrap();
}
