//! What a pull asks of the store, and what it doesn't because it is there.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

use lockstep_proto::v1;
use lockstep_protocol::manifest::RelativePath;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    harness::{Files, Host, files, noise, read_tree, s3},
    packs::{all, put, reads, single},
};

/// Packs of small files of different sizes.
fn packs(count: usize, each: usize) -> Vec<Files> {
    let pack = |pack: usize| {
        let file = |number: usize| {
            let name = format!("batches/{pack}/{number}");
            (name.clone(), noise(&name, 1000 + (pack * 31 + number * 97) % 7000))
        };
        (0..each).map(file).collect()
    };
    (0..count).map(pack).collect()
}

fn staging(host: &Host) -> PathBuf {
    let mut stagings = host.stagings();
    assert_eq!(stagings.len(), 1);
    stagings.remove(0)
}

/// Pulls into a fresh host; the staged files are there to be looked at.
async fn pull(host: &Host, pushed: &v1::PushDone) -> v1::PullDone {
    host.pull(host.pull_order(2, pushed, 1)).await.unwrap()
}

#[tokio::test]
async fn four_thousand_small_files_are_a_request_a_pack() {
    let s3 = s3().await;
    let objects = packs(16, 250);
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    s3.clear_requests();
    let done = pull(&host, &pushed).await;
    assert_eq!((done.files, done.bytes_downloaded), (4000, pushed.bytes));
    assert!(read_tree(&staging(&host)) == all(&objects));
    assert_eq!(reads(&s3).len(), 16);
}

#[tokio::test]
async fn after_losing_a_tenth_of_the_files_exactly_those_are_fetched_and_the_others_are_linked() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let s3 = s3().await;
    let objects = packs(8, 100);
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    let mut left: Vec<(String, Vec<u8>)> = all(&objects).into_iter().collect();
    left.shuffle(&mut random);
    let lost = left.split_off(left.len() * 9 / 10);
    let left: Files = left.into_iter().collect();
    let local = host.folder(host.checkpoint(3, &left));
    s3.clear_requests();
    let done = pull(&host, &pushed).await;
    let missing: u64 = lost.iter().map(|(_, content)| content.len() as u64).sum();
    assert_eq!((done.bytes_downloaded, done.bytes_reused), (missing, pushed.bytes - missing));
    let asked: u64 = reads(&s3).iter().map(|(_, _, length)| length).sum();
    assert!(asked >= missing && asked * 100 <= missing * 105, "{asked} bytes for {missing}");
    let staging = staging(&host);
    assert!(read_tree(&staging) == all(&objects));
    let inode = |folder: &PathBuf, path: &str| fs::metadata(folder.join(path)).unwrap().ino();
    assert!(left.keys().all(|path| inode(&local, path) == inode(&staging, path)));
}

#[tokio::test]
async fn what_was_pulled_is_known_and_not_read_again() {
    let s3 = s3().await;
    let mut objects = packs(2, 20);
    objects.push(files(&[("large", noise("large", 3 << 20))]));
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    pull(&host, &pushed).await;
    // Staged files keep what they look like when they are installed, which needs a document.
    let local = host.dir.path().join("checkpoints").join(&pushed.local_checkpoint);
    fs::create_dir_all(local.parent().unwrap()).unwrap();
    fs::rename(staging(&host), &local).unwrap();
    // A disk that lies, as nobody does who keeps the promise that files never change: whoever reads this file sees it.
    let file = fs::OpenOptions::new().write(true).open(local.join("large")).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"another", 0).unwrap();
    file.set_modified(modified).unwrap();
    // The knowledge outlives the process.
    let host = host.restart(&s3).await;
    s3.clear_requests();
    let done = host.pull(host.pull_order(3, &pushed, 1)).await.unwrap();
    assert_eq!((done.bytes_downloaded, done.bytes_reused), (0, pushed.bytes));
    assert_eq!(reads(&s3), []);
}

#[tokio::test]
async fn ranges_of_a_large_file_come_in_parallel_and_each_once() {
    let s3 = s3().await;
    // Zeros in the middle: what isn't written must read as zeros, too.
    let mut content = noise("large", 23 << 20);
    content[2 << 20..13 << 20].fill(0);
    content.truncate((23 << 20) - 7);
    let objects = single("large", content);
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    s3.clear_requests();
    let mut order = host.pull_order(2, &pushed, 1);
    order.transfer = Some(v1::TransferOptions { part_size: (5 << 20) + 4096, ..Default::default() });
    host.pull(order).await.unwrap();
    assert!(read_tree(&staging(&host)) == all(&objects));
    let mut ranges: Vec<(u64, u64)> = reads(&s3).into_iter().map(|(_, first, length)| (first, length)).collect();
    ranges.sort_unstable();
    let mib = 1 << 20;
    let last = (20 * mib, 3 * mib - 7);
    assert_eq!(ranges, [(0, 5 * mib), (5 * mib, 5 * mib), (10 * mib, 5 * mib), (15 * mib, 5 * mib), last]);
}

#[tokio::test]
async fn files_of_equal_content_are_fetched_and_stored_once() {
    let s3 = s3().await;
    let twin = noise("twin", 50_000);
    let objects = [
        files(&[("a", twin.clone()), ("b", noise("b", 100))]),
        files(&[("c", twin.clone()), ("deep/er/d", twin.clone())]),
    ];
    let pushed = put(&s3, &objects);
    let host = Host::start(&s3).await;
    s3.clear_requests();
    let done = pull(&host, &pushed).await;
    assert_eq!((done.bytes_downloaded, done.bytes_reused), (50_100, 100_000));
    assert_eq!(reads(&s3).len(), 1);
    let staging = staging(&host);
    assert!(read_tree(&staging) == all(&objects));
    let inodes: BTreeSet<u64> =
        ["a", "c", "deep/er/d"].iter().map(|path| fs::metadata(staging.join(path)).unwrap().ino()).collect();
    assert_eq!(inodes.len(), 1);
}

#[tokio::test]
async fn empty_files_long_names_and_no_files_at_all_are_as_good_as_others() {
    let s3 = s3().await;
    let long = "n".repeat(255);
    let deep = vec![long.clone(); 5].join("/");
    let objects =
        [files(&[("empty", Vec::new()), (&deep, noise("deep", 10)), (&format!("{}m", &long[1..]), Vec::new())])];
    let pushed = put(&s3, &objects);
    assert!(RelativePath::new(deep).is_ok());
    let host = Host::start(&s3).await;
    let done = pull(&host, &pushed).await;
    assert_eq!((done.files, done.bytes), (3, 10));
    assert!(read_tree(&staging(&host)) == all(&objects));

    let nothing = put(&s3, &[]);
    s3.clear_requests();
    let done = host.pull(host.pull_order(3, &nothing, 1)).await.unwrap();
    assert_eq!((done.files, done.bytes, done.bytes_downloaded), (0, 0, 0));
    assert_eq!(reads(&s3), []);
    assert!(read_tree(&staging(&host)).is_empty());
}
