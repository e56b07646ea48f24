//! Limits of transfers in a spec: what is refused and how, what is odd but legal, and that a bandwidth limit holds.

use std::{fs, time::Duration};

use lockstep_client::v1::{self, TransferOptions};
use lockstep_devkit::RequestTotals;
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{Cluster, Options, PIPELINE, agent_key},
    content::{differences, identity, noise, put},
    host::Host,
    orders,
};
use tokio::{sync::Mutex, time::Instant};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn limits_outside_of_their_ranges_are_refused_by_the_command_line_with_field_value_and_range() {
    let cluster = Cluster::with(Options { hosts: 0, create: false, ..Options::default() }).await;
    let file = cluster.scratch().join("orders.yaml");
    for (limit, field, value, says) in [
        ("concurrency: 0", "transfer.concurrency", "0", "between 1 and 256"),
        ("concurrency: 257", "transfer.concurrency", "257", "between 1 and 256"),
        ("part_size: 1MiB", "transfer.part_size", "1MiB", "between 5MiB and 1GiB"),
        ("part_size: 6TiB", "transfer.part_size", "6TiB", "between 5MiB and 1GiB"),
        ("part_size: 0MiB", "transfer.part_size", "0B", "between 5MiB and 1GiB"),
        ("memory: 0MiB", "transfer.memory", "0B", "below transfer.part_size"),
        ("memory: 15MiB", "transfer.memory", "15MiB", "below transfer.part_size"),
        ("bandwidth_limit: 0B", "transfer.bandwidth_limit", "0", "leave it out for no limit"),
        ("part_size: 5 gallons", "transfer.part_size", "5 gallons", "for example 16MiB"),
        ("memory: \"64\"", "transfer.memory", "64", "has no unit"),
    ] {
        let endpoint = cluster.endpoint();
        let text = format!(
            "{{name: {PIPELINE}, solo: true, agents: ['{}'], location: {{bucket: acme-ckpt, prefix: orders, endpoint: '{endpoint}', \
             force_path_style: true}}, transfer: {{{limit}}}}}",
            cluster.agents[0].address
        );
        fs::write(&file, text).unwrap();
        let ran = lockstep(&cluster, &["pipeline", "apply", "--file", &file.display().to_string()]);
        let error = &ran.document["error"];
        assert_eq!((ran.code, error["reason"].as_str()), (1, Some("SPEC_INVALID")), "{limit}: {ran:?}");
        let metadata = &error["metadata"];
        assert_eq!(
            (metadata["field"].as_str(), metadata["value"].as_str()),
            (Some(field), Some(value)),
            "{limit}: {ran:?}"
        );
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(says) && message.contains(field) && message.contains(value), "{limit}: {message}");
    }
    assert!(cluster.client.list_pipelines(10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_outside_of_their_ranges_are_refused_by_the_coordinator_and_zero_is_the_default() {
    let cluster = Cluster::with(Options { hosts: 0, create: false, ..Options::default() }).await;
    let of = TransferOptions::default();
    for (transfer, field) in [
        (TransferOptions { concurrency: 100_000, ..of }, "transfer.concurrency"),
        (TransferOptions { part_size: MIB, ..of }, "transfer.part_size"),
        (TransferOptions { part_size: 6 << 40, ..of }, "transfer.part_size"),
        (TransferOptions { part_size: u64::MAX, ..of }, "transfer.part_size"),
        (TransferOptions { memory: 1, ..of }, "transfer.memory"),
        (TransferOptions { memory: u64::MAX, ..of }, "transfer.memory"),
        (TransferOptions { bandwidth_limit: u64::MAX, ..of }, "transfer.bandwidth_limit"),
    ] {
        let spec = v1::PipelineSpec { transfer: Some(transfer), ..cluster.spec(PIPELINE) };
        let error = cluster.client.create_pipeline(spec).await.expect_err(field);
        assert_eq!(error.reason(), "SPEC_INVALID", "{transfer:?}: {error}");
        assert_eq!(error.problem().unwrap().metadata["field"], field, "{transfer:?}: {error}");
    }
    let spec = v1::PipelineSpec { transfer: Some(of), ..cluster.spec(PIPELINE) };
    let pipeline = cluster.client.create_pipeline(spec).await.unwrap();
    let transfer = pipeline.spec.unwrap().transfer.unwrap();
    assert_eq!((transfer.concurrency, transfer.part_size, transfer.memory), (16, 16 * MIB, 64 * MIB));
}

fn newest(host: &Host) -> lockstep_integration_tests::content::Identity {
    identity(&host.dir.join("checkpoints").join(host.checkpoints().last().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_absurd_but_legal_move_every_byte() {
    let mut cluster = Cluster::with(Options { hosts: 0, ..Options::default() }).await;
    let least = TransferOptions { concurrency: 1, part_size: 5 * MIB, memory: 5 * MIB, bandwidth_limit: 0 };
    let most = TransferOptions { concurrency: 256, part_size: 1 << 30, memory: 1 << 52, bandwidth_limit: 1 << 52 };
    // Far more requests than memory for them.
    let uneven = TransferOptions { concurrency: 256, memory: 16 * MIB, part_size: 16 * MIB, bandwidth_limit: 0 };
    for (step, transfer) in (1..).zip([least, most, uneven]) {
        let update = v1::UpdatePipelineRequest {
            pipeline: PIPELINE.to_owned(),
            spec: Some(v1::PipelineSpec { transfer: Some(transfer), ..cluster.spec(PIPELINE) }),
            ..v1::UpdatePipelineRequest::default()
        };
        cluster.client.update_pipeline(update).await.unwrap_or_else(|error| panic!("{transfer:?}: {error}"));
        cluster.hosts[0].checkpoint_filled(step, |folder| {
            put(folder, "large", &noise(step, "large", 11 << 20));
            for n in 0..40 {
                put(folder, &format!("small/{n}"), &noise(step, &n.to_string(), n * 1000));
            }
        });
        let before = newest(&cluster.hosts[0]);
        cluster.pushed().await;
        cluster.lose_disk(0).await;
        cluster.pulled().await;
        let different = differences(&before, &newest(&cluster.hosts[0]));
        assert!(different.is_empty(), "{transfer:?}: {different:?}");
    }
}

/// Little, so that a machine with a dozen tests on it keeps up.
const LIMIT: u64 = 2 * MIB;

/// What looks at a count of bytes have seen of a transfer.
struct Seen {
    bytes: u64,
    /// Whether hardly any were moved unseen.
    all: bool,
    /// From the last look that saw none, or the first that saw some, to the first that saw all: never shorter, or never longer than it was by what the looks are late.
    at_most: f64,
    at_least: f64,
}

async fn measured(cluster: &Cluster, round: &v1::Round, moved: impl AsyncFn() -> u64) -> Seen {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let (mut none, mut first, mut last, mut bytes) = (Instant::now(), None, Instant::now(), 0);
    let ended = cluster.client.wait_round(&round.id);
    tokio::pin!(ended);
    let round = loop {
        tokio::select! {
            _ = ticks.tick() => {
                let asked = Instant::now();
                let now = moved().await;
                if now > bytes {
                    bytes = now;
                    last = Instant::now();
                    first.get_or_insert(last);
                } else if now == 0 {
                    none = asked;
                }
            }
            round = &mut ended => break round.unwrap(),
        }
    };
    assert!(lockstep_client::succeeded(&round), "{round:?}");
    let since = |begin| last.duration_since(begin).as_secs_f64();
    Seen { bytes, all: true, at_most: since(none), at_least: since(first.expect("bytes moved")) }
}

/// Bytes of the agent's bodies at the server.
fn at_the_server(cluster: &Cluster, bytes: impl Fn(&RequestTotals) -> u64) -> u64 {
    let key = agent_key(0);
    let totals = cluster.s3.log().totals();
    totals.iter().filter(|total| total.access_key.as_deref() == Some(&key)).map(bytes).sum()
}

/// A busy machine makes a transfer slower, never quicker: too quick fails at once, too slow only if it is so each time.
async fn holds(what: &str, start_up: f64, once: impl AsyncFn(u64) -> Seen) {
    const TRIES: u64 = 6;
    let mut seen = Vec::new();
    for n in 1..=TRIES {
        let Seen { bytes, all, at_most, at_least } = once(n).await;
        let expected = bytes as f64 / LIMIT as f64;
        println!("{what}: {bytes} bytes in {at_least:.2} to {at_most:.2} s, expected {expected:.2} s");
        assert!(bytes > 15 * MIB, "{what}: {bytes}");
        assert!(at_most > expected * 0.95, "{what}: {at_most:.2} s, {expected:.2} s would be the limit");
        if all && at_least < expected * 1.05 + start_up {
            return;
        }
        seen.push(at_least);
    }
    panic!("{what}: slower than the limit in all of {seen:.2?} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bandwidth_limit_holds_within_five_percent_for_push_and_pull() {
    let transfer = TransferOptions { bandwidth_limit: LIMIT, part_size: 5 * MIB, memory: 16 * MIB, concurrency: 4 };
    let cluster = Cluster::with(Options { hosts: 0, transfer: Some(transfer), ..Options::default() }).await;
    let cluster = Mutex::new(cluster);
    holds("push", 0.1, async |n| {
        let cluster = cluster.lock().await;
        cluster.hosts[0].checkpoint_filled(n, |folder| {
            put(folder, "large", &noise(n, "large", 12 << 20));
            for small in 0..40 {
                put(folder, &format!("small/{small}"), &noise(n, &small.to_string(), 100_000));
            }
        });
        cluster.s3.clear_requests();
        let round = cluster.start_push().await;
        measured(&cluster, &round, async || at_the_server(&cluster, |total| total.bytes_in)).await
    })
    .await;
    let before = newest(&cluster.lock().await.hosts[0]);
    // The kernel's buffers take bytes from the server long before the agent does: when they came is the agent's to say, how many, the server's.
    holds("pull", 0.1, async |_| {
        let mut cluster = cluster.lock().await;
        cluster.lose_disk(0).await;
        cluster.s3.clear_requests();
        let agent = orders::agent(&cluster.agents[0].address).await;
        let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
        let received = async || {
            let described = agent.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner();
            described.running.and_then(|running| running.progress).map_or(0, |progress| progress.bytes_transferred)
        };
        let seen = measured(&cluster, &round, received).await;
        let sent = at_the_server(&cluster, |total| total.bytes_out);
        println!("{} of {sent} bytes were seen to come", seen.bytes);
        Seen { all: seen.bytes * 100 >= sent * 99, ..seen }
    })
    .await;
    assert!(differences(&before, &newest(&cluster.lock().await.hosts[0])).is_empty());
}
