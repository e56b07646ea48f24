//! Rows that somebody has edited to states which no code writes. Each shows its reason where it is looked at and nowhere else; rounds of other pipelines go on
//! as if nothing were.

use std::time::Duration;

use lockstep_coordinator::store::{Page, PipelineRow, RoundFilter, StoreError};
use lockstep_protocol::{
    id::RoundId,
    problem::{Reason, Retryable},
    round::Phase,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::rig::Rig;

/// What is done to the row of a push that nobody drives yet, and what its reason speaks of.
const ROUNDS: [(&str, &str); 20] = [
    ("UPDATE rounds SET phase = 'levitating' WHERE id = $1", "levitating"),
    ("UPDATE rounds SET phase = 'installing' WHERE id = $1", "installing"),
    ("UPDATE rounds SET phase = 'committing' WHERE id = $1", "commit_bytes"),
    ("UPDATE rounds SET kind = 'shove' WHERE id = $1", "shove"),
    ("UPDATE rounds SET term = -1000000 WHERE id = $1", "term"),
    ("UPDATE rounds SET version = -1000000 WHERE id = $1", "version"),
    ("UPDATE rounds SET n_hosts = -5 WHERE id = $1", "n_hosts"),
    ("UPDATE rounds SET generation = -5 WHERE id = $1", "generation"),
    ("UPDATE rounds SET seq = NULL WHERE id = $1", "seq"),
    ("UPDATE rounds SET deadline = NULL WHERE id = $1", "deadline"),
    ("UPDATE rounds SET state = '{}' WHERE id = $1", "state"),
    ("UPDATE rounds SET state = '\"soup\"' WHERE id = $1", "state"),
    ("UPDATE rounds SET retry = 'null' WHERE id = $1", "retry"),
    ("UPDATE rounds SET location = '{\"bucket\": 7}' WHERE id = $1", "location"),
    ("UPDATE rounds SET abort_bytes = '\\xff' WHERE id = $1", "abort_bytes"),
    ("UPDATE rounds SET pipeline_name = 'No Name' WHERE id = $1", "No Name"),
    ("DELETE FROM participants WHERE round_id = $1 AND host_idx = 1", "participants"),
    ("UPDATE participants SET host_idx = 7 WHERE round_id = $1 AND host_idx = 2", "participants"),
    ("UPDATE participants SET phase = 'lost' WHERE round_id = $1 AND host_idx = 2", "lost"),
    ("UPDATE participants SET attempt = -1 WHERE round_id = $1 AND host_idx = 0", "participants"),
];

/// The same of a pipeline, which has no round then.
const PIPELINES: [(&str, &str); 6] = [
    ("UPDATE pipelines SET spec = '{\"name\": 7}' WHERE id = $1", "spec"),
    ("UPDATE pipelines SET claim = 'stolen' WHERE id = $1", "stolen"),
    ("UPDATE pipelines SET generation = -2 WHERE id = $1", "generation"),
    ("UPDATE pipelines SET next_seq = -4 WHERE id = $1", "seq"),
    ("UPDATE pipelines SET timeline = -1 WHERE id = $1", "timeline"),
    (
        "UPDATE pipelines SET last_seq = 3, last_generation = -3, last_round_id = id, last_digest = 'x' WHERE id = $1",
        "generation",
    ),
];

/// A connection to which no trigger, and a database to which no constraint applies any more.
async fn lawless(rig: &Rig) -> PgConnection {
    let mut sql = PgConnection::connect(rig.database.url()).await.unwrap();
    sql.execute(
        "SET session_replication_role = replica;
         DO $$ DECLARE c record; BEGIN
             FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace LOOP
                 EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.conname);
             END LOOP;
         END $$;
         ALTER TABLE rounds ALTER COLUMN deadline DROP NOT NULL",
    )
    .await
    .unwrap();
    sql
}

async fn another(rig: &Rig, name: &str) -> PipelineRow {
    rig.create(rig.new_pipeline(name, &format!("s3://acme/{name}").parse().unwrap())).await
}

/// Neither the store nor a push of the healthy pipeline is held up, although the bad rows are older.
async fn others_go_on(rig: &Rig, healthy: &PipelineRow, bad: &[RoundId]) {
    for _ in 0..2 {
        let round = rig.start_push(healthy).await;
        let ended = tokio::time::timeout(Duration::from_secs(30), rig.ended(round)).await.expect("it is held up");
        assert_eq!(ended.round.phase, Phase::Committed, "{:?}", ended.round.problem);
    }
    let listed = rig.store.list_rounds(RoundFilter::default(), Page::default()).await.unwrap().items;
    assert!(listed.iter().any(|record| record.round.pipeline == healthy.id));
    assert!(listed.iter().all(|record| !bad.contains(&record.round.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_in_states_that_no_code_writes_show_their_reason_and_hold_nobody_up() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let replica = rig.replica("one");
    let healthy = rig.pipeline("orders").await;
    let mut pipelines = Vec::new();
    for i in 0..ROUNDS.len() {
        pipelines.push(another(&rig, &format!("bad-{i}")).await);
    }
    replica.stop().await;
    let mut sql = lawless(&rig).await;
    let mut bad = Vec::new();
    for (pipeline, (edit, _)) in pipelines.iter().zip(ROUNDS) {
        let round = rig.start_push(pipeline).await;
        let edited = sqlx::query(AssertSqlSafe(edit)).bind(round.uuid()).execute(&mut sql).await.unwrap();
        assert_eq!(edited.rows_affected(), 1, "{edit}");
        bad.push(round);
    }
    let _replica = rig.replica("two");
    others_go_on(&rig, &healthy, &bad).await;
    for ((round, pipeline), (edit, reason)) in bad.iter().zip(&pipelines).zip(ROUNDS) {
        let StoreError::Problem(problem) = rig.store.get_round(*round).await.unwrap_err() else { panic!("{edit}") };
        assert_eq!((problem.reason, problem.retryable()), (Reason::DatabaseUnavailable, Retryable::AfterFix), "{edit}");
        assert!(problem.message.contains(reason) && problem.message.contains(&round.to_string()), "{edit}: {problem}");
        let filter = RoundFilter { pipeline: Some(pipeline.id), ..RoundFilter::default() };
        rig.store.list_rounds(filter, Page::default()).await.expect_err(edit);
    }
    others_go_on(&rig, &healthy, &bad).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_in_states_that_no_code_writes_show_their_reason_and_hold_nobody_up() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let _replica = rig.replica("one");
    let healthy = rig.pipeline("orders").await;
    let mut sql = lawless(&rig).await;
    for (i, (edit, reason)) in PIPELINES.into_iter().enumerate() {
        let bad = another(&rig, &format!("bad-{i}")).await;
        sqlx::query(AssertSqlSafe(edit)).bind(bad.id.uuid()).execute(&mut sql).await.unwrap();
        let StoreError::Problem(problem) = rig.store.get_pipeline(&bad.id.into()).await.unwrap_err() else {
            panic!("{edit}")
        };
        assert_eq!((problem.reason, problem.retryable()), (Reason::DatabaseUnavailable, Retryable::AfterFix), "{edit}");
        assert!(problem.message.contains(reason), "{edit}: {problem}");
        let named = problem.message.contains(&format!("bad-{i}")) && problem.message.contains(&bad.id.to_string());
        assert!(named, "{edit}: {problem}");
    }
    others_go_on(&rig, &healthy, &[]).await;
    let listed = rig.store.list_pipelines(Page::default()).await.unwrap().items;
    assert_eq!(listed.iter().map(|row| row.id).collect::<Vec<_>>(), [healthy.id]);
    // One that claims its location is due, bad ones beside it or not.
    sql.execute("UPDATE pipelines SET claim = 'claiming', claim_lease_until = NULL WHERE name LIKE 'bad%'")
        .await
        .unwrap();
    assert_eq!(another(&rig, "later").await.claim.as_str(), "owned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_beyond_any_that_is_given_keeps_nobody_from_the_round() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    replica.stop().await;
    let round = rig.start_push(&pipeline).await;
    let mut sql = PgConnection::connect(rig.database.url()).await.unwrap();
    sqlx::query("UPDATE rounds SET lease_owner = 'ghost', lease_until = '9999-01-01Z' WHERE id = $1")
        .bind(round.uuid())
        .execute(&mut sql)
        .await
        .unwrap();
    let _replica = rig.replica("two");
    assert_eq!(rig.ended(round).await.round.phase, Phase::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_code_writes_is_refused_by_the_database_where_that_is_cheap() {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    let mut sql = PgConnection::connect(rig.database.url()).await.unwrap();
    for edit in [
        "UPDATE pipelines SET next_seq = 0",
        "UPDATE pipelines SET next_round_no = -1",
        "UPDATE pipelines SET timeline = -1",
        "UPDATE pipelines SET claim_term = -1",
        "INSERT INTO rounds (id, pipeline_id, pipeline_name, kind, round_no, generation, n_hosts, phase, deadline, seq, location, transfer, retry, state, actor)
         SELECT gen_random_uuid(), id, name, 'push', 99, 1, 3, 'installing', now(), 99, '{}', '{}', '{}', '{}', 'x' FROM pipelines",
        "INSERT INTO rounds (id, pipeline_id, pipeline_name, kind, round_no, generation, n_hosts, phase, deadline, seq, location, transfer, retry, state, actor, term)
         SELECT gen_random_uuid(), id, name, 'push', 99, 1, 3, 'planning', now(), 99, '{}', '{}', '{}', '{}', 'x', -1 FROM pipelines",
    ] {
        let error = sql.execute(AssertSqlSafe(edit)).await.expect_err(edit);
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "23514", "{edit}: {error}");
    }
    assert_eq!(rig.ended(rig.start_push(&pipeline).await).await.round.phase, Phase::Committed);
}
