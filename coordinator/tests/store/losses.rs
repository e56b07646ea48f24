//! Lost checkpoints, alike by Postgres and by its twin: noted, found again, given up.

use std::time::Duration;

use lockstep_coordinator::store::{AcceptLoss, AuditFilter, Difference, Marking, Page, PipelineRow, refuse_lost};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    garbage::Candidates,
    id::{Generation, RoundId},
    problem::{Problem, Reason},
    round::{Kind, WantedCut},
    upkeep::Work,
};

use crate::{
    location_scene::upkeep,
    rig::{Rig, admitted, alice, both, push, refused, replica, request_id},
};

fn gone() -> Problem {
    Problem::new(Reason::CheckpointNotFound, "its commit is gone")
}

async fn committed(rig: &Rig, pipeline: &PipelineRow, step: u64) -> CommitRef {
    let Kind::Push(push) = rig.commit(pipeline, step).await.kind else { panic!("a push") };
    push.committed.unwrap()
}

async fn note(rig: &Rig, pipeline: &PipelineRow, commit: CommitRef) -> bool {
    let row = (pipeline.id, pipeline.generation);
    rig.store.note_difference(row, Difference::Lost(commit), gone(), &replica()).await.unwrap()
}

async fn row(rig: &Rig, pipeline: &PipelineRow) -> PipelineRow {
    rig.store.get_pipeline(&pipeline.id.into()).await.unwrap()
}

async fn events(rig: &Rig, pipeline: &PipelineRow, event: &str) -> Vec<String> {
    let filter = AuditFilter { pipeline: Some(pipeline.id), round: None };
    let trail = rig.store.list_audit(filter, Page { size: 1000, token: None }).await.unwrap();
    trail.items.into_iter().filter(|line| line.event == event).map(|line| line.cause).collect()
}

fn accept(pipeline: &PipelineRow) -> AcceptLoss {
    AcceptLoss { pipeline: pipeline.id.into(), checkpoint: None, cause: "no versions".to_owned(), request_id: None }
}

#[tokio::test]
async fn a_lost_checkpoint_refuses_collections_until_exactly_it_is_found_again() {
    both(async |rig| {
        let pipeline = rig.pipeline("orders").await;
        let (old, lost) = (committed(&rig, &pipeline, 10).await, committed(&rig, &pipeline, 20).await);
        let never = CommitRef { round: RoundId::new(uuid::Uuid::from_u128(7)), ..lost };
        assert!(!note(&rig, &pipeline, never).await, "no push of this pipeline has made it");
        let other = CommitRef { digest: Digest::of(b"other bytes"), ..lost };
        assert!(!note(&rig, &pipeline, other).await, "it was committed with other bytes");
        assert!(note(&rig, &pipeline, lost).await);
        assert!(!note(&rig, &pipeline, lost).await, "noted already");
        let problem = refuse_lost(&row(&rig, &pipeline).await).unwrap_err();
        assert_eq!(problem.reason, Reason::CheckpointNotFound);
        assert!(problem.message.contains("its commit is gone"), "{problem}");
        assert_eq!(problem.metadata["checkpoint"], lost.round.to_string());
        // It is due all the same: a collection looks for it again before anything else.
        assert_eq!(rig.store.due_collections(Duration::ZERO, 10).await.unwrap(), [pipeline.id]);

        // One that was pushed meanwhile hides nothing.
        committed(&rig, &pipeline, 30).await;
        assert_eq!(row(&rig, &pipeline).await.lost.unwrap().commit, lost);
        let found = async |generation, commit| {
            rig.store.found_again((pipeline.id, generation), commit, &replica()).await.unwrap()
        };
        assert!(!found(pipeline.generation, old).await, "another one");
        assert!(!found(Generation::FIRST.next(), lost).await, "of another owner");
        assert!(found(pipeline.generation, lost).await);
        assert!(!found(pipeline.generation, lost).await, "once");
        let settled = row(&rig, &pipeline).await;
        assert_eq!(settled.lost, None);
        refuse_lost(&settled).unwrap();
        let causes = events(&rig, &pipeline, "checkpoint_found").await;
        assert_eq!(causes, [format!("checkpoint {} (1-2) stands again as it was", lost.round)]);
    })
    .await;
}

#[tokio::test]
async fn a_loss_is_given_up_once_and_what_it_held_up_goes_on() {
    both(async |rig| {
        let pipeline = rig.pipeline("orders").await;
        let problem =
            refused(rig.store.accept_loss(accept(&pipeline), &alice()).await.unwrap_err(), Reason::CheckpointNotFound);
        assert!(problem.message.contains("nothing to accept"), "{problem}");
        let (old, lost) = (committed(&rig, &pipeline, 10).await, committed(&rig, &pipeline, 20).await);
        assert!(note(&rig, &pipeline, old).await, "an older one");
        assert!(note(&rig, &pipeline, lost).await, "the newest takes its place");
        let ask = AcceptLoss { request_id: Some(request_id()), ..accept(&pipeline) };
        let meant = |commit: CommitRef| AcceptLoss { checkpoint: Some(commit.round), ..ask.clone() };
        let problem =
            refused(rig.store.accept_loss(meant(old), &alice()).await.unwrap_err(), Reason::CheckpointNotFound);
        assert_eq!(
            (&problem.metadata["lost"], &problem.metadata["checkpoint"]),
            (&lost.round.to_string(), &old.round.to_string())
        );

        let accepted = rig.store.accept_loss(ask.clone(), &alice()).await.unwrap();
        assert_eq!((accepted.loss.commit, &accepted.loss.problem), (lost, &gone()));
        assert_eq!(rig.store.accept_loss(ask.clone(), &alice()).await.unwrap(), accepted, "the same request");
        assert_eq!(rig.store.accept_loss(meant(lost), &alice()).await.unwrap(), accepted);
        let other = AcceptLoss { cause: "something else".to_owned(), ..ask.clone() };
        refused(rig.store.accept_loss(other, &alice()).await.unwrap_err(), Reason::RequestIdReused);
        refused(rig.store.accept_loss(meant(old), &alice()).await.unwrap_err(), Reason::RequestIdReused);
        refused(rig.store.accept_loss(accept(&pipeline), &alice()).await.unwrap_err(), Reason::CheckpointNotFound);
        assert_eq!(rig.store.accepted_losses(pipeline.id).await.unwrap(), [accepted]);
        assert_eq!(
            events(&rig, &pipeline, "loss_accepted").await,
            [format!("checkpoint {} (1-2) is given up: no versions", lost.round)]
        );

        let now = row(&rig, &pipeline).await;
        assert_eq!((now.lost, now.last_commit), (None, None));
        assert!(!note(&rig, &pipeline, lost).await, "a comparison that began before says nothing");
        rig.store.admit_upkeep(upkeep(&pipeline, Work::Collect), &alice()).await.unwrap();
        // The very step that was lost is no answer any more: it is pushed again.
        let mut again = push(&pipeline);
        again.wanted = WantedCut::Step(lockstep_protocol::id::Step::new(20).unwrap());
        admitted(rig.store.admit_push(again, &alice()).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn what_is_taken_to_stand_is_committed_and_neither_retired_nor_given_up() {
    both(async |rig| {
        let (pipeline, other) = (rig.pipeline("orders").await, rig.pipeline("invoices").await);
        committed(&rig, &other, 10).await;
        let mut commits = Vec::new();
        for step in [10, 20, 30, 40] {
            commits.push(committed(&rig, &pipeline, step).await);
        }
        admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
        let committed = async || {
            let committed = rig.store.committed(pipeline.id).await.unwrap();
            committed.into_iter().map(|one| (one.step.get(), one.commit)).collect::<Vec<_>>()
        };
        let all = [(40, commits[3]), (30, commits[2]), (20, commits[1]), (10, commits[0])];
        assert_eq!(committed().await, all);
        note(&rig, &pipeline, commits[2]).await;
        assert_eq!(committed().await, all, "what is lost is looked for again");
        rig.store.accept_loss(accept(&pipeline), &alice()).await.unwrap();
        assert_eq!(committed().await, [all[0], all[2], all[3]]);
        let marking = Marking {
            pipeline: pipeline.id,
            generation: pipeline.generation,
            candidates: Candidates { retire: vec![commits[0]], kept: Vec::new() },
            since: rig.store.now().await.unwrap(),
            caller: replica(),
            cause: "a test".to_owned(),
        };
        rig.store.mark_retired(marking).await.unwrap();
        assert_eq!(committed().await, [all[0], all[2]]);
    })
    .await;
}

#[tokio::test]
async fn a_loss_that_an_older_version_has_noted_names_its_commit_after_the_migration() {
    let migration = include_str!("../../../migrations/0012_lost_checkpoints.sql");
    let rows = migration.split(';').map(|statement| {
        let lines = statement.lines().filter(|line| !line.starts_with("--"));
        lines.collect::<Vec<_>>().join("\n")
    });
    let backfill: Vec<String> =
        rows.filter(|statement| statement.trim_start().starts_with("UPDATE pipelines")).collect();
    assert_eq!(backfill.len(), 2, "{migration}");
    let rig = Rig::new().await;
    let (known, unknown) = (rig.pipeline("known").await, rig.pipeline("unknown").await);
    let lost = committed(&rig, &known, 10).await;
    committed(&rig, &known, 20).await;
    let mut sql = rig.sql().await;
    for (pipeline, round) in [(&known, lost.round.uuid()), (&unknown, uuid::Uuid::from_u128(7))] {
        let problem = serde_json::to_value(gone().with("checkpoint", round)).unwrap();
        sqlx::query("UPDATE pipelines SET lost_at = clock_timestamp(), lost_problem = $2 WHERE id = $1")
            .bind(pipeline.id.uuid())
            .bind(problem)
            .execute(&mut sql)
            .await
            .unwrap();
        assert_eq!(row(&rig, pipeline).await.lost, None, "nobody knows which commit it is");
    }
    for statement in backfill {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut sql).await.unwrap();
    }
    let loss = row(&rig, &known).await.lost.unwrap();
    assert_eq!((loss.commit, loss.problem.message), (lost, gone().message));
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM pipelines WHERE lost_problem IS NOT NULL")
        .fetch_one(&mut sql)
        .await
        .unwrap();
    assert_eq!((left, row(&rig, &unknown).await.lost), (1, None), "the next comparison says it anew");
}
