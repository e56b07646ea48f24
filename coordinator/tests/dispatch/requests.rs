//! How much a push asks of the bucket.

use lockstep_devkit::s3::{S3Options, S3Server};
use lockstep_protocol::round::Phase;

use crate::rig::Rig;

struct Asked {
    /// Requests of one push that finds everything as it left it.
    requests: Vec<String>,
    wall: Vec<std::time::Duration>,
}

async fn pushes(hosts: u32, files: u32, pushes: usize) -> Asked {
    let options = S3Options { buckets: vec!["acme".to_owned()], ..S3Options::default() };
    let server = S3Server::start(options).await.unwrap();
    let rig = Rig::on(&server, hosts, files).await;
    let replica = rig.replica("one");
    let pipeline = rig.pipeline("orders").await;
    let mut asked = Asked { requests: Vec::new(), wall: Vec::new() };
    for _ in 0..=pushes {
        server.clear_requests();
        let began = std::time::Instant::now();
        let record = rig.ended(rig.start_push(&pipeline).await).await;
        assert_eq!(record.round.phase, Phase::Committed, "{:?}", record.round.problem);
        asked.wall.push(began.elapsed());
        // The hint is the last thing that a round writes.
        let is_hint = |key: &Option<String>| key.as_deref().is_some_and(|key| key.ends_with("/head.json"));
        server.log().wait_for(1, |request| is_hint(&request.key) && request.finished).await;
        let name = |request: lockstep_devkit::s3::RequestRecord| {
            format!("{} {}", request.operation, request.key.unwrap_or_default())
        };
        asked.requests = server.requests().into_iter().map(name).collect();
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
            let count = asked.requests.len();
            assert!(count <= 6 + 2 * hosts as usize, "{hosts} hosts, {files} files: {:#?}", asked.requests);
            counts.push(count);
        }
        assert_eq!(counts[0], counts[1], "{hosts} hosts with 4 and with 400 files");
    }
}
