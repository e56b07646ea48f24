//! Writes of verifications and of the schedules of pushes.

use std::time::Duration;

use chrono::Utc;
use lockstep_coordinator::store::VerifyBudget;
use lockstep_protocol::verification::Allowance;

use super::{Write, told};
use crate::{
    location_scene::{Scene, finding, problem},
    rig::{LEASE, alice, replica},
};

pub(super) const VERIFICATIONS: [Write; 10] = [
    ("keep_verification", |scene| {
        Box::pin(async move {
            let (owner, [_, newest]) = scene.owner().await;
            scene.ready().await;
            told(scene.store.keep_verification(finding(&owner, newest), &alice()).await, |kept| kept.owes_mark())
        })
    }),
    ("owed_marks", |scene| {
        Box::pin(async move {
            scene.damaged().await;
            scene.ready().await;
            told(scene.store.owed_marks(LEASE).await, |owed| owed.len() == 1)
        })
    }),
    ("settle_mark, it stands", |scene| {
        Box::pin(async move {
            let damaged = scene.damaged().await;
            scene.ready().await;
            told(scene.store.settle_mark(&damaged, None, Duration::ZERO, &replica()).await, |settled| *settled)
        })
    }),
    ("settle_mark, not yet", |scene| {
        Box::pin(async move {
            let damaged = scene.damaged().await;
            scene.ready().await;
            told(scene.store.settle_mark(&damaged, Some(problem()), LEASE, &replica()).await, |settled| *settled)
        })
    }),
    ("claim_verify_budget", |scene| {
        Box::pin(async move {
            scene.ready().await;
            told(scene.store.claim_verify_budget("two", LEASE).await, Option::is_some)
        })
    }),
    ("renew_verify_budget", |scene| {
        Box::pin(async move {
            scene.rig.store.claim_verify_budget("two", LEASE).await.unwrap().unwrap();
            scene.ready().await;
            told(scene.store.renew_verify_budget("two", LEASE * 10).await, |renewed| *renewed)
        })
    }),
    ("save_verify_budget", |scene| {
        Box::pin(async move {
            let budget = scene.rig.store.claim_verify_budget("two", LEASE).await.unwrap().unwrap();
            let budget = VerifyBudget { allowance: Some(Allowance { left: 9, at: Utc::now() }), ..budget };
            scene.ready().await;
            told(scene.store.save_verify_budget(&budget, LEASE).await, Option::is_some)
        })
    }),
    ("verify_turn", |scene| {
        Box::pin(async move {
            scene.owner().await;
            scene.ready().await;
            told(scene.store.verify_turn().await, Option::is_some)
        })
    }),
    ("due_pushes", |scene| {
        Box::pin(async move {
            scheduled(scene).await;
            scene.ready().await;
            told(scene.store.due_pushes(LEASE, 9).await, |found| found.due.len() == 1)
        })
    }),
    ("save_push_schedule", |scene| {
        Box::pin(async move {
            scheduled(scene).await;
            let due = scene.rig.store.due_pushes(LEASE, 9).await.unwrap().due.pop().unwrap();
            let mut schedule = due.schedule.clone();
            schedule.due_at = Utc::now() + LEASE;
            schedule.problem = Some(problem());
            scene.ready().await;
            told(scene.store.save_push_schedule(&due, schedule).await, |saved| *saved)
        })
    }),
];

/// A pipeline that is pushed by itself is due.
async fn scheduled(scene: &Scene<'_>) {
    let (owner, _) = scene.owner().await;
    let mut spec = owner.spec.clone();
    spec.push_interval = Some(Duration::from_secs(60));
    scene.rig.store.update_pipeline(&owner.id.into(), spec, None, &alice()).await.unwrap();
    // Its row is made, to be due at the next look.
    assert_eq!(scene.rig.store.due_pushes(LEASE, 9).await.unwrap().due, []);
}
