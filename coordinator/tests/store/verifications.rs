//! What verifications found is kept, alike by Postgres and by its twin; a damaged newest commit is no base any more.

use std::time::Duration;

use chrono::Utc;
use lockstep_coordinator::store::{Finding, PipelineRow, Store, Verification, VerificationsOf, memory::MemoryDatabase};
use lockstep_devkit::TestDatabase;
use lockstep_protocol::{
    commit::CommitRef,
    damage::DamageMark,
    problem::{Problem, Reason},
    verification::Scope,
};

use crate::rig::{LEASE, Rig, alice, replica};

fn finding(pipeline: &PipelineRow, commit: CommitRef, problems: Vec<Problem>) -> Finding {
    let started_at = Utc::now();
    Finding { pipeline: pipeline.id, commit, scope: Scope::All, rolling: false, bytes: 10, problems, started_at }
}

fn broken() -> Vec<Problem> {
    vec![Problem::new(Reason::Integrity, "host 1: file a differs").with("host_idx", 1)]
}

/// A pipeline that has committed once.
async fn committed(rig: &Rig) -> (PipelineRow, CommitRef) {
    let pipeline = rig.pipeline("orders").await;
    rig.commit(&pipeline, 10).await;
    let row = rig.store.get_pipeline(&pipeline.id.into()).await.unwrap();
    let commit = row.last_commit.clone().unwrap().commit;
    (row, commit)
}

async fn of(store: &Store, row: &PipelineRow, commit: CommitRef, scope: Option<Scope>) -> Vec<Verification> {
    let of = VerificationsOf { pipeline: row.id, checkpoints: vec![commit.round], scope };
    store.verifications(of).await.unwrap()
}

async fn both(run: impl AsyncFn(Rig)) {
    let rig = Rig::new().await;
    let twin = MemoryDatabase::new(Utc::now).store();
    run(Rig { database: TestDatabase::create().await.unwrap(), store: twin }).await;
    run(rig).await;
}

#[tokio::test]
async fn a_damaged_newest_commit_is_no_base_from_when_it_is_kept_and_its_mark_is_owed_until_it_stands() {
    both(async |rig| {
        let (row, commit) = committed(&rig).await;
        let store = &rig.store;
        let kept = store.keep_verification(finding(&row, commit, broken()), &alice()).await.unwrap();
        assert!(kept.owes_mark());
        let mark = DamageMark::parse(&DamageMark::key_of(&commit).to_string(), kept.mark.as_ref().unwrap().as_bytes());
        assert_eq!(mark.unwrap().commit, commit);
        let now = store.get_pipeline(&row.id.into()).await.unwrap();
        assert_eq!((now.last_commit, now.next_seq), (None, row.next_seq));

        let owed = store.owed_marks(LEASE).await.unwrap();
        assert_eq!(owed.iter().map(|one| one.id).collect::<Vec<_>>(), [kept.id]);
        assert_eq!(store.owed_marks(LEASE).await.unwrap(), [], "somebody puts it already");
        let denied = Problem::new(Reason::StoreDenied, "403");
        assert!(store.settle_mark(&kept, Some(denied.clone()), Duration::ZERO, &replica()).await.unwrap());
        assert_eq!(store.get_verification(kept.id).await.unwrap().mark_problem, Some(denied));
        assert_eq!(store.owed_marks(LEASE).await.unwrap().len(), 1, "again after a while");
        assert!(store.settle_mark(&kept, None, Duration::ZERO, &replica()).await.unwrap());
        assert!(!store.settle_mark(&kept, None, Duration::ZERO, &replica()).await.unwrap(), "once");
        let settled = store.get_verification(kept.id).await.unwrap();
        assert!(settled.marked_at.is_some() && settled.mark_problem.is_none() && !settled.owes_mark());
        assert_eq!(store.owed_marks(LEASE).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn the_newest_verification_of_a_checkpoint_is_shown_and_an_intact_one_changes_nothing() {
    both(async |rig| {
        let (row, commit) = committed(&rig).await;
        let store = &rig.store;
        assert_eq!(of(store, &row, commit, None).await, []);
        let structure = Finding { scope: Scope::Structure, ..finding(&row, commit, Vec::new()) };
        let first = store.keep_verification(finding(&row, commit, Vec::new()), &alice()).await.unwrap();
        let second = store.keep_verification(structure, &alice()).await.unwrap();
        assert_eq!(of(store, &row, commit, None).await, [second]);
        assert_eq!(of(store, &row, commit, Some(Scope::All)).await, [first]);
        assert_eq!(store.get_pipeline(&row.id.into()).await.unwrap().last_commit, row.last_commit);
        assert_eq!(store.owed_marks(LEASE).await.unwrap(), []);
    })
    .await;
}
