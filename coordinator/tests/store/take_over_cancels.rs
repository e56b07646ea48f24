//! Stopping a take-over before its fence, alike by Postgres and by its twin.

use chrono::Utc;
use lockstep_coordinator::store::{AuditFilter, NewPipeline, Page, PipelineRow, TakeOverApplied};
use lockstep_protocol::{
    problem::Reason,
    round::CancelRequest,
    takeover::{Event, Phase, Purpose, TakeOver, decide},
};

use crate::{
    location_scene::take_over,
    rig::{LEASE, Rig, alice, both, new_pipeline, replica, spec},
};

/// A standby whose activation is driven.
async fn activated(rig: &Rig) -> (PipelineRow, TakeOver) {
    let new = NewPipeline { fence_bytes: None, ..new_pipeline(spec("heir", "heir")) };
    let row = rig.store.create_pipeline(new, &alice()).await.unwrap().into_row();
    rig.store.admit_take_over(take_over(&row, Purpose::Activate), &alice()).await.unwrap();
    (row, rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap())
}

fn request(cause: &str) -> CancelRequest {
    CancelRequest { by: "bob".to_owned(), cause: cause.to_owned() }
}

async fn step(rig: &Rig, before: &TakeOver, event: Event) -> TakeOverApplied {
    let decision = decide(before, &event, Utc::now());
    rig.store.apply_take_over(before, &decision, None, &replica()).await.unwrap()
}

#[tokio::test]
async fn a_cancel_ends_a_take_over_before_its_fence_is_stored_and_its_driver_writes_nothing_any_more() {
    both(async |rig| {
        let (row, driven) = activated(&rig).await;
        let refused = rig.store.delete_pipeline(&row.id.into(), None, &alice()).await.unwrap_err().problem().clone();
        assert_eq!(refused.reason, Reason::TakeOverInProgress, "{refused}");
        assert!(refused.message.contains("lockstep standby cancel heir"), "{refused}");
        let cancel = |only, cause| {
            let (rig, row) = (&rig, &row);
            async move { rig.store.cancel_take_over(&row.id.into(), only, request(cause), &alice()).await }
        };
        let other = cancel(Some(uuid::Uuid::from_u128(3)), "a typo").await.unwrap_err().problem().clone();
        assert_eq!(other.reason, Reason::RoundNotFound);

        let cancelled = cancel(None, "the primary is back").await.unwrap();
        assert_eq!((cancelled.id, cancelled.phase), (driven.id, Phase::Cancelled));
        assert_eq!(cancelled.problem.as_ref().map(|problem| problem.reason), Some(Reason::Cancelled));
        assert_eq!(step(&rig, &driven, Event::Warmed(None)).await, TakeOverApplied::Moved);
        assert!(!rig.store.renew_take_over(driven.id, driven.term, LEASE).await.unwrap());
        assert_eq!(rig.store.get_take_over(driven.id).await.unwrap(), cancelled);
        // After a lost answer the same again; anything else comes too late.
        assert_eq!(cancel(Some(driven.id), "the primary is back").await.unwrap(), cancelled);
        let late = cancel(None, "once more").await.unwrap_err().problem().clone();
        assert_eq!(late.reason, Reason::RoundNotCancellable);

        let filter = AuditFilter { pipeline: Some(row.id), ..AuditFilter::default() };
        let trail = rig.store.list_audit(filter, Page::default()).await.unwrap().items;
        let told = trail.iter().find(|event| event.to.as_deref() == Some("cancelled")).unwrap();
        assert_eq!(told.actor, "alice");
        assert!(told.cause.contains("the primary is back"), "{}", told.cause);
        // A standby as before, which may also be deleted.
        let standby = rig.store.standbys(Some(row.id)).await.unwrap().pop().unwrap();
        assert!(standby.standing.following().is_some() && standby.ended_fenced.is_none());
        rig.store.delete_pipeline(&row.id.into(), None, &alice()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn once_the_fence_is_stored_there_is_no_way_back() {
    both(async |rig| {
        let (row, driven) = activated(&rig).await;
        let mut now = driven;
        for event in [Event::Warmed(None), Event::Surveyed { highest: None }] {
            now = match step(&rig, &now, event).await {
                TakeOverApplied::Stored(next) => next,
                TakeOverApplied::Moved => panic!("nobody else moves it"),
            };
        }
        assert_eq!(now.phase, Phase::Fencing);
        let refused = rig.store.cancel_take_over(&row.id.into(), None, request("too late"), &alice()).await;
        let refused = refused.unwrap_err().problem().clone();
        assert_eq!(refused.reason, Reason::RoundNotCancellable, "{refused}");
        assert!(refused.message.contains("fencing"), "{refused}");
        assert_eq!(rig.store.get_take_over(now.id).await.unwrap(), now);
    })
    .await;
}
