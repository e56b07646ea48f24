//! Writes of take-overs.

use chrono::Utc;
use lockstep_coordinator::store::{Adoption, StoreError, TakeOverApplied};
use lockstep_protocol::{
    problem::{Problem, Reason},
    round::KeyRead,
    takeover::{Decision, Phase, Purpose, Settlement, TakeOver, settle},
};

use super::{Told, Write, told};
use crate::{
    location_scene::{Scene, problem, take_over, to},
    rig::{LEASE, alice, replica},
};

pub(super) const TAKE_OVERS: [Write; 9] = [
    ("admit_take_over", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            scene.ready().await;
            told(scene.store.admit_take_over(take_over(&owner, Purpose::TakeOver), &alice()).await, |_| true)
        })
    }),
    ("claim_take_overs", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            scene.rig.store.admit_take_over(take_over(&owner, Purpose::TakeOver), &alice()).await.unwrap();
            scene.ready().await;
            told(scene.store.claim_take_overs("two", LEASE).await, |claimed| claimed.len() == 1)
        })
    }),
    ("renew_take_over", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let held = scene.take_over(&owner, Purpose::TakeOver).await;
            scene.ready().await;
            told(scene.store.renew_take_over(held.id, held.term, LEASE * 10).await, |kept| *kept)
        })
    }),
    ("apply_take_over, its fence", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let before = scene.take_over(&owner, Purpose::TakeOver).await;
            scene.ready().await;
            stored(scene.store.apply_take_over(&before, &to(&before, Phase::Fencing), None, &replica()).await)
        })
    }),
    ("apply_take_over, a try that failed", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let before = scene.take_over(&owner, Purpose::TakeOver).await;
            let mut decision = Decision { transitions: Vec::new(), ..to(&before, Phase::Preparing) };
            (decision.next.tries, decision.next.problem) = (1, Some(problem()));
            decision.next.retry_at = Some(Utc::now() + LEASE);
            scene.ready().await;
            stored(scene.store.apply_take_over(&before, &decision, None, &replica()).await)
        })
    }),
    ("apply_take_over, a fence that lost", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let before = scene.take_over(&owner, Purpose::TakeOver).await;
            let before = scene.moved(&before, Phase::Fencing).await;
            let mut decision = Decision { fence_pipeline: true, ..to(&before, Phase::Failed) };
            decision.next.problem = Some(Problem::new(Reason::LocationOwned, "somebody else was first"));
            scene.ready().await;
            stored(scene.store.apply_take_over(&before, &decision, None, &replica()).await)
        })
    }),
    ("apply_take_over, adopting and settling an open round", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let round = scene.pushing(&owner).await;
            let before = scene.take_over(&owner, Purpose::TakeOver).await;
            let before = scene.moved(&before, Phase::Fencing).await;
            let before = scene.moved(&before, Phase::Adopting).await;
            let base = before.base.clone().unwrap();
            let Settlement::Settled(settled) = settle(&round, &base, KeyRead::NotYet, Utc::now()) else {
                panic!("the base excludes it")
            };
            let adoption = Adoption { round: Some((round, *settled)), last: None, learnt: Vec::new() };
            scene.ready().await;
            stored(scene.store.apply_take_over(&before, &to(&before, Phase::Done), Some(adoption), &replica()).await)
        })
    }),
    ("apply_take_over, adopting for a standby", |scene| {
        Box::pin(async move {
            let before = activating(scene).await;
            let adoption = Adoption { round: None, last: None, learnt: Vec::new() };
            scene.ready().await;
            stored(scene.store.apply_take_over(&before, &to(&before, Phase::Pulling), Some(adoption), &replica()).await)
        })
    }),
    ("apply_take_over, handing over", |scene| {
        Box::pin(async move {
            let before = activating(scene).await;
            let (adoption, decision) =
                (Adoption { round: None, last: None, learnt: Vec::new() }, to(&before, Phase::Pulling));
            let adopted =
                scene.rig.store.apply_take_over(&before, &decision, Some(adoption), &replica()).await.unwrap();
            let TakeOverApplied::Stored(before) = adopted else { panic!("nobody else moves it") };
            scene.ready().await;
            stored(scene.store.apply_take_over(&before, &to(&before, Phase::Done), None, &replica()).await)
        })
    }),
];

fn stored(outcome: Result<TakeOverApplied, StoreError>) -> Told {
    told(outcome, |applied| matches!(applied, TakeOverApplied::Stored(_)))
}

/// A standby's hosts know that they are one; its base stands.
async fn activating(scene: &Scene<'_>) -> TakeOver {
    let standby = scene.standby().await;
    scene.word(&standby).await;
    let mut before = scene.take_over(&standby, Purpose::Activate).await;
    for phase in [Phase::Preparing, Phase::Fencing, Phase::Basing, Phase::Adopting] {
        before = scene.moved(&before, phase).await;
    }
    before
}
