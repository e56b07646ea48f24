//! Scenario 40: the disk is full. A small file system of its own is mounted for one host; that takes root, as in CI.

use std::fs;

use lockstep_client::v1::{self, ParticipantPhase, RoundPhase, TransferOptions};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{Cluster, Options, agent_key},
    content::{differences, identity, noise, put},
    small_disk::{self, SmallDisk},
};

const MIB: usize = 1 << 20;

/// Large files, whose place can be taken beforehand, and small ones.
fn files() -> Vec<(String, usize)> {
    let large = (0..2).map(|n| (format!("large/{n}"), 3 * MIB));
    large.chain((0..300).map(|n| (format!("small/{n}"), 20_000))).collect()
}

/// What host 0's engine has at step 1 and must keep, a pushed checkpoint of 12 MiB at step 2, and host 0 on a new disk of 20 MiB.
async fn prepared() -> Option<(Cluster, SmallDisk)> {
    let transfer = TransferOptions { part_size: 5 << 20, memory: 20 << 20, concurrency: 2, bandwidth_limit: 0 };
    let mut cluster = Cluster::with(Options { hosts: 2, transfer: Some(transfer), ..Options::default() }).await;
    for host in &cluster.hosts {
        host.checkpoint_filled(2, |folder| {
            for (n, (name, length)) in files().into_iter().enumerate() {
                put(folder, &name, &noise(n as u64, &host.idx.to_string(), length));
            }
        });
    }
    cluster.pushed().await;
    cluster.kill_agent(0);
    cluster.hosts[0].wipe();
    let disk = SmallDisk::mount(&cluster.hosts[0].dir, 20)?;
    cluster.hosts[0].checkpoint_filled(1, |folder| put(folder, "engine", &noise(9, "engine", MIB)));
    cluster.start_agent(0).await;
    Some((cluster, disk))
}

/// The round failed for want of space on host 0, which is as it was.
fn refused(cluster: &Cluster, round: &v1::Round, engine: &lockstep_integration_tests::content::Identity) {
    let problem = round.problem.as_ref().unwrap();
    assert_eq!((round.phase(), problem.reason.as_str()), (RoundPhase::Failed, "NO_SPACE"), "{problem:?}");
    assert_eq!(problem.metadata["host_idx"], "0", "{problem:?}");
    let host = &cluster.hosts[0];
    assert!(problem.message.contains(&host.dir.display().to_string()), "names the disk: {problem:?}");
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    assert_eq!(
        differences(engine, &identity(&host.dir.join("checkpoints"))),
        Vec::<String>::new(),
        "the engine's files"
    );
}

/// Room was made: the same request works.
async fn repeated(cluster: &Cluster) {
    cluster.pulled().await;
    let host = &cluster.hosts[0];
    let folder = host.dir.join("checkpoints").join(&host.checkpoints()[0]);
    for (n, (name, length)) in files().into_iter().enumerate() {
        assert!(fs::read(folder.join(&name)).unwrap() == noise(n as u64, "0", length), "{name} differs");
    }
    assert_eq!((host.checkpoints().len(), identity(&folder).len()), (1, files().len() + 1));
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[tokio::test(flavor = "multi_thread")]
async fn s40_a_disk_that_is_too_full_from_the_start_is_no_space_before_a_byte_is_fetched() {
    let Some((cluster, _disk)) = prepared().await else { return };
    let host = &cluster.hosts[0];
    let engine = identity(&host.dir.join("checkpoints"));
    let filler = host.dir.join("somebody-elses.bin");
    fs::write(&filler, vec![1; 10 * MIB]).unwrap();
    cluster.s3.clear_requests();
    let round = cluster.pull(Cluster::pull_request()).await;
    refused(&cluster, &round, &engine);
    let fetched = cluster.s3.log().count(|request| {
        request.access_key.as_deref() == Some("agent-0")
            && request.key.as_ref().is_some_and(|key| key.contains("/data-"))
    });
    assert_eq!(fetched, 0, "nothing was fetched that has no place");
    fs::remove_file(filler).unwrap();
    repeated(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s40_a_disk_that_fills_up_while_staging_is_no_space_and_the_round_can_be_repeated() {
    let Some((cluster, _disk)) = prepared().await else { return };
    let host = &cluster.hosts[0];
    let engine = identity(&host.dir.join("checkpoints"));
    let rule = FaultRule::new(FaultAction::Stop { after_bytes: 64 << 10 });
    let rule = rule.access_key(agent_key(0)).operation("GetObject").key_contains("/data-");
    let stopped = cluster.s3.faults().add(rule);
    cluster.s3.clear_requests();
    let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    let under_way = |request: &lockstep_devkit::RequestRecord| {
        request.access_key.as_deref() == Some("agent-0")
            && request.key.as_ref().is_some_and(|key| key.contains("/data-"))
            && request.bytes_out > 0
    };
    lockstep_integration_tests::wait::until("a file is being fetched", || async {
        if cluster.s3.log().count(under_way) > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    // The engine, or whoever else writes there, takes all that is left.
    let filler = host.dir.join("somebody-elses.bin");
    small_disk::fill(&filler);
    cluster.s3.faults().remove(stopped);
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    refused(&cluster, &round, &engine);
    // The other host was done, and is not installed either.
    assert_ne!(round.participants[1].phase(), ParticipantPhase::Installed);
    fs::remove_file(filler).unwrap();
    repeated(&cluster).await;
}
