//! Every RPC of the coordinator.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_client::v1;
use lockstep_integration_tests::cluster::{Cluster, Options, PIPELINE};
use prost::Message;
use tonic::transport::Channel;

use crate::{
    answer::{Kind, check},
    call::{call, connect},
    cases::{cases, methods},
    steady::rounds_during,
};

/// Refused as it arrives, whatever it would be.
const LARGEST: usize = 4 << 20;

/// A pipeline on which calls may do what they like.
const VICTIM: &str = "victim";

/// A good request for each method. They ask for plans where that is possible, so that what happens to be accepted changes nothing.
fn good(cluster: &Cluster, round: &v1::Round) -> BTreeMap<&'static str, Vec<u8>> {
    let page = 3;
    let victim = cluster.spec(VICTIM);
    let pipeline = || PIPELINE.to_owned();
    let request_id = "5f0c1a52-0000-4000-8000-000000000001".to_owned();
    let deadline = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    BTreeMap::from([
        (
            "CreatePipeline",
            v1::CreatePipelineRequest {
                spec: Some(victim.clone()),
                request_id: request_id.clone(),
                validate_only: true,
            }
            .encode_to_vec(),
        ),
        ("GetPipeline", v1::GetPipelineRequest { pipeline: pipeline() }.encode_to_vec()),
        ("ListPipelines", v1::ListPipelinesRequest { page_size: page, page_token: String::new() }.encode_to_vec()),
        (
            "UpdatePipeline",
            v1::UpdatePipelineRequest {
                pipeline: pipeline(),
                spec: Some(cluster.spec(PIPELINE)),
                update_mask: Some(prost_types::FieldMask { paths: vec!["transfer".to_owned()] }),
                etag: String::new(),
                validate_only: true,
            }
            .encode_to_vec(),
        ),
        (
            "DeletePipeline",
            v1::DeletePipelineRequest { pipeline: VICTIM.to_owned(), etag: "1".to_owned() }.encode_to_vec(),
        ),
        (
            "StartPush",
            v1::StartPushRequest {
                pipeline: pipeline(),
                selector: Some(v1::start_push_request::Selector::Latest(true)),
                request_id: request_id.clone(),
                deadline,
                validate_only: true,
                force: true,
            }
            .encode_to_vec(),
        ),
        (
            "StartPull",
            v1::StartPullRequest {
                pipeline: pipeline(),
                selector: Some(v1::start_pull_request::Selector::Latest(true)),
                standby: Some(false),
                fail_if_none: Some(true),
                request_id,
                deadline,
                validate_only: true,
                ..v1::StartPullRequest::default()
            }
            .encode_to_vec(),
        ),
        ("GetRound", v1::GetRoundRequest { round: round.id.clone() }.encode_to_vec()),
        (
            "ListRounds",
            v1::ListRoundsRequest {
                pipeline: pipeline(),
                page_size: page,
                kind: 1,
                ..v1::ListRoundsRequest::default()
            }
            .encode_to_vec(),
        ),
        ("CancelRound", v1::CancelRoundRequest { round: round.id.clone(), cause: "tried".to_owned() }.encode_to_vec()),
        ("WatchRound", v1::WatchRoundRequest { round: round.id.clone() }.encode_to_vec()),
        (
            "ListCheckpoints",
            v1::ListCheckpointsRequest { pipeline: pipeline(), page_size: page, page_token: String::new() }
                .encode_to_vec(),
        ),
        (
            "GetCheckpoint",
            v1::GetCheckpointRequest { pipeline: pipeline(), checkpoint: round.id.clone() }.encode_to_vec(),
        ),
        (
            "VerifyCheckpoint",
            v1::VerifyCheckpointRequest { pipeline: pipeline(), checkpoint: round.id.clone() }.encode_to_vec(),
        ),
        (
            "ListAuditEvents",
            v1::ListAuditEventsRequest {
                pipeline: pipeline(),
                round: round.id.clone(),
                page_size: page,
                page_token: String::new(),
            }
            .encode_to_vec(),
        ),
    ])
}

/// Tries everything on one method.
pub(crate) async fn try_method(channel: &Channel, method: &str, request: &str, good: &[u8]) -> BTreeMap<Kind, u32> {
    let mut came_to = BTreeMap::new();
    for case in cases(request, good) {
        let what = format!("{method}, {}", case.name);
        let answer = call(channel, method, Bytes::from(case.message)).await;
        *came_to.entry(check(&what, &answer)).or_insert(0) += 1;
    }
    let answer = call(channel, method, Bytes::from(vec![0; LARGEST + 1])).await;
    assert_eq!(check(&format!("{method}, oversize"), &answer), Kind::Transport);
    *came_to.entry(Kind::Transport).or_insert(0) += 1;
    came_to
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_of_each_rpc_of_the_coordinator_may_be_anything() {
    let cluster = Cluster::with(Options { hosts: 2, ..Options::default() }).await;
    for host in &cluster.hosts {
        host.checkpoint(10, &[("state.bin", b"some state")]);
    }
    let round = cluster.pushed().await;
    let good = good(&cluster, &round);
    let channel = connect(&cluster.coordinator_url()).await;
    let mut figures = Vec::new();
    let rounds = rounds_during(&cluster, async {
        for (method, request) in methods("Coordinator") {
            let name = method.split_once('/').unwrap().1;
            let good =
                good.get(name).unwrap_or_else(|| panic!("{name} has no good request here to make bad ones from"));
            figures.push((method.clone(), try_method(&channel, &method, &request, good).await));
        }
    })
    .await;
    for (method, came_to) in &figures {
        println!("{method}: {came_to:?}");
        assert!(came_to.contains_key(&Kind::Reason), "{method} refuses nothing");
    }
    println!("{} methods, {rounds} good rounds meanwhile", figures.len());
    let log = cluster.coordinator_log();
    assert!(!log.contains("panicked"), "{log}");
}
