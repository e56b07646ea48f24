//! Activations: what ends the last pull, and what is tried again.

use std::time::Duration;

use lockstep_coordinator::store::{AdmitTakeOver, Caller, ClaimState, NewPipeline, PipelineRow};
use lockstep_protocol::{
    problem::Reason,
    round::RetryPolicy,
    takeover::{Phase, Purpose, TakeOver},
};

use crate::{
    agent::Play,
    rig::{Replica, Rig},
};

fn alice() -> Caller {
    Caller { actor: "alice".to_owned(), ..Caller::default() }
}

/// A location with one checkpoint of a pipeline that this database has forgotten, and a standby on it that was told not to follow by itself. Both are named `orders`, since that
/// is what the agents run for.
async fn pair() -> (Rig, Replica, PipelineRow) {
    let rig = Rig::new([&[4], &[4], &[4]]).await;
    let replica = rig.replica("one");
    let orders = rig.pipeline("orders").await;
    let pushed = rig.ended(rig.start_push(&orders).await).await;
    assert_eq!(pushed.round.problem, None);
    rig.store.delete_pipeline(&orders.id.into(), None, &alice()).await.unwrap();
    let mut new = rig.new_pipeline("orders", &Rig::location());
    new.spec.initial = lockstep_protocol::spec::Initial::Standby;
    let heir = rig.store.create_pipeline(NewPipeline { fence_bytes: None, ..new }, &alice()).await.unwrap().into_row();
    rig.store.stop_standby(&heir.id.into(), &alice()).await.unwrap();
    (rig, replica, heir)
}

async fn activate(rig: &Rig, heir: &PipelineRow) -> TakeOver {
    let ask = AdmitTakeOver {
        pipeline: heir.id.into(),
        purpose: Purpose::Activate,
        chosen: None,
        request_id: None,
        seen: None,
        retry: RetryPolicy { base: Duration::from_millis(50), ..RetryPolicy::default() },
    };
    let admitted = rig.store.admit_take_over(ask, &alice()).await.unwrap();
    let mut changes = rig.store.changes();
    let ended = async {
        loop {
            let now = rig.store.get_take_over(admitted.id).await.unwrap();
            if now.phase.is_terminal() {
                return now;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.next()).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the activation goes on for ever")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_bucket_has_lost_ends_an_activation_and_leaves_a_standby_that_can_be_activated_again() {
    let (rig, _replica, heir) = pair().await;
    for reason in [Reason::CheckpointDamaged, Reason::ManifestInvalid] {
        // The warm pull goes well, the last one doesn't.
        rig.agents[1].plays([Play::Well, Play::Fail(reason)]);
        let ended = activate(&rig, &heir).await;
        let problem = ended.problem.unwrap();
        assert_eq!((ended.phase, problem.reason), (Phase::Failed, Reason::CheckpointDamaged), "{problem}");
        for part in ["fenced for pipeline orders", "which pipeline orders pushed", "lockstep standby activate orders"] {
            assert!(problem.message.contains(part), "{problem}");
        }
        let row = rig.store.get_pipeline(&heir.id.into()).await.unwrap();
        assert_eq!((row.claim, Some(row.generation)), (ClaimState::Standby, ended.fence.map(|fence| fence.generation)));
        let shown = rig.store.standbys(Some(heir.id)).await.unwrap().pop().unwrap();
        assert_eq!(shown.ended_fenced.map(|problem| problem.reason), Some(Reason::CheckpointDamaged));
    }
    assert_eq!(activate(&rig, &heir).await.phase, Phase::Done);
    let row = rig.store.get_pipeline(&heir.id.into()).await.unwrap();
    assert_eq!((row.claim, row.generation.get()), (ClaimState::Owned, 4));
    assert_eq!(rig.store.standbys(Some(heir.id)).await.unwrap(), []);
    assert_eq!(rig.overwritten(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_or_can_be_mended_is_tried_again_behind_the_fence() {
    let (rig, _replica, heir) = pair().await;
    let failures = [Reason::StoreDenied, Reason::LocalIo, Reason::AgentPanic].map(Play::Fail);
    rig.agents[1].plays([Play::Well].into_iter().chain(failures));
    let ended = activate(&rig, &heir).await;
    assert_eq!((ended.phase, ended.problem), (Phase::Done, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_found_before_the_fence_ends_the_activation_without_one() {
    let (rig, _replica, heir) = pair().await;
    rig.agents[1].plays([Play::Fail(Reason::CheckpointDamaged)]);
    let ended = activate(&rig, &heir).await;
    let problem = ended.problem.unwrap();
    assert_eq!((ended.phase, problem.reason, ended.fence), (Phase::Failed, Reason::CheckpointDamaged, None));
    assert!(problem.message.contains("nothing was fenced"), "{problem}");
    assert_eq!(rig.store.standbys(Some(heir.id)).await.unwrap().pop().unwrap().ended_fenced, None);
}
