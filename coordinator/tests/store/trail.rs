//! The audit trail, and the document that explains it to auditors.

use lockstep_coordinator::store::{AuditFilter, Page};
use sqlx::{AssertSqlSafe, Executor};

use crate::rig::{Rig, admitted, alice, push};

#[tokio::test]
async fn each_change_of_a_round_leaves_its_line_with_who_and_why() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let round = rig.commit(&pipeline, 10).await;
    let filter = AuditFilter { pipeline: None, round: Some(round.id) };
    let rows = rig.store.list_audit(filter, Page::default()).await.unwrap().items;
    let phases: Vec<_> =
        rows.iter().filter(|row| row.host_idx.is_none()).map(|row| (row.event.as_str(), row.to.as_deref())).collect();
    assert_eq!(
        phases,
        [
            ("round_admitted", Some("planning")),
            ("round_claimed", Some("planning")),
            ("round_phase", Some("transferring")),
            ("round_phase", Some("committing")),
            ("round_phase", Some("committed")),
        ]
    );
    assert_eq!(rows[0].actor, "alice");
    assert_eq!(rows[0].trace_id, alice().trace_id);
    assert_eq!(rows[1].actor, "replica one");
    let hosts = rows.iter().filter(|row| row.event == "host_phase" && row.to.as_deref() == Some("done"));
    assert_eq!(hosts.map(|row| row.host_idx).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    let last = rows.last().unwrap();
    assert_eq!((last.term, last.version), (Some(1), Some(round.version)));
    assert!(rows.iter().all(|row| !row.cause.is_empty()));
}

#[tokio::test]
async fn pages_of_the_trail_join_up() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    rig.commit(&pipeline, 10).await;
    let filter = AuditFilter { pipeline: Some(pipeline.id), round: None };
    let whole = rig.store.list_audit(filter.clone(), Page::default()).await.unwrap().items;
    let mut joined = Vec::new();
    let mut page = Page { size: 4, token: None };
    loop {
        let listed = rig.store.list_audit(filter.clone(), page.clone()).await.unwrap();
        joined.extend(listed.items);
        match listed.next {
            Some(next) => page.token = Some(next),
            None => break,
        }
    }
    assert_eq!(joined, whole);
    assert!(whole.len() > 8, "{}", whole.len());
}

#[tokio::test]
async fn nobody_changes_or_removes_what_the_trail_says() {
    let rig = Rig::new().await;
    rig.pipeline("orders").await;
    let before = rig.store.list_audit(AuditFilter::default(), Page::default()).await.unwrap();
    assert!(!before.items.is_empty());
    let mut sql = rig.sql().await;
    for statement in [
        "UPDATE audit_events SET actor = 'nobody'",
        "DELETE FROM audit_events",
        "DELETE FROM audit_events WHERE id < 0",
        "TRUNCATE audit_events",
    ] {
        let error = sql.execute(statement).await.unwrap_err().to_string();
        assert!(error.contains("append-only"), "{statement}: {error}");
    }
    assert_eq!(rig.store.list_audit(AuditFilter::default(), Page::default()).await.unwrap(), before);
}

#[tokio::test]
async fn a_terminal_round_and_stored_decision_bytes_resist_even_a_direct_update() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    rig.commit(&pipeline, 10).await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    let mut events = crate::rig::events_of_a_push(&round, 11);
    events.pop();
    let mut committing = round;
    for event in events {
        committing = rig.step(committing, event).await;
    }
    let mut sql = rig.sql().await;
    for (statement, why) in [
        ("UPDATE rounds SET phase = 'failed' WHERE phase = 'committed'", "never change"),
        ("UPDATE rounds SET commit_bytes = 'x' WHERE phase = 'committing'", "bytes never change"),
        ("UPDATE rounds SET term = 0 WHERE phase = 'committing'", "never fall"),
        ("UPDATE rounds SET phase = 'committed' WHERE phase = 'committing'", "rounds_"),
        ("DELETE FROM rounds", "never deleted"),
    ] {
        let error = sql.execute(statement).await.unwrap_err().to_string();
        assert!(error.contains(why), "{statement}: {error}");
    }
}

#[tokio::test]
async fn each_table_and_column_says_what_it_is() {
    let rig = Rig::new().await;
    let silent: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname || coalesce('.' || a.attname, '')
         FROM pg_class c
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind = 'r'
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v') AND c.relname <> '_sqlx_migrations'
           AND (col_description(c.oid, a.attnum) IS NULL AND a.attnum IS NOT NULL OR obj_description(c.oid, 'pg_class') IS NULL)",
    )
    .fetch_all(&mut rig.sql().await)
    .await
    .unwrap();
    assert!(silent.is_empty(), "{silent:?}");
}

/// The fenced blocks of docs/audit.md that are marked as SQL.
pub(crate) fn queries() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/audit.md");
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("```sql\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| block.trim().to_owned()).collect()
}

#[tokio::test]
async fn each_query_of_the_auditors_guide_runs_and_finds_something() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    rig.commit(&pipeline, 10).await;
    rig.commit(&pipeline, 11).await;
    let mut ask = push(&pipeline);
    ask.request_id = Some(crate::rig::request_id());
    admitted(rig.store.admit_push(ask, &alice()).await.unwrap());
    let round = rig.claim().await;
    let request = lockstep_protocol::round::CancelRequest { by: "alice".to_owned(), cause: "wrong step".to_owned() };
    rig.store.request_cancel(round.id, request.clone(), &alice()).await.unwrap();
    let driven = rig.store.get_round(round.id).await.unwrap().round;
    rig.step(driven, lockstep_protocol::round::Event::CancelRequested(request)).await;
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    rig.claim().await;

    let queries = queries();
    assert!(queries.len() >= 8, "{} queries", queries.len());
    let mut sql = rig.sql().await;
    for query in queries {
        let rows = sqlx::query(AssertSqlSafe(query.clone())).fetch_all(&mut sql).await;
        let rows = rows.unwrap_or_else(|error| panic!("{error}\n{query}"));
        // Those that look for what must not be there say so.
        let clean = query.contains("-- none");
        assert_eq!(rows.is_empty(), clean, "{query}");
    }
}
