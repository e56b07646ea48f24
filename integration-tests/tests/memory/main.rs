//! The greatest resident memory of a real agent with its default limits, whatever the size of what it moves: one huge file, and a hundred thousand small ones.
//!
//! `LOCKSTEP_SPARSE_GIB` says how huge; `.ci/run` takes data set D's 4 GiB, `make test` half of it.
#![expect(clippy::expect_used, reason = "tests: what fails here fails the test, with the cause")]

use std::{env, fs, os::unix::fs::FileExt as _, path::Path, time::Instant};

use lockstep_integration_tests::{
    cluster::{Cluster, Options},
    content::{Identity, differences, identity, link, noise, put},
};

/// What quality.md allows at most.
const BOUND_MIB: u64 = 128;

/// Small files of a checkpoint.
const MANY: usize = 100_000;

async fn solo(in_memory: bool) -> Cluster {
    Cluster::with(Options { hosts: 0, md5_etags: false, in_memory, ..Options::default() }).await
}

/// What an agent took for each transfer; all are known before one fails.
#[derive(Debug, Default)]
struct Peaks(Vec<(String, u64)>);

impl Peaks {
    /// Since the agent was started: a second transfer of one process is no lower.
    fn note(&mut self, cluster: &Cluster, what: impl Into<String>, began: Instant) {
        let (what, peak) = (what.into(), cluster.agent_peak_memory(0) >> 20);
        println!("{what}: {peak} MiB at most, {:.1} s", began.elapsed().as_secs_f64());
        self.0.push((what, peak));
    }

    fn bounded(&self) {
        let beyond: Vec<_> = self.0.iter().filter(|(_, peak)| *peak > BOUND_MIB).collect();
        assert!(beyond.is_empty(), "{BOUND_MIB} MiB are allowed, the agent took {beyond:?}");
    }
}

/// The newest checkpoint's files.
fn newest(cluster: &Cluster) -> Identity {
    let host = &cluster.hosts[0];
    identity(&host.dir.join("checkpoints").join(host.checkpoints().last().expect("a checkpoint")))
}

async fn lost_and_pulled(cluster: &mut Cluster, peaks: &mut Peaks, what: &str, before: &Identity) {
    cluster.lose_disk(0).await;
    let began = Instant::now();
    cluster.pulled().await;
    peaks.note(cluster, format!("pull of {what}"), began);
    let different = differences(before, &newest(cluster));
    assert!(different.is_empty(), "{} files differ, such as {}", different.len(), different[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_huge_file_takes_no_more_memory_than_allowed() {
    let gib: u64 = env::var("LOCKSTEP_SPARSE_GIB").map_or(2, |text| text.parse().expect("a number of GiB"));
    // Twice as much memory as the file is large is more than machines may have.
    let mut cluster = solo(false).await;
    let mut peaks = Peaks::default();
    cluster.hosts[0].checkpoint_filled(1, |folder| {
        let file = fs::File::create(folder.join("huge.dat")).expect("a file can be made");
        // No whole number of anything; something to tell at the begin, at the end, and where pieces of 16 MiB meet.
        let size = (gib << 30) + 12_345;
        file.set_len(size).expect("a sparse file can be as large");
        for (n, at) in [0, (16 << 20) - 50_000, size / 2, size - 100_000].into_iter().enumerate() {
            file.write_all_at(&noise(n as u64, "huge", 100_000), at).expect("noise can be written");
        }
    });
    let before = newest(&cluster);
    let began = Instant::now();
    cluster.pushed().await;
    let what = format!("{gib} GiB in one file");
    peaks.note(&cluster, format!("push of {what}"), began);
    lost_and_pulled(&mut cluster, &mut peaks, &what, &before).await;
    peaks.bounded();
}

fn name(n: usize) -> String {
    format!("files/{:03}/{n}.bin", n % 250)
}

fn fill(folder: &Path) {
    for n in 0..MANY {
        put(folder, &name(n), &noise(n as u64, "first", 100 + n % 900));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_small_files_take_no_more_memory_than_allowed() {
    let mut cluster = solo(true).await;
    let mut peaks = Peaks::default();
    let first = cluster.hosts[0].checkpoint_filled(1, fill);
    let began = Instant::now();
    cluster.pushed().await;
    peaks.note(&cluster, "push of 100,000 files", began);
    // A process of its own for each transfer.
    cluster.kill_agent(0);
    cluster.start_agent(0).await;
    // One in a hundred changed: now there is a base, as large as the checkpoint.
    let from = cluster.hosts[0].folder(first);
    cluster.hosts[0].checkpoint_filled(2, |folder| {
        for n in 0..MANY {
            match n % 100 {
                7 => put(folder, &name(n), &noise(n as u64, "second", 100 + n % 900)),
                _ => link(&from.join(name(n)), folder, &name(n)),
            }
        }
    });
    let before = newest(&cluster);
    let began = Instant::now();
    cluster.pushed().await;
    peaks.note(&cluster, "push of 1% of 100,000 files", began);
    lost_and_pulled(&mut cluster, &mut peaks, "100,000 files", &before).await;
    peaks.bounded();
}
