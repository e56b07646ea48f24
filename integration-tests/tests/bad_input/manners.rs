//! Bad manners below the RPCs, to coordinator and agent alike, while the good pipeline pushes.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use lockstep_client::{Retryable, RpcProblem, v1};
use lockstep_integration_tests::cluster::{Cluster, Options, PIPELINE};
use prost::Message as _;
use tonic::Code;

use crate::{
    answer::check,
    call::{call, connect},
    raw_http2::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, Peer, RESET, SETTINGS, call as call_headers, frame,
        header, message,
    },
    steady::rounds_during,
};

/// A server gives a connection so long to greet, or to answer a ping; both are below it.
const HANGS_UP_WITHIN: Duration = Duration::from_secs(45);

/// One call that is cheap to make, at each server.
const CHEAP: [&str; 2] = ["/lockstep.v1.Coordinator/ListAuditEvents", "/lockstep.v1.Agent/Describe"];

async fn cluster() -> (Cluster, [String; 2]) {
    let cluster = Cluster::with(Options { hosts: 1, ..Options::default() }).await;
    cluster.hosts[0].checkpoint(10, &[("state.bin", b"some state")]);
    cluster.pushed().await;
    let addresses = [cluster.coordinator_url(), cluster.agents[0].address.clone()];
    (cluster, addresses)
}

fn assert_unharmed(cluster: &Cluster) {
    for log in [cluster.coordinator_log(), cluster.agent_log(0)] {
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_calls_at_a_time_are_answered_or_put_off() {
    let (cluster, [coordinator, agent]) = cluster().await;
    let rounds = rounds_during(&cluster, async {
        let get: Bytes = v1::GetPipelineRequest { pipeline: PIPELINE.to_owned() }.encode_to_vec().into();
        for (address, method, request) in
            [(&coordinator, "Coordinator/GetPipeline", get), (&agent, "Agent/Describe", Bytes::new())]
        {
            let channel = connect(address).await;
            let calls = (0..3_000).map(|_| call(&channel, method, request.clone()));
            let refused: Vec<_> = join_all(calls).await.into_iter().filter_map(Result::err).collect();
            println!("{method}: {} of 3,000 put off", refused.len());
            for status in refused {
                // Whoever can't be served now is told so, and may come again: by a row of the error table, or by HTTP/2 itself, which closes a connection of so many calls that
                // come to nothing (RFC 9113, ENHANCE_YOUR_CALM).
                if RpcProblem::is_typed(&status) || status.code() != Code::ResourceExhausted {
                    check(method, &Err(status.clone()));
                }
                assert_eq!(RpcProblem::from_status(&status).retryable, Retryable::Yes, "{method}: {status:?}");
            }
        }
    })
    .await;
    println!("{rounds} good rounds meanwhile");
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_closed_after_a_while_and_harm_nobody() {
    let (cluster, addresses) = cluster().await;
    rounds_during(&cluster, async {
        let mut peers = Vec::new();
        for address in &addresses {
            for _ in 0..100 {
                peers.push(Peer::silent(address).await);
                let mut half = Peer::silent(address).await;
                half.send(b"PRI * HTTP/2.0\r\n").await;
                peers.push(half);
                // Greets, and never answers a ping.
                peers.push(Peer::greeted(address, &[]).await);
                let mut begun = Peer::greeted(address, &[]).await;
                begun.frame(HEADERS, 0, 1, &header(":method", "POST")).await;
                peers.push(begun);
            }
        }
        let closed = join_all(peers.iter_mut().map(|peer| peer.until_closed(HANGS_UP_WITHIN))).await;
        let open = closed.iter().filter(|closed| !**closed).count();
        assert_eq!(open, 0, "of {} half-open connections {open} are still there", closed.len());
    })
    .await;
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_streams_without_end_or_reads_nothing_harms_nobody() {
    /// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113, section 6.5.2).
    const WINDOW: u16 = 4;
    let (cluster, addresses) = cluster().await;
    rounds_during(&cluster, async {
        let mut peers = Vec::new();
        for (address, path) in addresses.iter().zip(CHEAP) {
            let headers = call_headers(path);
            // Calls that never come to their message, far above the limit.
            let mut endless = Peer::greeted(address, &[]).await;
            for stream in 0..5_000 {
                if !endless.frame(HEADERS, END_HEADERS, 2 * stream + 1, &headers).await {
                    break;
                }
            }
            peers.push(endless);
            // Calls whose answers nobody takes.
            for _ in 0..50 {
                let mut slow = Peer::greeted(address, &[(WINDOW, 0)]).await;
                for stream in 0..100 {
                    slow.frame(HEADERS, END_HEADERS, 2 * stream + 1, &headers).await;
                    slow.frame(DATA, END_STREAM, 2 * stream + 1, &message(&[])).await;
                }
                peers.push(slow);
            }
        }
    })
    .await;
    assert_unharmed(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_headers_resets_pings_and_settings_harm_nobody() {
    let (cluster, addresses) = cluster().await;
    rounds_during(&cluster, async {
        for (address, path) in addresses.iter().zip(CHEAP) {
            // A header list that never ends: 64 MiB at most, the server's limit is 16 KiB.
            let mut headers = Peer::greeted(address, &[]).await;
            headers.frame(HEADERS, 0, 1, &call_headers(path)).await;
            let more = header("x-flood", &"x".repeat(120)).repeat(120);
            let mut sent = 0;
            while sent < 64 << 20 && headers.frame(CONTINUATION, 0, 1, &more).await {
                sent += more.len();
            }
            assert!(sent < 64 << 20, "{address} took {sent} bytes of one header list");

            // Streams that are opened and reset at once, as fast as possible.
            let mut resets = Peer::greeted(address, &[]).await;
            let (begin, cancel) = (call_headers(path), 8_u32.to_be_bytes());
            for stream in 0..20_000 {
                let both =
                    [frame(HEADERS, END_HEADERS, 2 * stream + 1, &begin), frame(RESET, 0, 2 * stream + 1, &cancel)];
                if !resets.send(&both.concat()).await {
                    break;
                }
            }
            // Each of these asks for an answer.
            for (kind, payload) in [(PING, [0; 8].as_slice()), (SETTINGS, &[])] {
                let mut peer = Peer::greeted(address, &[]).await;
                let many = frame(kind, 0, 0, payload).repeat(100);
                for _ in 0..500 {
                    if !peer.send(&many).await {
                        break;
                    }
                }
            }
        }
    })
    .await;
    assert_unharmed(&cluster);
}
