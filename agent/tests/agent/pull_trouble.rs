//! Pulls from servers that misbehave, onto disks that are full, and pulls that are called off.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_proto::v1::{self, pull_status_response::State};

use crate::{
    harness::{Files, Host, directory, files, noise, read_tree, s3, until},
    packs::{all, put, reads, single},
};

fn fault(action: FaultAction) -> FaultRule {
    FaultRule::new(action).operation("GetObject").key_contains("data-")
}

/// Small files in a pack and a large one.
fn state() -> Vec<Files> {
    let small = (0..50).map(|number| (format!("small/{number}"), noise(&number.to_string(), 3000 + number * 7)));
    vec![small.collect(), files(&[("large", noise("large", (7 << 20) + 11))])]
}

/// Ranges of 5 MiB.
fn in_ranges(mut order: v1::PullOrder) -> v1::PullOrder {
    order.transfer = Some(v1::TransferOptions { part_size: 5 << 20, ..Default::default() });
    order
}

#[tokio::test]
async fn a_body_that_breaks_off_is_continued_where_it_broke() {
    let s3 = s3().await;
    let objects = single("large", noise("large", 4 << 20));
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    let cut = s3.faults().add(fault(FaultAction::Truncate { after_bytes: 1 << 20 }).times(2));
    s3.clear_requests();
    host.pull(host.pull_order(2, &pushed, 1)).await.unwrap();
    assert_eq!(s3.faults().hits(cut), 2);
    assert!(read_tree(&host.stagings()[0]) == all(&objects));
    let ranges: Vec<(u64, u64)> = reads(&s3).into_iter().map(|(_, first, length)| (first, length)).collect();
    // What a broken connection had still in flight may be lost, but nothing that came is asked for again.
    assert_eq!(ranges.len(), 3);
    assert!(ranges.iter().all(|(first, length)| first + length == 4 << 20), "{ranges:?}");
    assert!(ranges.is_sorted() && ranges[2].0 > 1 << 20, "{ranges:?}");
}

#[tokio::test]
async fn whatever_goes_wrong_for_a_while_the_result_is_right() {
    let s3 = s3().await;
    let objects = state();
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    let actions = [
        FaultAction::SlowDown,
        FaultAction::InternalError,
        FaultAction::ResetBeforeWrite,
        FaultAction::ResetAfterWrite,
        FaultAction::ResetAfterAnswer,
        FaultAction::Truncate { after_bytes: 0 },
        FaultAction::Truncate { after_bytes: 4099 },
        FaultAction::Corrupt { at: 2000 },
        FaultAction::OtherRange { by: 1, admits: false },
        FaultAction::OtherRange { by: 1, admits: true },
        FaultAction::WrongLength { by: -1 },
        FaultAction::WrongLength { by: 1 },
        FaultAction::Throttle { bytes_per_second: 8 << 20 },
    ];
    for (round_no, action) in (2..).zip(actions) {
        // One request each of the pack and of the large file.
        let rules = ["data-0", "data-1"].map(|key| {
            s3.faults().add(FaultRule::new(action.clone()).operation("GetObject").key_contains(key).times(1))
        });
        let outcome = host.pull(in_ranges(host.pull_order(round_no, &pushed, 1))).await;
        assert!(outcome.is_ok(), "{action:?}: {outcome:?}");
        for rule in rules {
            assert_eq!(s3.faults().hits(rule), 1, "{action:?}");
        }
        assert!(read_tree(&host.stagings()[0]) == all(&objects), "{action:?}");
        s3.faults().clear();
    }
}

#[tokio::test]
async fn a_bit_that_flips_once_costs_its_file_once_more_and_nothing_else() {
    let s3 = s3().await;
    let objects = state();
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    let flip = s3
        .faults()
        .add(FaultRule::new(FaultAction::Corrupt { at: 2000 }).operation("GetObject").key_contains("data-0").times(1));
    s3.clear_requests();
    host.pull(in_ranges(host.pull_order(2, &pushed, 1))).await.unwrap();
    assert_eq!(s3.faults().hits(flip), 1);
    assert!(read_tree(&host.stagings()[0]) == all(&objects));
    let lengths: Vec<u64> =
        reads(&s3).into_iter().filter(|(key, ..)| key.contains("data-0")).map(|(_, _, length)| length).collect();
    assert_eq!(lengths.len(), 2);
    assert_eq!(lengths[1], 3000, "the file that the bit is in");
}

#[tokio::test]
async fn a_server_that_goes_on_lying_is_told_from_a_damaged_checkpoint_by_nothing_but_its_bytes() {
    let s3 = s3().await;
    let pushed = put(&s3, &state());
    let host = Host::start(&s3).await;
    let lies = [
        (FaultAction::OtherRange { by: 1, admits: false }, true),
        (FaultAction::Corrupt { at: 0 }, true),
        (FaultAction::OtherRange { by: 1, admits: true }, false),
        (FaultAction::WrongLength { by: -1 }, false),
    ];
    for (round_no, (action, names_file)) in (2..).zip(lies) {
        s3.faults().add(fault(action.clone()));
        let problem = host.pull(in_ranges(host.pull_order(round_no, &pushed, 1))).await.unwrap_err();
        assert_eq!(problem.reason, "INTEGRITY", "{action:?}: {problem:?}");
        assert!(problem.metadata["key"].contains("data-"), "{action:?}: {problem:?}");
        assert_eq!(problem.metadata.contains_key("file"), names_file, "{action:?}: {problem:?}");
        assert_eq!(host.stagings(), Vec::<PathBuf>::new(), "{action:?}");
        s3.faults().clear();
    }
}

#[tokio::test]
async fn bursts_of_refusals_and_resets_are_waited_out() {
    let s3 = s3().await;
    let objects: Vec<Files> = (0..12)
        .map(|pack| (0..20).map(|n| (format!("{pack}/{n}"), noise(&format!("{pack}/{n}"), 5000))).collect())
        .collect();
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    let busy = s3.faults().add(fault(FaultAction::SlowDown).lasts(Duration::from_millis(700)));
    let resets = s3.faults().add(fault(FaultAction::ResetBeforeWrite).times(5));
    host.pull(host.pull_order(2, &pushed, 1)).await.unwrap();
    assert!(s3.faults().hits(busy) > 0 && s3.faults().hits(resets) == 5);
    assert!(read_tree(&host.stagings()[0]) == all(&objects));
}

#[tokio::test]
async fn a_cancelled_pull_stops_within_a_second_while_bytes_trickle_in() {
    let s3 = s3().await;
    let pushed = put(&s3, &state());
    let host = Host::start(&s3).await;
    s3.faults().add(fault(FaultAction::Throttle { bytes_per_second: 100_000 }));
    // A busy machine makes it slower, never quicker: too slow only if it is so each time.
    let mut took = Vec::new();
    for round_no in 2..6 {
        let order = in_ranges(host.pull_order(round_no, &pushed, 1));
        let header = order.header.clone().unwrap();
        host.client.clone().pull(order).await.unwrap();
        until("bytes to come", async || {
            matches!(host.pull_state(header.clone(), 0).await, State::InProgress(progress) if progress.bytes_done > 0)
        })
        .await;
        assert!(!read_tree(&host.stagings()[0]).is_empty());
        let asked = Instant::now();
        let cancelled = host.client.clone().cancel(v1::CancelOrder { header: Some(header) }).await.unwrap();
        took.push(asked.elapsed());
        assert!(cancelled.into_inner().stopped);
        assert_eq!(host.stagings(), Vec::<PathBuf>::new());
        if took.last() < Some(&Duration::from_secs(1)) {
            return;
        }
    }
    panic!("each took more than a second: {took:?}");
}

/// A small disk of its own. Needs root, as the whole of this suite has in CI; without it the tests that use it fail and say so.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn mount(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(folder.path()).output().unwrap();
        assert!(
            mounted.status.success(),
            "a disk of a known size is needed, which takes the right to mount: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn host(&self, s3: &lockstep_devkit::S3Server) -> Host {
        let dir = tempfile::tempdir_in(self.path()).unwrap();
        let store = directory(dir.path());
        Host::over(s3, dir, store).await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the agent may be about to close its last files.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn no_space(problem: &v1::Problem, disk: &Disk) {
    assert_eq!((problem.reason.as_str(), problem.retryable()), ("NO_SPACE", v1::Retryable::Yes), "{problem:?}");
    assert!(Path::new(&problem.metadata["path"]).starts_with(disk.path()), "{problem:?}");
    assert!(problem.metadata["needed"].parse::<u64>().unwrap() > 0, "{problem:?}");
    problem.metadata["free"].parse::<u64>().unwrap();
}

/// Forty files of 256 KiB, in packs.
fn ten_mib() -> Vec<Files> {
    (0..4)
        .map(|pack| (0..10).map(|n| (format!("{pack}/{n}"), noise(&format!("{pack}/{n}"), 256 << 10))).collect())
        .collect()
}

#[tokio::test]
async fn a_disk_that_fills_up_under_a_pull_ends_it_before_it_is_full_and_it_can_be_repeated() {
    let s3 = s3().await;
    let objects = ten_mib();
    let pushed = put(&s3, &objects);
    let disk = Disk::mount("size=24m");
    let host = disk.host(&s3).await;
    let engine = files(&[("state", noise("state", 1 << 20))]);
    let checkpoint = host.checkpoint(3, &engine);
    let before = read_tree(&host.folder(checkpoint));

    let slow = s3.faults().add(fault(FaultAction::Throttle { bytes_per_second: 400_000 }));
    let order = host.pull_order(2, &pushed, 1);
    let header = order.header.clone().unwrap();
    host.client.clone().pull(order).await.unwrap();
    until("bytes to come", async || {
        matches!(host.pull_state(header.clone(), 0).await, State::InProgress(progress) if progress.bytes_done > 0)
    })
    .await;
    // The engine writes what the pull was counting on; 2 MiB are left.
    let free = free_bytes(disk.path());
    fs::write(disk.path().join("engine"), vec![1; usize::try_from(free).unwrap() - (2 << 20)]).unwrap();
    let problem = loop {
        match host.pull_state(header.clone(), 10).await {
            State::InProgress(_) => {}
            State::Failed(problem) => break problem,
            other => panic!("{other:?}"),
        }
    };
    no_space(&problem, &disk);
    assert!(problem.metadata["free"].parse::<u64>().unwrap() > 0, "it was full: {problem:?}");
    assert_eq!(host.stagings(), Vec::<PathBuf>::new());
    assert_eq!(read_tree(&host.folder(checkpoint)), before);

    s3.faults().remove(slow);
    fs::remove_file(disk.path().join("engine")).unwrap();
    host.pull(host.pull_order(3, &pushed, 1)).await.unwrap();
    assert!(read_tree(&host.stagings()[0]) == all(&objects));
}

/// Bytes that are free, by statvfs through `df`.
fn free_bytes(path: &Path) -> u64 {
    let out = Command::new("df").args(["--output=avail", "-B1"]).arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_checkpoint_that_would_leave_the_engine_nothing_is_refused_before_a_byte_is_downloaded() {
    let s3 = s3().await;
    let pushed = put(&s3, &ten_mib());
    // Ten of them would fit, were all of the disk for the pull.
    let disk = Disk::mount("size=10700k");
    let host = disk.host(&s3).await;
    s3.clear_requests();
    let problem = host.pull(host.pull_order(2, &pushed, 1)).await.unwrap_err();
    no_space(&problem, &disk);
    let metadata = |name: &str| problem.metadata[name].parse::<u64>().unwrap();
    assert!(metadata("free") > 10 << 20 && metadata("needed") > metadata("free"), "{problem:?}");
    assert_eq!(reads(&s3), []);
    assert_eq!(host.stagings(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_disk_that_takes_no_more_files_is_full_too() {
    let s3 = s3().await;
    let objects = ten_mib();
    let pushed = put(&s3, &objects);
    let disk = Disk::mount("size=64m,nr_inodes=40");
    let host = disk.host(&s3).await;
    let problem = host.pull(host.pull_order(2, &pushed, 1)).await.unwrap_err();
    no_space(&problem, &disk);
    assert_eq!(problem.metadata["free_files"], "0", "{problem:?}");
    assert_eq!(host.stagings(), Vec::<PathBuf>::new());
}
