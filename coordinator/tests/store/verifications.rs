//! What verifications found is kept, alike by Postgres and by its twin; a damaged newest commit is no base any more.

use std::{collections::BTreeSet, time::Duration};

use chrono::Utc;
use lockstep_coordinator::store::{Finding, PipelineRow, Store, UnderWay, Verification, VerificationsOf, VerifyBudget};
use lockstep_protocol::{
    commit::CommitRef,
    damage::DamageMark,
    problem::{Problem, Reason},
    verification::{Position, Scope},
};

use crate::rig::{LEASE, Rig, alice, both, replica};

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

#[tokio::test]
async fn the_budget_is_one_replicas_at_a_time_and_goes_on_where_the_last_one_stopped() {
    both(async |rig| {
        let (row, commit) = committed(&rig).await;
        let store = &rig.store;
        let mine = store.claim_verify_budget("one", LEASE).await.unwrap().expect("nobody has it");
        assert_eq!(mine.under_way, None);
        assert_eq!(store.claim_verify_budget("two", LEASE).await.unwrap(), None);
        let under_way = UnderWay {
            pipeline: row.id,
            commit,
            position: Position { part: 1, run: 2 },
            bytes: 7,
            problems: broken(),
            started_at: store.now().await.unwrap(),
        };
        let step = VerifyBudget { under_way: Some(under_way.clone()), ..mine.clone() };
        let saved = store.save_verify_budget(&step, Duration::ZERO).await.unwrap().expect("it is mine");
        assert_eq!(store.save_verify_budget(&step, LEASE).await.unwrap(), None, "another one's step would be lost");
        assert!(store.renew_verify_budget("one", LEASE).await.unwrap(), "a step takes longer");
        assert_eq!(store.claim_verify_budget("two", LEASE).await.unwrap(), None);
        assert!(!store.renew_verify_budget("two", LEASE).await.unwrap());
        assert!(store.renew_verify_budget("one", Duration::ZERO).await.unwrap());

        // The lease is over.
        let theirs = store.claim_verify_budget("two", LEASE).await.unwrap().expect("its time is over");
        assert_eq!(theirs.under_way, Some(under_way));
        assert_eq!(store.save_verify_budget(&saved, LEASE).await.unwrap(), None, "it is another one's now");
        assert!(!store.renew_verify_budget("one", LEASE).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn pipelines_have_their_turn_to_be_re_read_one_after_the_other() {
    both(async |rig| {
        assert_eq!(rig.store.verify_turn().await.unwrap(), None, "there is none");
        let (one, two) = (rig.pipeline("one").await.id, rig.pipeline("two").await.id);
        let first = rig.store.verify_turn().await.unwrap().unwrap();
        let second = rig.store.verify_turn().await.unwrap().unwrap();
        assert_eq!([first, second].iter().collect::<BTreeSet<_>>(), [one, two].iter().collect());
        assert_eq!(rig.store.verify_turn().await.unwrap(), Some(first));
    })
    .await;
}
