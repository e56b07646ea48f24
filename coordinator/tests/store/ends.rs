//! The end of upkeep and of take-overs, alike by Postgres and by its twin.

use chrono::Utc;
use lockstep_coordinator::store::{TakeOverApplied, UpkeepApplied};
use lockstep_protocol::{
    takeover::{Phase, Purpose},
    upkeep::{Outcome, Work, decide},
};

use crate::{
    location_scene::{problem, take_over, to, upkeep},
    rig::{LEASE, alice, both, replica},
};

/// Its driver included, which therefore stores an end in its own turn: a renewal that came between would take the row for somebody else's.
#[tokio::test]
async fn what_has_ended_is_renewed_for_nobody() {
    both(async |rig| {
        let pipeline = rig.pipeline("orders").await;
        rig.store.admit_upkeep(upkeep(&pipeline, Work::Collect), &alice()).await.unwrap();
        let held = rig.store.claim_upkeep("one", LEASE, 9).await.unwrap().pop().unwrap();
        assert!(rig.store.renew_upkeep(held.id, held.term, LEASE, held.tally).await.unwrap());
        let end = decide(&held, Outcome::Done(None), held.tally, Utc::now());
        let applied = rig.store.apply_upkeep(&held, &end, &replica()).await.unwrap();
        assert!(matches!(applied, UpkeepApplied::Stored(_)), "{applied:?}");
        assert!(!rig.store.renew_upkeep(held.id, held.term, LEASE, held.tally).await.unwrap());

        rig.store.admit_take_over(take_over(&pipeline, Purpose::TakeOver), &alice()).await.unwrap();
        let held = rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap();
        assert!(rig.store.renew_take_over(held.id, held.term, LEASE).await.unwrap());
        let mut end = to(&held, Phase::Failed);
        end.next.problem = Some(problem());
        let applied = rig.store.apply_take_over(&held, &end, None, &replica()).await.unwrap();
        assert!(matches!(applied, TakeOverApplied::Stored(_)), "{applied:?}");
        assert!(!rig.store.renew_take_over(held.id, held.term, LEASE).await.unwrap());
    })
    .await;
}
