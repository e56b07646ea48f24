//! Scenarios 7 and 11, counted where it counts: bytes and requests at the S3 server, bytes read from the disk by the agent.

use std::path::Path;

use lockstep_integration_tests::{
    cluster::{Cluster, Options, agent_key},
    content::{differences, identity, link, noise, put},
};

const KIB: usize = 1 << 10;

/// What an agent did at the S3 server since the log was cleared.
#[derive(Debug, Default)]
struct Counted {
    requests: usize,
    puts: usize,
    gets: usize,
    /// Bytes of data objects sent.
    data: u64,
    /// Bytes of anything sent.
    sent: u64,
}

fn counted(cluster: &Cluster, host_idx: u32) -> Counted {
    let key = agent_key(host_idx);
    let mut counted = Counted::default();
    for request in cluster.s3.requests().iter().filter(|request| request.access_key.as_deref() == Some(&key)) {
        counted.requests += 1;
        counted.puts += usize::from(request.method == "PUT");
        counted.gets += usize::from(request.method == "GET");
        counted.sent += request.bytes_in;
        if request.key.as_ref().is_some_and(|key| key.contains("/data-")) {
            counted.data += if request.operation == "CompleteMultipartUpload" { 0 } else { request.bytes_in };
        }
    }
    counted
}

fn document(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("checkpoint.json")).unwrap().len()
}

async fn solo() -> Cluster {
    Cluster::with(Options { hosts: 0, ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn s11_four_thousand_small_files_take_at_most_twenty_puts_and_gets() {
    let mut cluster = solo().await;
    let id = cluster.hosts[0].checkpoint_filled(1, |folder| {
        for n in 0..4000_usize {
            put(folder, &format!("{:02}/{n}", n % 40), &noise(n as u64, "small", 16 * KIB + n % 100));
        }
    });
    let before = identity(&cluster.hosts[0].folder(id));
    cluster.s3.clear_requests();
    cluster.pushed().await;
    let push = counted(&cluster, 0);
    assert!(push.puts <= 20, "{push:?}");
    cluster.lose_disk(0).await;
    cluster.s3.clear_requests();
    cluster.pulled().await;
    let pull = counted(&cluster, 0);
    assert!(pull.gets <= 20, "{pull:?}");
    assert_eq!(differences(&before, &identity(&cluster.hosts[0].folder(id))), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_the_bytes_that_are_sent_are_the_bytes_that_changed() {
    let cluster = solo().await;
    let host = &cluster.hosts[0];
    let name = |n: usize| format!("{:02}/{n}", n % 20);
    let first = host.checkpoint_filled(1, |folder| {
        for n in 0..1000 {
            put(folder, &name(n), &noise(n as u64, "first", 64 * KIB));
        }
        put(folder, "large", &noise(1, "large", 20 << 20));
    });
    let all: u64 = identity(&host.folder(first)).values().map(|(size, _)| size).sum();
    cluster.s3.clear_requests();
    cluster.pushed().await;
    let push = counted(&cluster, 0);
    assert_eq!(push.data, all, "every byte once: {push:?}");

    // One file in a hundred is another, as long as it was; the rest, the large one too, are the same inodes.
    let from = host.folder(first);
    let second = host.checkpoint_filled(2, |folder| {
        for n in 0..1000 {
            match n % 100 {
                3 => put(folder, &name(n), &noise(n as u64, "second", 64 * KIB)),
                _ => link(&from.join(name(n)), folder, &name(n)),
            }
        }
        link(&from.join("large"), folder, "large");
    });
    let changed = 10 * 64 * KIB as u64 + document(&host.folder(second));
    cluster.s3.clear_requests();
    let read = cluster.agent_bytes_read(0);
    let round = cluster.pushed().await;
    let read = cluster.agent_bytes_read(0) - read;
    let push = counted(&cluster, 0);
    assert_eq!(push.data, changed, "nothing unchanged is sent: {push:?}");
    assert!(push.sent * 100 <= changed * 105, "{} bytes with manifests for {changed} that changed", push.sent);
    assert!(read <= changed + 256 * KIB as u64, "{read} bytes were read for {changed} that changed");
    let checkpoint = cluster.client.get_checkpoint("orders", &round.id).await.unwrap();
    assert_eq!((checkpoint.bytes_uploaded, checkpoint.files), (changed, 1002));

    // Nothing but the checkpoint's own document is new.
    let from = host.folder(second);
    host.checkpoint_filled(3, |folder| {
        (0..1000).for_each(|n| link(&from.join(name(n)), folder, &name(n)));
        link(&from.join("large"), folder, "large");
    });
    cluster.s3.clear_requests();
    let read = cluster.agent_bytes_read(0);
    cluster.pushed().await;
    let read = cluster.agent_bytes_read(0) - read;
    let push = counted(&cluster, 0);
    assert!(push.requests <= 5, "whatever the number of files: {push:?}");
    assert!(read <= 256 * KIB as u64, "{read} bytes were read, and no file changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_no_byte_is_read_twice_by_a_push_or_read_again_by_a_pull() {
    let mut cluster = solo().await;
    let id = cluster.hosts[0].checkpoint_filled(1, |folder| {
        for n in 0..500 {
            put(folder, &format!("small/{n}"), &noise(n, "small", 20 * KIB));
        }
        put(folder, "middle", &noise(1, "middle", 7 << 20));
        put(folder, "large", &noise(1, "large", (40 << 20) + 17));
    });
    let before = identity(&cluster.hosts[0].folder(id));
    let all: u64 = before.values().map(|(size, _)| size).sum();
    let read = cluster.agent_bytes_read(0);
    cluster.pushed().await;
    let read = cluster.agent_bytes_read(0) - read;
    assert!(read >= all, "the count counts: {read} of {all}");
    assert!(read <= all + 256 * KIB as u64, "{read} bytes were read of {all}");

    cluster.lose_disk(0).await;
    let read = cluster.agent_bytes_read(0);
    cluster.pulled().await;
    let read = cluster.agent_bytes_read(0) - read;
    assert!(read <= 512 * KIB as u64, "{read} bytes of what was written were read again");
    assert_eq!(differences(&before, &identity(&cluster.hosts[0].folder(id))), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_what_another_host_has_pushed_before_is_not_sent_again() {
    let mut cluster = Cluster::with(Options { hosts: 2, ..Options::default() }).await;
    let shared = noise(1, "shared", 6 << 20);
    let small: Vec<Vec<u8>> = (0..50_u32).map(|n| noise(2, &n.to_string(), 3000)).collect();
    let batch = |folder: &Path, at: &str| {
        put(folder, &format!("{at}/large"), &shared);
        for (n, bytes) in small.iter().enumerate() {
            put(folder, &format!("{at}/{n}"), bytes);
        }
    };
    cluster.hosts[0].checkpoint_filled(1, |folder| batch(folder, "made-here"));
    cluster.hosts[1].checkpoint_filled(1, |folder| put(folder, "own", &noise(3, "own", 1000)));
    cluster.pushed().await;
    // The batch moves to the other host, as when work is balanced.
    cluster.hosts[0].checkpoint_filled(2, |folder| put(folder, "own", &noise(4, "own", 1000)));
    let id = cluster.hosts[1].checkpoint_filled(2, |folder| batch(folder, "came-from-there"));
    let before = identity(&cluster.hosts[1].folder(id));
    cluster.s3.clear_requests();
    cluster.pushed().await;
    let push = counted(&cluster, 1);
    assert_eq!(push.data, document(&cluster.hosts[1].folder(id)), "only the document is new: {push:?}");
    for idx in 0..2 {
        cluster.lose_disk(idx).await;
    }
    cluster.pulled().await;
    assert_eq!(differences(&before, &identity(&cluster.hosts[1].folder(id))), Vec::<String>::new());
}
