//! Without a coordinator, by the library: sync and start-up pull.

use lockstep_agent::Started;
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_protocol::{problem::Reason, round::Source, spec::PullSelector, start::StartPull};

use crate::harness::{Files, Host, files, noise, read_tree, refusal, s3, until};

const LATEST: StartPull = StartPull { from: PullSelector::Latest, fail_if_none: None };

#[tokio::test]
async fn an_engine_that_embeds_the_agent_starts_from_nothing_from_its_disk_and_from_the_location() {
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    let fresh = host.agent.pull_at_start(LATEST).await.unwrap();
    assert_eq!(fresh, Started { source: Source::Fresh, checkpoint: None, bytes_downloaded: 0 });
    let state = files(&[("a", noise("a", 50_000)), ("b", noise("b", 3))]);
    let checkpoint = host.checkpoint(4, &state);
    let commit = host.agent.sync(host.location.clone()).await.unwrap();
    assert_eq!(commit.seq.get(), 1);
    assert_eq!(host.agent.sync(host.location.clone()).await.unwrap(), commit, "nothing new: the same commit");

    let host = host.restart(&s3).await;
    let kept = host.agent.pull_at_start(LATEST).await.unwrap();
    assert_eq!((kept.source, kept.bytes_downloaded), (Source::Local, 0));

    let before = read_tree(&host.folder(checkpoint));
    std::fs::remove_dir_all(host.dir.path().join("checkpoints")).unwrap();
    let restored = host.agent.pull_at_start(LATEST).await.unwrap();
    assert_eq!((restored.source, restored.checkpoint.map(|(id, _)| id)), (Source::Location, Some(checkpoint)));
    assert_eq!(restored.bytes_downloaded, before.values().map(|bytes| bytes.len() as u64).sum::<u64>());
    assert_eq!(read_tree(&host.folder(checkpoint)), before);
}

#[tokio::test]
async fn a_multi_host_agent_refuses_a_start_up_pull_before_anything_else() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let problem = host.agent.pull_at_start(LATEST).await.unwrap_err();
    assert_eq!(problem.reason, Reason::MultihostRequiresCoordinator);
    assert_eq!(s3.requests(), []);
}

#[tokio::test]
async fn orders_wait_while_a_start_up_pull_runs() {
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    let checkpoint = host.checkpoint(4, &Files::new());
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("ListObjectsV2"));
    let started = {
        let pulling = host.agent.pull_at_start(LATEST);
        tokio::pin!(pulling);
        tokio::select! {
            started = &mut pulling => panic!("{started:?}"),
            () = until("the look to hang", async || s3.faults().hits(hang) > 0) => {}
        }
        let problem = refusal(host.client.clone().push(host.push_order(1, checkpoint, 4)).await);
        assert_eq!(
            (problem.reason.as_str(), problem.metadata["kind"].as_str()),
            ("TRANSFER_IN_PROGRESS", "start-up pull")
        );
        let problem = host.agent.sync(host.location.clone()).await.unwrap_err();
        assert_eq!(problem.reason, Reason::TransferInProgress);
        s3.faults().clear();
        pulling.await.unwrap()
    };
    assert_eq!(started.source, Source::Local);
    host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
}
