//! Pulls.

use lockstep_protocol::{
    problem::Reason,
    round::{Kind, Phase, PullRequest, Source},
};

use crate::{
    agent::Play,
    rig::{Rig, latest, problem},
};

async fn pushed() -> (Rig, crate::rig::Replica, lockstep_coordinator::store::PipelineRow) {
    let rig = Rig::new([&[4], &[4], &[3, 4]]).await;
    let replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    let record = rig.ended(rig.start_push(&pipeline).await).await;
    assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
    (rig, replica, pipeline)
}

#[tokio::test(flavor = "multi_thread")]
async fn wiped_disks_are_filled_from_the_location_and_only_that_checkpoint_remains() {
    let (rig, _replica, pipeline) = pushed().await;
    rig.agents[0].wipe();
    rig.agents[1].wipe();
    let record = rig.ended(rig.start_pull(&pipeline, latest()).await).await;
    assert_eq!(record.round.phase, Phase::Installed, "{:?}", record.round.problem);
    let Kind::Pull(pull) = &record.round.kind else { panic!("a push") };
    assert_eq!(pull.resolved.as_ref().unwrap().source, Source::Location);
    assert!(rig.agents.iter().all(|agent| agent.steps() == [4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_checkpoints_are_installed_without_any_download() {
    let (rig, _replica, pipeline) = pushed().await;
    let record = rig.ended(rig.start_pull(&pipeline, latest()).await).await;
    assert_eq!(record.round.phase, Phase::Installed, "{:?}", record.round.problem);
    assert!(rig.agents.iter().all(|agent| agent.calls("pull").is_empty() && agent.steps() == [4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_loses_its_disk_while_others_install_pulls_again() {
    let (rig, _replica, pipeline) = pushed().await;
    for agent in &rig.agents {
        agent.wipe();
    }
    // Host 1 holds the round in transferring while host 0, staged by then, restarts and so loses what it staged (R20).
    rig.agents[1].plays([Play::Hold]);
    let round = rig.start_pull(&pipeline, latest()).await;
    rig.until(round, |record| record.round.participants[0].phase.as_str() == "staged").await;
    rig.agents[0].restart();
    rig.agents[1].release();
    let record = rig.ended(round).await;
    assert_eq!(record.round.phase, Phase::Installed, "{:?}", record.round.problem);
    assert!(rig.agents.iter().all(|agent| agent.steps() == [4]));
    assert!(rig.agents[0].calls("pull").len() >= 2);
    assert!(rig.causes(round).await.iter().any(|cause| cause.contains("CHECKPOINT_NOT_FOUND")));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_anywhere_is_a_fresh_start_only_where_that_was_asked_for() {
    let rig = Rig::new([&[], &[], &[]]).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    let record = rig.ended(rig.start_pull(&pipeline, latest()).await).await;
    assert_eq!((record.round.phase, problem(&record).reason), (Phase::Failed, Reason::CheckpointNotFound));
    let fresh = PullRequest { fail_if_none: false, ..latest() };
    assert_eq!(rig.ended(rig.start_pull(&pipeline, fresh).await).await.round.phase, Phase::Fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_start_over_local_checkpoints_removes_them_first() {
    let rig = Rig::new([&[3], &[4], &[]]).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    let fresh = PullRequest { fail_if_none: false, ..latest() };
    let record = rig.ended(rig.start_pull(&pipeline, fresh).await).await;
    assert_eq!(problem(&record).reason, Reason::NoCommonCheckpoint);
    let discard = PullRequest { discard_local: true, ..fresh };
    assert_eq!(rig.ended(rig.start_pull(&pipeline, discard).await).await.round.phase, Phase::Fresh);
    assert!(rig.agents.iter().all(|agent| agent.steps().is_empty()));
}
