//! What is not read and what is not sent: packs, increments, other hosts' contents, and how garbage stays bounded. All counted.

use std::{collections::BTreeSet, fs, path::Path};

use lockstep_agent::store::directory::{DirectoryStore, document::CheckpointDocument};
use lockstep_devkit::S3Server;
use lockstep_proto::v1;
use lockstep_protocol::{
    id::{LocalCheckpointId, Step},
    manifest::{PartManifest, RelativePath},
};
use uuid::Uuid;

use crate::{
    harness::{FINGERPRINT, Files, Host, commit, files, noise, s3},
    process,
    push::{content, part, without_document},
    watched,
};

/// As an engine does: unchanged files are hard links to the checkpoint before.
fn next_checkpoint(host: &Host, before: LocalCheckpointId, step: u64, new: &Files, gone: &[&str]) -> LocalCheckpointId {
    let id = LocalCheckpointId::new(Uuid::new_v4());
    let store = DirectoryStore::open(host.dir.path()).unwrap();
    let mut writer = store.writer(id).unwrap();
    for (path, bytes) in new {
        writer.write(&RelativePath::new(path.as_str()).unwrap(), bytes).unwrap();
    }
    let folder = host.folder(before);
    let mut names: Vec<_> = crate::harness::read_tree(&folder).into_keys().collect();
    names.retain(|path| path != "checkpoint.json" && !new.contains_key(path) && !gone.contains(&path.as_str()));
    for path in names {
        writer.link(&RelativePath::new(path.as_str()).unwrap(), &folder.join(&path)).unwrap();
    }
    writer
        .publish(&CheckpointDocument {
            uuid: id,
            step: Step::new(step).unwrap(),
            fingerprint: Some(FINGERPRINT.parse().unwrap()),
            processed_records: None,
            created_at: chrono::Utc::now(),
        })
        .unwrap();
    id
}

fn onto(mut order: v1::PushOrder, base_round: u64, parts: &[&v1::PushDone]) -> v1::PushOrder {
    order.base = Some(commit(base_round));
    order.base_parts = parts.iter().map(|done| done.part.clone().unwrap()).collect();
    order
}

fn small_parts() -> Option<v1::TransferOptions> {
    Some(v1::TransferOptions { part_size: 5 << 20, ..Default::default() })
}

fn many(seed: &str, count: usize, size: usize) -> Files {
    (0..count).map(|number| (format!("batches/{number:05}"), noise(&format!("{seed}-{number}"), size))).collect()
}

/// Bytes of all bodies that came in.
fn sent(s3: &S3Server) -> u64 {
    s3.requests().iter().map(|request| request.bytes_in).sum()
}

fn operations(s3: &S3Server) -> Vec<String> {
    s3.requests().into_iter().map(|request| request.operation).collect()
}

#[tokio::test]
async fn four_thousand_small_files_travel_in_at_most_20_requests() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    // In packs of 5 MiB what 64 KiB are in packs of 16.
    let state = many("first", 4000, 20 << 10);
    let checkpoint = host.checkpoint(4, &state);
    let mut order = host.push_order(1, checkpoint, 4);
    order.transfer = small_parts();
    let done = host.push(order).await.unwrap();
    let operations = operations(&s3);
    assert!(operations.len() <= 20 && operations.iter().all(|operation| operation == "PutObject"), "{operations:?}");
    let part = part(&s3, &done);
    assert_eq!(without_document(content(&s3, &part)), state);
    assert_eq!(part.objects.len(), operations.len() - 1);
    // Neighbours lie together: in how many objects do 100 of them lie?
    let places: BTreeSet<_> = part.files.iter().take(100).filter_map(|file| file.object).collect();
    assert!(places.len() <= 4, "{places:?}");
}

#[tokio::test]
async fn nothing_changed_costs_two_requests_and_opens_no_file() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let mut state = many("first", 300, 5000);
    state.insert("large".to_owned(), noise("large", 6 << 20));
    let first = host.checkpoint(4, &state);
    let base = host.push(host.push_order(1, first, 4)).await.unwrap();
    let opened = watch.take_opened();
    assert_eq!((opened.len(), opened.iter().collect::<BTreeSet<_>>().len()), (302, 302), "a file was opened twice");

    s3.clear_requests();
    let second = host.push(onto(host.push_order(2, first, 4), 1, &[&base])).await.unwrap();
    assert_eq!(operations(&s3), ["GetObject", "PutObject"]);
    assert_eq!((watch.take_opened(), second.bytes_uploaded), (vec![], 0));
    assert!(sent(&s3) < 1500, "the manifest of an unchanged part has {} bytes", sent(&s3));
    assert_eq!(without_document(content(&s3, &part(&s3, &second))), state);

    // Its manifest is a delta: one more is read, and still nothing of the data.
    s3.clear_requests();
    let other = next_checkpoint(&host, first, 8, &Files::new(), &[]);
    let third = host.push(onto(host.push_order(3, other, 8), 2, &[&second])).await.unwrap();
    assert_eq!(operations(&s3), ["GetObject", "GetObject", "PutObject", "PutObject"], "checkpoint.json is new");
    assert_eq!(watch.take_opened(), ["checkpoint.json"]);
    assert_eq!(without_document(content(&s3, &part(&s3, &third))), state);
}

#[tokio::test]
async fn one_percent_changed_sends_one_percent() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let mut state = many("first", 2000, 20 << 10);
    let first = host.checkpoint(4, &state);
    let base = host.push(host.push_order(1, first, 4)).await.unwrap();
    let new: Files = many("second", 2000, 20 << 10).into_iter().step_by(100).collect();
    state.extend(new.clone());
    let second = next_checkpoint(&host, first, 8, &new, &[]);
    watch.take_opened();
    s3.clear_requests();
    let done = host.push(onto(host.push_order(2, second, 8), 1, &[&base])).await.unwrap();

    let changed = 20 * (20 << 10) + fs::metadata(host.folder(second).join("checkpoint.json")).unwrap().len();
    assert_eq!(done.bytes_uploaded, changed);
    assert!(sent(&s3) as f64 <= 1.05 * changed as f64, "{} bytes for {changed}", sent(&s3));
    let mut expected: Vec<_> = new.into_keys().collect();
    expected.push("checkpoint.json".to_owned());
    assert_eq!(watch.take_opened(), expected);
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), state);
}

#[tokio::test]
async fn after_a_restart_what_was_hashed_is_not_read_and_without_the_cache_it_is_read_but_not_sent() {
    let s3 = s3().await;
    let (host, _) = watched::host(&s3).await;
    let mut state = many("first", 200, 5000);
    state.insert("medium".to_owned(), noise("medium", 2 << 20));
    state.insert("large".to_owned(), noise("large", 11 << 20));
    let checkpoint = host.checkpoint(4, &state);
    let with_sizes = |mut order: v1::PushOrder| {
        order.transfer = small_parts();
        order
    };
    let base = host.push(with_sizes(host.push_order(1, checkpoint, 4))).await.unwrap();

    let (mut host, watch) = watched::restarted(&s3, host, |_| {}).await;
    s3.clear_requests();
    let second = host.push(with_sizes(onto(host.push_order(2, checkpoint, 4), 1, &[&base]))).await.unwrap();
    assert_eq!((watch.take_opened(), operations(&s3).len()), (vec![], 2));

    for (round_no, damage) in [(3, None), (4, Some(b"lockstep-dig"))] {
        let break_cache = |dir: &Path| {
            let cache = dir.join(".lockstep/state/digests");
            fs::remove_file(&cache).unwrap();
            damage.iter().for_each(|bytes| fs::write(&cache, bytes).unwrap());
        };
        let (again, watch) = watched::restarted(&s3, host, break_cache).await;
        s3.clear_requests();
        let order = onto(again.push_order(round_no, checkpoint, 4), 2, &[&second]);
        let done = again.push(with_sizes(order)).await.unwrap();
        assert_eq!((watch.take_opened().len(), done.bytes_uploaded), (203, 0), "{damage:?}");
        assert!(operations(&s3).len() <= 3, "{:?}", operations(&s3));
        assert_eq!(without_document(content(&s3, &part(&s3, &done))), state);
        host = again;
    }
}

#[tokio::test]
async fn a_large_file_that_only_begins_like_one_of_the_base_is_sent_after_all() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let bytes = noise("large", 11 << 20);
    let first = host.checkpoint(4, &files(&[("large", bytes.clone())]));
    let mut order = host.push_order(1, first, 4);
    order.transfer = small_parts();
    let base = host.push(order).await.unwrap();
    watch.take_opened();

    // Begins otherwise, so it is read once; begins the same, so it is hashed first; is the same, so it isn't sent.
    for (round_no, at, opened, uploads) in [(2, Some(0), 1, 3), (3, Some(10 << 20), 2, 3), (4, None, 1, 0)] {
        let mut changed = bytes.clone();
        if let Some(at) = at {
            changed[at] ^= 1;
        }
        let second = host.checkpoint(8, &files(&[("large", changed.clone())]));
        s3.clear_requests();
        let mut order = onto(host.push_order(round_no, second, 8), 1, &[&base]);
        order.transfer = small_parts();
        let done = host.push(order).await.unwrap();
        let opens = watch.take_opened().iter().filter(|path| *path == "large").count();
        let pieces = s3.log().count_of("UploadPart");
        assert_eq!((opens, pieces), (opened, uploads), "changed at {at:?}");
        assert_eq!(without_document(content(&s3, &part(&s3, &done))), files(&[("large", changed)]));
    }
}

#[tokio::test]
async fn what_another_host_has_in_the_base_is_not_sent_again() {
    let s3 = s3().await;
    let (one, _) = watched::host(&s3).await;
    let (two, watch) = watched::host_over(&s3, tempfile::tempdir().unwrap(), 2, true).await;
    let shared = many("shared", 50, 9000);
    let of_one = one.push(one.push_order(1, one.checkpoint(4, &shared), 4)).await.unwrap();
    let of_two =
        two.push(two.push_order(1, two.checkpoint(4, &files(&[("own", noise("own", 1000))])), 4)).await.unwrap();
    watch.take_opened();

    // Host 2 takes over a batch of host 1, as after a rebalance.
    let mut state = shared.clone();
    state.insert("own".to_owned(), noise("own", 1000));
    let second = two.checkpoint(8, &state);
    s3.clear_requests();
    let done = two.push(onto(two.push_order(2, second, 8), 1, &[&of_one, &of_two])).await.unwrap();
    let document = fs::metadata(two.folder(second).join("checkpoint.json")).unwrap().len();
    assert_eq!(done.bytes_uploaded, document);
    let part = part(&s3, &done);
    assert_eq!(without_document(content(&s3, &part)), state);
    assert!(part.objects.iter().any(|object| object.key.starts_with("host1/")), "{:?}", part.objects);
}

fn reachable(part: &PartManifest) -> u64 {
    part.objects.iter().map(|object| object.size).sum()
}

#[tokio::test]
async fn packs_that_are_mostly_dead_are_written_anew() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let mut state = many("first", 60, 20 << 10);
    let mut checkpoint = host.checkpoint(4, &state);
    let mut done = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
    for round in 2..=4_u64 {
        let gone: Vec<String> = state.keys().take(14).cloned().collect();
        state.retain(|path, _| !gone.contains(path));
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        checkpoint = next_checkpoint(&host, checkpoint, 4 * round, &Files::new(), &gone);
        watch.take_opened();
        done = host.push(onto(host.push_order(round, checkpoint, 4 * round), round - 1, &[&done])).await.unwrap();
        let part = part(&s3, &done);
        assert_eq!(without_document(content(&s3, &part)), state);
        assert!(
            reachable(&part) <= 2 * part.bytes() + 1000,
            "round {round}: {} for {}",
            reachable(&part),
            part.bytes()
        );
        // 46 and 32 of 60 are enough, 18 are not.
        assert_eq!(watch.take_opened().len(), if round < 4 { 1 } else { 19 }, "round {round}");
    }
    let old = part(&s3, &done).objects.iter().filter(|object| object.key.contains("-000000000001/")).count();
    assert_eq!(old, 0);
}

#[tokio::test]
async fn a_pack_that_another_host_still_uses_is_alive() {
    let s3 = s3().await;
    let (one, watch) = watched::host(&s3).await;
    let (two, _) = watched::host_over(&s3, tempfile::tempdir().unwrap(), 2, true).await;
    let state = many("first", 60, 20 << 10);
    let first = one.checkpoint(4, &state);
    let of_one = one.push(one.push_order(1, first, 4)).await.unwrap();
    // Host 2 uses what host 1 sent.
    let of_two = two.push(onto(two.push_order(2, two.checkpoint(4, &state), 4), 1, &[&of_one])).await.unwrap();
    let gone: Vec<&str> = state.keys().take(45).map(String::as_str).collect();
    let second = next_checkpoint(&one, first, 8, &Files::new(), &gone);
    watch.take_opened();
    let done = one.push(onto(one.push_order(3, second, 8), 2, &[&of_one, &of_two])).await.unwrap();
    assert_eq!(watch.take_opened(), ["checkpoint.json"]);
    assert_eq!(part(&s3, &done).files.len(), 16);
}

/// Bytes that a process has read from files; those from sockets don't count, they are received.
fn bytes_read(process: &process::Process) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", process.0.id())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn no_byte_is_read_twice_in_a_first_push() {
    let s3 = s3().await;
    let dir = tempfile::tempdir().unwrap();
    let mut state = many("first", 500, 20 << 10);
    state.insert("medium".to_owned(), noise("medium", 4 << 20));
    state.insert("large".to_owned(), noise("large", 21 << 20));
    let checkpoint = crate::harness::write_checkpoint(dir.path(), 4, &state);
    let bytes: u64 = state.values().map(|bytes| bytes.len() as u64).sum();
    let (process, client) = process::sidecar(&s3, dir.path()).await;
    let mut order = process::order(&s3, &client, checkpoint, 1).await;
    order.transfer = small_parts();
    let header = order.header.clone().unwrap();
    let before = bytes_read(&process);
    client.clone().push(order).await.unwrap();
    let done = loop {
        let request = crate::harness::status_request(header.clone(), 10);
        match client.clone().push_status(request).await.unwrap().into_inner().state.unwrap() {
            v1::push_status_response::State::InProgress(_) => {}
            v1::push_status_response::State::Done(done) => break done,
            other => panic!("{other:?}"),
        }
    };
    let read = bytes_read(&process) - before;
    assert!(done.bytes_uploaded >= bytes && read >= bytes, "{read} of {bytes}");
    assert!(read as f64 <= 1.02 * bytes as f64, "{read} bytes were read of {bytes}");
}
