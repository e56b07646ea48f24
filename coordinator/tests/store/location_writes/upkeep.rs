//! Writes of upkeep and retirements.

use chrono::Utc;
use lockstep_coordinator::store::{Marking, UpkeepApplied};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::Candidates,
    id::{Generation, PipelineId},
    upkeep::{self, Outcome, Tally, Work},
};

use super::{Told, Write, told};
use crate::{
    location_scene::{Scene, problem, upkeep},
    rig::{LEASE, alice, replica, request_id},
};

pub(super) const UPKEEP: [Write; 12] = [
    ("admit_upkeep, a pin", |scene| {
        Box::pin(async move {
            let (owner, [old, _]) = scene.owner().await;
            scene.ready().await;
            told(scene.store.admit_upkeep(upkeep(&owner, pin(old)), &alice()).await, |_| true)
        })
    }),
    ("admit_upkeep, a pin less", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let mut ask =
                upkeep(&owner, Work::Unpin { keys: vec!["pins/keep-x.json".to_owned()], documents: Vec::new() });
            ask.request_id = Some(request_id());
            scene.ready().await;
            told(scene.store.admit_upkeep(ask, &alice()).await, |_| true)
        })
    }),
    ("admit_upkeep, a deletion", |scene| {
        Box::pin(async move {
            let (owner, [old, _]) = scene.owner().await;
            scene.ready().await;
            told(scene.store.admit_upkeep(upkeep(&owner, Work::Retire { commit: old }), &alice()).await, |_| true)
        })
    }),
    ("admit_upkeep, a collection", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            scene.ready().await;
            told(scene.store.admit_upkeep(upkeep(&owner, Work::Collect), &alice()).await, |_| true)
        })
    }),
    ("claim_upkeep", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            scene.rig.store.admit_upkeep(upkeep(&owner, Work::Collect), &alice()).await.unwrap();
            scene.ready().await;
            told(scene.store.claim_upkeep("two", LEASE, 9).await, |claimed| claimed.len() == 1)
        })
    }),
    ("renew_upkeep", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let held = scene.upkeep(&owner, Work::Collect).await;
            let tally = Tally { objects: 3, ..Tally::default() };
            scene.ready().await;
            told(scene.store.renew_upkeep(held.id, held.term, LEASE * 10, tally).await, |kept| *kept)
        })
    }),
    ("release_upkeep", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let held = scene.upkeep(&owner, Work::Collect).await;
            scene.ready().await;
            told(scene.store.release_upkeep(held.id, held.term, Tally::default()).await, |kept| *kept)
        })
    }),
    ("apply_upkeep, its end", |scene| Box::pin(applied(scene, Outcome::Done(None)))),
    ("apply_upkeep, a try that failed", |scene| {
        Box::pin(applied(scene, Outcome::Stopped { problem: problem(), jitter: 0 }))
    }),
    ("mark_retired", |scene| {
        Box::pin(async move {
            let (owner, [old, _]) = scene.owner().await;
            scene.ready().await;
            told(scene.store.mark_retired(marking(owner.id, old)).await, |open| open.len() == 1)
        })
    }),
    ("retirement_landed", |scene| {
        Box::pin(async move {
            let (owner, [old, _]) = scene.owner().await;
            scene.rig.store.mark_retired(marking(owner.id, old)).await.unwrap();
            scene.ready().await;
            told(scene.store.retirement_landed(owner.id, old).await, |()| true)
        })
    }),
    ("take_mark_back", |scene| {
        Box::pin(async move {
            let (owner, [old, _]) = scene.owner().await;
            scene.rig.store.mark_retired(marking(owner.id, old)).await.unwrap();
            scene.ready().await;
            told(scene.store.take_mark_back(owner.id, old).await, |()| true)
        })
    }),
];

fn pin(commit: CommitRef) -> Work {
    Work::Pin { commit, key: "pins/keep-x.json".to_owned(), bytes: "{}".to_owned() }
}

fn marking(pipeline: PipelineId, commit: CommitRef) -> Marking {
    Marking {
        pipeline,
        generation: Generation::FIRST,
        candidates: Candidates { retire: vec![commit], kept: Vec::new() },
        since: Utc::now(),
        caller: replica(),
        cause: "of age".to_owned(),
    }
}

async fn applied(scene: &Scene<'_>, outcome: Outcome) -> Told {
    let (owner, _) = scene.owner().await;
    let before = scene.upkeep(&owner, Work::Collect).await;
    let mut next = upkeep::decide(&before, outcome, Tally { objects: 3, ..Tally::default() }, Utc::now());
    // Not so soon that it may have passed when the row is compared.
    next.retry_at = next.retry_at.map(|_| Utc::now() + LEASE);
    scene.ready().await;
    told(scene.store.apply_upkeep(&before, &next, &replica()).await, |applied| {
        matches!(applied, UpkeepApplied::Stored(_))
    })
}
