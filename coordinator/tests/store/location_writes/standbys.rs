//! Writes of standbys and words, of fences, and of what differs between database and bucket.

use std::collections::BTreeMap;

use chrono::Utc;
use lockstep_coordinator::store::{AcceptLoss, Difference};
use lockstep_protocol::{
    problem::{Problem, Reason},
    standby::{FollowState, Sighting},
};

use super::{Write, told};
use crate::{
    location_scene::problem,
    rig::{LEASE, alice, replica},
};

pub(super) const STANDBYS: [Write; 13] = [
    ("start_standby", |scene| {
        Box::pin(async move {
            let standby = scene.standby().await;
            scene.ready().await;
            told(scene.store.start_standby(&standby.id.into(), None, &alice()).await, |_| true)
        })
    }),
    ("start_standby, pinned", |scene| {
        Box::pin(async move {
            let standby = scene.standby().await;
            let (_, [old, _]) = scene.owner().await;
            scene.rig.store.start_standby(&standby.id.into(), None, &alice()).await.unwrap();
            scene.ready().await;
            told(scene.store.start_standby(&standby.id.into(), Some(old.round), &alice()).await, |_| true)
        })
    }),
    ("start_standby, of a fenced owner", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let problem = Problem::new(Reason::Fenced, "somebody else owns it");
            scene.rig.store.fence_out(owner.id, owner.generation, problem, &replica()).await.unwrap();
            scene.ready().await;
            told(scene.store.start_standby(&owner.id.into(), None, &alice()).await, |_| true)
        })
    }),
    ("stop_standby", |scene| {
        Box::pin(async move {
            let standby = scene.standby().await;
            scene.rig.store.start_standby(&standby.id.into(), None, &alice()).await.unwrap();
            scene.ready().await;
            told(scene.store.stop_standby(&standby.id.into(), &alice()).await, |_| true)
        })
    }),
    ("due_standbys", |scene| {
        Box::pin(async move {
            let standby = scene.standby().await;
            scene.rig.store.start_standby(&standby.id.into(), None, &alice()).await.unwrap();
            scene.ready().await;
            told(scene.store.due_standbys(LEASE, 9).await, |found| found.due.len() == 1)
        })
    }),
    ("save_follow_state", |scene| {
        Box::pin(async move {
            let standby = scene.standby().await;
            scene.rig.store.start_standby(&standby.id.into(), None, &alice()).await.unwrap();
            let due = scene.rig.store.due_standbys(LEASE, 9).await.unwrap().due.pop().unwrap();
            let state = FollowState {
                due_at: Utc::now() + LEASE,
                failures: 1,
                problem: Some(problem()),
                seen: None,
                sighting: Sighting { at: Some(Utc::now()), newest: None, held: None, lag: None },
            };
            scene.ready().await;
            told(scene.store.save_follow_state(&due, state).await, |saved| *saved)
        })
    }),
    ("claim_words", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            scene.word(&owner).await;
            scene.ready().await;
            told(scene.store.claim_words(LEASE).await, |claimed| claimed.len() == 1)
        })
    }),
    ("save_telling", |scene| {
        Box::pin(async move {
            let word = scene.claimed_word().await;
            let answers: BTreeMap<_, _> = word.owed().map(|host_idx| (host_idx, Ok(()))).collect();
            let next = word.after(&answers, Utc::now(), 0);
            scene.ready().await;
            told(scene.store.save_telling(&word, next).await, |saved| *saved)
        })
    }),
    ("fence_out", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let problem = Problem::new(Reason::Fenced, "somebody else owns it");
            scene.ready().await;
            // False: it is fenced already, as it is once this very call was run before.
            told(scene.store.fence_out(owner.id, owner.generation, problem, &replica()).await, |_| true)
        })
    }),
    ("note_difference", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.owner().await;
            let (row, behind) = ((owner.id, owner.generation), Problem::new(Reason::DatabaseBehind, "it is behind"));
            scene.ready().await;
            told(scene.store.note_difference(row, Difference::Behind, behind, &replica()).await, |noted| *noted)
        })
    }),
    ("note_difference, a lost checkpoint", |scene| {
        Box::pin(async move {
            let (owner, [_, newest]) = scene.owner().await;
            let row = (owner.id, owner.generation);
            scene.ready().await;
            told(scene.store.note_difference(row, Difference::Lost(newest), problem(), &replica()).await, |noted| {
                *noted
            })
        })
    }),
    ("found_again", |scene| {
        Box::pin(async move {
            let (owner, lost) = scene.lost().await;
            scene.ready().await;
            told(scene.store.found_again((owner.id, owner.generation), lost, &replica()).await, |found| *found)
        })
    }),
    ("accept_loss", |scene| {
        Box::pin(async move {
            let (owner, _) = scene.lost().await;
            let ask = AcceptLoss {
                pipeline: owner.id.into(),
                checkpoint: None,
                cause: "no versions are kept".to_owned(),
                request_id: None,
            };
            scene.ready().await;
            told(scene.store.accept_loss(ask, &alice()).await, |_| true)
        })
    }),
];
