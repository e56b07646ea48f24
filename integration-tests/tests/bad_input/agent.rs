//! Every RPC of an agent.

use std::collections::BTreeMap;

use lockstep_client::v1;
use lockstep_integration_tests::{
    cluster::{Cluster, Options, PIPELINE},
    orders,
};
use prost::Message;

use crate::{
    answer::Kind,
    call::connect,
    cases::methods,
    fields::{Unwatched, try_method},
};

/// A good request for each method.
fn good(
    cluster: &Cluster,
    header: &v1::OrderHeader,
    round: &v1::Round,
    local: &str,
) -> BTreeMap<&'static str, Vec<u8>> {
    let header = || Some(header.clone());
    let status = v1::StatusRequest { header: header(), wait: Some(prost_types::Duration { seconds: 0, nanos: 1 }) };
    let part =
        v1::PartRef { host_idx: 0, key: "solo/1/x/y-1/part.json".to_owned(), length: 100, blake3: "0".repeat(64) };
    let deadline = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    let transfer =
        Some(v1::TransferOptions { concurrency: 4, part_size: 16 << 20, memory: 64 << 20, bandwidth_limit: 0 });
    let push = v1::PushOrder {
        base: round.commit.clone(),
        base_parts: vec![part.clone()],
        deadline,
        time_left: None,
        transfer,
        ..orders::push(header().unwrap_or_default(), local, 10)
    };
    let pull = v1::PullOrder {
        header: header(),
        source: Some(cluster.location(PIPELINE)),
        commit: round.commit.clone(),
        part: Some(part),
        local_checkpoint: local.to_owned(),
        step: 10,
        fingerprint: String::new(),
        deadline,
        time_left: None,
        transfer,
    };
    BTreeMap::from([
        ("Describe", v1::DescribeRequest {}.encode_to_vec()),
        ("ListCheckpoints", v1::ListLocalCheckpointsRequest {}.encode_to_vec()),
        ("Push", push.encode_to_vec()),
        ("Pull", pull.encode_to_vec()),
        ("PushStatus", status.encode_to_vec()),
        ("PullStatus", status.encode_to_vec()),
        (
            "Install",
            v1::InstallOrder { header: header(), local_checkpoint: local.to_owned(), step: 10, fresh: false }
                .encode_to_vec(),
        ),
        (
            "Ready",
            v1::ReadyOrder {
                header: header(),
                local_checkpoint: local.to_owned(),
                step: 10,
                fresh: false,
                role: v1::Role::Active.into(),
            }
            .encode_to_vec(),
        ),
        ("Cancel", v1::CancelOrder { header: header() }.encode_to_vec()),
        ("Sync", v1::SyncRequest { location: Some(cluster.location(PIPELINE)) }.encode_to_vec()),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_of_each_rpc_of_an_agent_may_be_anything() {
    let cluster = Cluster::with(Options { hosts: 1, ..Options::default() }).await;
    let local = cluster.hosts[0].checkpoint(10, &[("state.bin", b"some state")]).to_string();
    let round = cluster.pushed().await;
    let header = orders::header(&cluster, 0, 1_000).await;
    let good = good(&cluster, &header, &round, &local);
    let channel = connect(&cluster.agents[0].address).await;
    let mut agent = orders::agent(&cluster.agents[0].address).await;
    // Without fields there is nothing to refuse.
    let asks_nothing = ["Describe", "ListCheckpoints"];
    for (method, request) in methods("Agent") {
        let name = method.split_once('/').unwrap().1;
        let good = good.get(name).unwrap_or_else(|| panic!("{name} has no good request here to make bad ones from"));
        let came_to = try_method(&channel, &method, &request, good, &Unwatched).await;
        println!("{method}: {came_to:?}");
        assert!(came_to.contains_key(&Kind::Reason) || asks_nothing.contains(&name), "{method} refuses nothing");
        let described = agent.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.incarnation, header.incarnation, "after {method} the agent is another process");
    }
    let log = cluster.agent_log(0);
    assert!(!log.contains("panicked"), "{log}");
    // Nothing outside of its own folders and its own location was touched.
    assert!(cluster.hosts[0].leftovers().is_empty(), "{:?}", cluster.hosts[0].leftovers());
}
