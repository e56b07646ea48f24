//! How much a push asks of the bucket.

use std::time::Duration;

use lockstep_coordinator::dispatch::DispatchOptions;
use lockstep_devkit::s3::{S3Options, S3Server};
use lockstep_protocol::round::Phase;

use crate::{agent::Play, rig::Rig};

async fn server() -> S3Server {
    let options = S3Options { buckets: vec!["acme".to_owned()], ..S3Options::default() };
    S3Server::start(options).await.unwrap()
}

/// What the coordinator asks for in the last of some pushes that find everything as the one before left it.
async fn pushes(hosts: u32, files: u32, pushes: usize) -> Vec<String> {
    let server = server().await;
    let rig = Rig::on(&server, hosts, files).await;
    // A replica that loses its lease plans anew, and asks twice.
    let lease = Duration::from_secs(60);
    let replica = rig.replica_with(DispatchOptions { lease, ..Rig::options("one") });
    let pipeline = rig.pipeline("orders").await;
    let mut asked = Vec::new();
    for _ in 0..=pushes {
        server.clear_requests();
        let record = rig.ended(rig.start_push(&pipeline).await).await;
        assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
        // The hint is the last thing that a round writes.
        let is_hint = |key: &Option<String>| key.as_deref().is_some_and(|key| key.ends_with("/head.json"));
        server.log().wait_for(1, |request| is_hint(&request.key) && request.finished).await;
        let name = |request: lockstep_devkit::s3::RequestRecord| {
            format!("{} {}", request.operation, request.key.unwrap_or_default())
        };
        asked = server.requests().into_iter().map(name).collect();
    }
    replica.stop().await;
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_changes_nothing_asks_as_little_whatever_the_number_of_files() {
    for hosts in [1, 3] {
        let mut counts = Vec::new();
        for files in [4, 400] {
            let asked = pushes(hosts, files, 2).await;
            let count = asked.len();
            assert!(count <= 6 + 2 * hosts as usize, "{hosts} hosts, {files} files: {asked:#?}");
            counts.push(count);
        }
        assert_eq!(counts[0], counts[1], "{hosts} hosts with 4 and with 400 files");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_inherits_what_its_base_does_not_reach_costs_its_attempt() {
    let server = server().await;
    let rig = Rig::on(&server, 2, 100).await;
    let _replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    // Without a base, and with one.
    for _ in 0..2 {
        rig.agents[1].plays([Play::Stray]);
        let record = rig.ended(rig.start_push(&pipeline).await).await;
        assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
        let attempts: Vec<u32> = record.round.participants.iter().map(|host| host.attempt.get()).collect();
        assert_eq!(attempts, [1, 2]);
        let causes = rig.causes(record.round.id).await;
        assert!(
            causes.iter().any(|cause| cause.contains("inherits") && cause.contains("part of host 1")),
            "{causes:?}"
        );
    }
}
