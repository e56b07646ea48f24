//! An owner, alive, and a standby on its location with hosts and a database of its own.

use std::path::PathBuf;

use lockstep_client::v1::{self, RoundPhase};
use lockstep_integration_tests::cluster::{BUCKET, Cluster, Options, PIPELINE};

/// The standby's pipeline.
pub(crate) const HEIR: &str = "heir";

/// One file a host, of which each step changes.
pub(crate) fn checkpoint_all(cluster: &Cluster, step: u64) {
    for host in &cluster.hosts {
        host.checkpoint(step, &[("state.bin", format!("host {} at step {step}", host.idx).as_bytes())]);
    }
}

/// `orders` with steps 10 and 20 acknowledged; and `heir`, whose spec is finished by `spec`, with further flags for its coordinator.
pub(crate) async fn owner_and(flags: &[&'static str], spec: impl FnOnce(&mut v1::PipelineSpec)) -> (Cluster, Cluster) {
    let options = Options { coordinator_flags: flags.to_vec(), ..Options::default() };
    owner_and_with(options, spec).await
}

/// The same, with these options of the heir's cluster.
pub(crate) async fn owner_and_with(options: Options, spec: impl FnOnce(&mut v1::PipelineSpec)) -> (Cluster, Cluster) {
    let owner = Cluster::start().await;
    for step in [10, 20] {
        checkpoint_all(&owner, step);
        owner.pushed().await;
    }
    let heir = beside(&owner, options).await;
    let mut spec_of_heir = v1::PipelineSpec {
        initial: v1::Initial::Standby.into(),
        location: Some(owner.location(PIPELINE)),
        pull_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..heir.spec(HEIR)
    };
    spec(&mut spec_of_heir);
    let created = heir.client.create_pipeline(spec_of_heir).await.unwrap();
    assert_eq!(created.generation, 0, "a standby owns nothing");
    (owner, heir)
}

/// The hosts and the database of the heir, whose pipeline is not created yet.
pub(crate) async fn beside(owner: &Cluster, options: Options) -> Cluster {
    let mut heir = Cluster::with(Options { create: false, ..options }).await;
    for idx in 0..3 {
        heir.kill_agent(idx);
        start_agent(owner, &mut heir, idx).await;
    }
    heir
}

/// Starts (again) an agent of the heir, which may read and write the owner's location and its own beside it.
pub(crate) async fn start_agent(owner: &Cluster, heir: &mut Cluster, idx: usize) {
    start_agent_with(owner, heir, idx, &format!("agent-{idx}-secret")).await;
}

/// The same with this S3 secret.
pub(crate) async fn start_agent_with(owner: &Cluster, heir: &mut Cluster, idx: usize, secret: &str) {
    let identity = heir.identity(idx);
    let mut flags = vec!["--pipeline".to_owned(), HEIR.to_owned()];
    for prefix in [PIPELINE, HEIR] {
        let allowed = format!("s3://{BUCKET}/{prefix}?endpoint={}&path_style=true", owner.endpoint());
        flags.extend(["--allow-location".to_owned(), allowed]);
    }
    flags.extend(["--ready-file".to_owned(), ready_file(heir, idx).display().to_string()]);
    heir.start_agent_as(idx, &identity, &flags, secret).await;
}

/// Where the agent of a host says what its engine may do.
pub(crate) fn ready_file(cluster: &Cluster, idx: usize) -> PathBuf {
    cluster.scratch().join(format!("agent{idx}.ready"))
}

pub(crate) async fn push(cluster: &Cluster, pipeline: &str) -> v1::Round {
    let request = v1::StartPushRequest { pipeline: pipeline.to_owned(), ..Default::default() };
    let round = cluster.client.start_push(request).await.unwrap();
    cluster.client.wait_round(&round.id).await.unwrap()
}

/// Every host's disk has the very files of the owner's.
pub(crate) fn assert_same_state(heir: &Cluster, owner: &Cluster) {
    for (follower, leader) in heir.hosts.iter().zip(&owner.hosts) {
        let (held, all) = (follower.state(), leader.state());
        assert!(!held.is_empty(), "host {} holds nothing", follower.idx);
        for (path, digest) in held {
            assert_eq!(all.get(&path), Some(&digest), "{path} of host {}", follower.idx);
        }
    }
}

pub(crate) fn is_installed(round: &v1::Round) -> bool {
    round.phase() == RoundPhase::Installed
}
