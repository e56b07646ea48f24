//! Scenarios 11 and 12, and files that a push must refuse.

use std::{fs, io::Write as _, os::unix::fs::symlink};

use lockstep_client::v1::RoundPhase;
use lockstep_integration_tests::{
    cluster::{Cluster, Options, PIPELINE},
    host::Marks,
};

#[tokio::test(flavor = "multi_thread")]
async fn s11_empty_files_many_files_and_odd_names_come_back() {
    let mut cluster = Cluster::start().await;
    let many: Vec<(String, Vec<u8>)> =
        (0..4000).map(|n| (format!("many/{:02}/{n}.bin", n % 50), format!("small file {n}").into_bytes())).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let long = "n".repeat(255);
    let odd: &[(&str, &[u8])] = &[
        ("empty", b""),
        ("with space/and more .bin", b"1"),
        ("größe-数据.bin", b"2"),
        ("..dots", b"3"),
        ("a..b/.hidden", b"4"),
        ("back\\slash", b"5"),
        ("percent%2F+plus&?#", b"6"),
        (&long, b"7"),
    ];
    cluster.hosts[0].checkpoint(1, &many);
    cluster.hosts[1].checkpoint(1, odd);
    // 0 files beside checkpoint.json.
    cluster.hosts[2].checkpoint(1, &[]);
    let before: Vec<_> = cluster.hosts.iter().map(lockstep_integration_tests::host::Host::state).collect();
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    cluster.pulled().await;
    for (host, before) in cluster.hosts.iter().zip(&before) {
        assert_eq!(&host.state(), before, "host {}", host.idx);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s11_a_sparse_file_of_more_than_a_gibibyte_comes_back() {
    let mut cluster = Cluster::with(Options { hosts: 0, ..Options::default() }).await;
    let id = cluster.hosts[0].checkpoint(1, &[("small", b"x")]);
    // Into the published folder, as no engine would: a gibibyte through the writer would take memory.
    let path = cluster.hosts[0].folder(id).join("sparse.bin");
    let mut file = fs::File::create(&path).unwrap();
    file.set_len((1 << 30) + 12_345).unwrap();
    file.write_all(b"begins with this").unwrap();
    drop(file);
    let before = cluster.hosts[0].state();
    cluster.pushed().await;
    let peak = cluster.agent_peak_memory(0);
    assert!(peak < 300 << 20, "the agent took {} MiB", peak >> 20);
    cluster.lose_disk(0).await;
    cluster.pulled().await;
    assert_eq!(cluster.hosts[0].state(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_processed_records_is_the_sum_over_hosts() {
    let cluster = Cluster::start().await;
    for (host, records) in cluster.hosts.iter().zip([3075, 3000, 1]) {
        host.checkpoint_with(4, &[("a", b"1")], Marks { processed_records: Some(records), ..Marks::default() });
    }
    let round = cluster.pushed().await;
    let checkpoint = cluster.client.get_checkpoint(PIPELINE, &round.id).await.unwrap();
    assert_eq!(checkpoint.processed_records, Some(6076));
}

#[tokio::test(flavor = "multi_thread")]
async fn symlinks_and_fifos_in_a_checkpoint_fail_the_host_by_name() {
    let cluster = Cluster::start().await;
    for host in &cluster.hosts {
        host.checkpoint(1, &[("a", b"1")]);
    }
    let id = cluster.hosts[2].checkpoints()[0].clone();
    let folder = cluster.hosts[2].dir.join("checkpoints").join(id);
    symlink("/etc/passwd", folder.join("link")).unwrap();
    let round = cluster.push().await;
    let problem = round.problem.clone().unwrap();
    assert_eq!((round.phase(), problem.reason.as_str()), (RoundPhase::Failed, "SOURCE_UNSUPPORTED"), "{problem:?}");
    assert!(problem.message.contains("link") && problem.metadata["host_idx"] == "2", "{problem:?}");
    fs::remove_file(folder.join("link")).unwrap();
    nix::unistd::mkfifo(&folder.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let round = cluster.push().await;
    assert_eq!(round.problem.unwrap().reason, "SOURCE_UNSUPPORTED");
    fs::remove_file(folder.join("fifo")).unwrap();
    cluster.pushed().await;
}
