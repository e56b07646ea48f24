//! Files that change under the hands of a push, and files of every kind.

use std::{fs, io::Write};

use lockstep_proto::v1;
use lockstep_protocol::{
    digest::Digest,
    problem::{Problem, Reason},
};

use crate::{
    harness::{BUCKET, Files, Host, files, noise, s3},
    push::{content, part, without_document},
    watched,
};

fn state() -> Files {
    files(&[
        ("small", noise("small", 1000)),
        ("deep/medium", noise("medium", 1_500_000)),
        ("deep/large", noise("large", (11 << 20) + 3)),
    ])
}

fn order(host: &Host, round_no: u64, state: &Files) -> v1::PushOrder {
    let checkpoint = host.checkpoint(round_no, state);
    let mut order = host.push_order(round_no, checkpoint, round_no);
    order.transfer = Some(v1::TransferOptions { part_size: 5 << 20, ..Default::default() });
    order
}

/// What an engine that breaks its promise does to a file.
type Breach = fn(&std::path::Path);

const BREACHES: [(&str, Breach); 3] = [
    ("grows", |file| {
        fs::OpenOptions::new().append(true).open(file).unwrap().write_all(b"more").unwrap();
    }),
    ("shrinks", |file| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(900).unwrap()),
    ("is rewritten", |file| {
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        (&file).write_all(b"other").unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }),
];

#[tokio::test]
async fn a_file_that_changes_before_or_while_it_is_read_fails_the_push_with_its_path_and_no_upload_stays_open() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let mut round_no = 0;
    for victim in ["small", "deep/medium", "deep/large"] {
        for (what, breach) in BREACHES {
            for opened in [false, true] {
                round_no += 1;
                let order = order(&host, round_no, &state());
                let file = host.folder(&order.local_checkpoint).join(victim);
                let happens = move |path: &str| {
                    if path == victim {
                        breach(&file);
                    }
                    Ok(())
                };
                watch.before_open(|_| Ok(()));
                watch.after_open(|_| Ok(()));
                if opened {
                    watch.after_open(happens)
                } else {
                    watch.before_open(happens)
                }
                let problem = host.push(order).await.unwrap_err();
                let told = (problem.reason.as_str(), problem.metadata.get("path").map(String::as_str));
                assert_eq!(told, ("SOURCE_CHANGED", Some(victim)), "{victim} {what}, opened: {opened}");
            }
        }
    }
    // What a round leaves to its next attempt goes with the order for another round, or when it is cancelled.
    host.client.clone().cancel(v1::CancelOrder { header: Some(host.header(round_no)) }).await.unwrap();
    assert_eq!(s3.admin().open_uploads(BUCKET).unwrap(), []);
    let manifests = s3.admin().keys(BUCKET, "").unwrap().into_iter().filter(|key| key.ends_with("part.json")).count();
    assert_eq!(manifests, 0);
}

#[tokio::test]
async fn a_file_that_vanished_or_can_not_be_read_is_named() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let hold = host.dir.path().join(".lockstep/hold");
    watch.before_open(move |path| {
        for held in fs::read_dir(&hold).unwrap() {
            let _ = fs::remove_file(held.unwrap().path().join(path));
        }
        Ok(())
    });
    let only = files(&[("small", noise("small", 10))]);
    let problem = host.push(order(&host, 1, &only)).await.unwrap_err();
    assert_eq!(problem.reason, "SOURCE_CHANGED");
    assert!(["small", "checkpoint.json"].contains(&problem.metadata["path"].as_str()), "{problem:?}");

    watch.before_open(|path| {
        let error = std::io::Error::from_raw_os_error(5);
        Err(Problem::new(Reason::LocalIo, format!("cannot read {path}: {error}")).with("path", path).with("errno", 5))
    });
    let problem = host.push(order(&host, 2, &only)).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["errno"].as_str()), ("LOCAL_IO", "5"));
}

#[tokio::test]
async fn a_replaced_name_changes_nothing_for_a_push_that_holds_the_old_file() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let order = order(&host, 1, &state());
    let folder = host.folder(&order.local_checkpoint);
    watch.before_open(move |path| {
        // Files are opened by several threads at once.
        let new = folder.join(format!("new-{}", path.replace('/', "-")));
        fs::write(&new, b"new").unwrap();
        fs::rename(new, folder.join(path)).unwrap();
        Ok(())
    });
    let done = host.push(order).await.unwrap();
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), state());
}

#[tokio::test]
async fn a_store_that_does_not_say_what_files_look_like_is_pushed_and_read_each_time() {
    let s3 = s3().await;
    let (host, watch) = watched::host_over(&s3, tempfile::tempdir().unwrap(), 1, false).await;
    let checkpoint = host.checkpoint(4, &state());
    let first = host.push(host.push_order(1, checkpoint, 4)).await.unwrap();
    assert_eq!(without_document(content(&s3, &part(&s3, &first))), state());
    watch.take_opened();
    let mut order = host.push_order(2, checkpoint, 4);
    order.base = Some(crate::harness::commit(1));
    order.base_parts = vec![first.part.unwrap()];
    let second = host.push(order).await.unwrap();
    assert_eq!((second.bytes_uploaded, watch.take_opened().len()), (0, 4));
    assert_eq!(without_document(content(&s3, &part(&s3, &second))), state());
}

#[tokio::test]
async fn files_of_every_size_and_name_arrive() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let mib = 1_usize << 20;
    let mut state = Files::new();
    for size in [0, 1, mib - 1, mib, mib + 1, 5 * mib, 5 * mib + 1, 10 * mib, 15 * mib + 7] {
        state.insert(format!("sizes/{size}"), noise(&size.to_string(), size));
    }
    // The last one is 255 bytes of UTF-8.
    for name in ["a".repeat(255), "ü".repeat(127) + "x", "with space".to_owned(), "new\nline".to_owned()] {
        state.insert(format!("names/{name}"), noise(&name, 77));
    }
    for number in 0..50 {
        state.insert(format!("empty/{number}"), Vec::new());
    }
    let done = host.push(order(&host, 1, &state)).await.unwrap();
    let part = part(&s3, &done);
    assert_eq!(without_document(content(&s3, &part)), state);
    for file in &part.files {
        let Some(bytes) = state.get(file.path.as_str()) else { continue };
        assert_eq!(file.blake3, Digest::of(bytes), "{}", file.path);
        let head = bytes.get(..mib).filter(|head| head.len() < bytes.len()).map(Digest::of);
        assert_eq!(file.head, head, "{}", file.path);
    }
    assert_eq!(s3.admin().open_uploads(BUCKET).unwrap(), []);
}

#[tokio::test]
async fn a_sparse_file_is_pushed_as_what_it_reads() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("sparse", b"x".to_vec())]));
    let on_disk = fs::OpenOptions::new().write(true).open(host.folder(checkpoint).join("sparse")).unwrap();
    on_disk.set_len(100 << 20).unwrap();
    let mut order = host.push_order(1, checkpoint, 4);
    order.transfer = Some(v1::TransferOptions { part_size: 5 << 20, memory: 10 << 20, ..Default::default() });
    let done = host.push(order).await.unwrap();
    let part = part(&s3, &done);
    let mut expected = vec![0; 100 << 20];
    expected[0] = b'x';
    let file = part.files.iter().find(|file| file.path.as_str() == "sparse").unwrap();
    assert_eq!((file.size, file.blake3), (100 << 20, Digest::of(&expected)));
}

#[tokio::test]
async fn a_panic_in_the_engines_store_fails_the_transfer_and_not_the_agent() {
    let s3 = s3().await;
    let (host, watch) = watched::host(&s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("a", noise("a", 1000))]));
    watch.before_open(|_| panic!("the engine's own bug"));
    let problem = host.push(host.push_order(1, checkpoint, 4)).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["panic"].as_str()), ("AGENT_PANIC", "the engine's own bug"));
    let listed = host.client.clone().list_checkpoints(v1::ListLocalCheckpointsRequest {}).await.unwrap();
    assert_eq!(listed.into_inner().checkpoints.len(), 1);
}
