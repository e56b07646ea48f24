use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lockstep_bucket::{
    Access, Operation, fetch_part, finish_base, is_retired, latest,
    memory::fault::{Fault, FaultRule},
    put_mark, still_stands, verify_checkpoint, verify_some, verify_structure,
};
use lockstep_protocol::{
    commit::CommitDocument,
    damage::DamageMark,
    digest::Digest,
    manifest::{FileEntry, Inherited, PartManifest, RelativePath},
    problem::{Problem, Reason},
    verification::Position,
};

use crate::sample::{Place, commit, commit_ref, generation, part};

async fn broken(place: &Place) -> Vec<Problem> {
    verify_checkpoint(&place.store, &commit(1, 1), &|_| {}).await.unwrap()
}

fn whole() -> Place {
    let place = Place::new();
    place.whole_commit(1, 1);
    place
}

#[tokio::test]
async fn a_whole_checkpoint_has_no_problem_and_every_byte_was_read() {
    let read = AtomicU64::new(0);
    let count = |bytes| {
        read.fetch_add(bytes, Ordering::Relaxed);
    };
    assert_eq!(verify_checkpoint(&whole().store, &commit(1, 1), &count).await, Ok(vec![]));
    assert_eq!(read.into_inner(), commit(1, 1).bytes());
}

#[tokio::test]
async fn each_flipped_byte_is_found_with_host_file_expected_and_found() {
    let (manifest, objects) = part(1, 1, 1);
    for (object, at, file) in [(0, 0, "a/first"), (0, 9_999, "a/first"), (0, 10_500, "a/second"), (1, 49_999, "large")]
    {
        let place = whole();
        let (key, bytes) = &objects[object];
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1;
        place.write(key, Bytes::from(flipped));
        let problems = broken(&place).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].reason, Reason::Integrity);
        let expected = manifest.files.iter().find(|entry| entry.path.as_str() == file).unwrap().blake3.to_string();
        let metadata = |name: &str| problems[0].metadata.get(name).cloned().unwrap_or_default();
        assert_eq!((metadata("host_idx"), metadata("file"), metadata("expected")), ("1".into(), file.into(), expected));
        assert_ne!(metadata("found"), metadata("expected"));
    }
}

#[tokio::test]
async fn bytes_between_files_do_not_matter() {
    let place = whole();
    let (_, objects) = part(1, 1, 0);
    let mut changed = objects[0].1.to_vec();
    changed[10_250] ^= 1;
    place.write(&objects[0].0, Bytes::from(changed));
    assert_eq!(broken(&place).await, []);
}

#[tokio::test]
async fn missing_and_short_objects_damage_each_file_in_them() {
    let (_, objects) = part(1, 1, 0);
    let place = whole();
    place.remove(&objects[0].0);
    place.write(&objects[1].0, objects[1].1.slice(..100));
    let problems = broken(&place).await;
    let mut files: Vec<_> = problems.iter().map(|p| (p.reason, p.metadata.get("file").unwrap().as_str())).collect();
    files.sort_by_key(|(_, file)| *file);
    let damaged = Reason::CheckpointDamaged;
    assert_eq!(files, [(damaged, "a/first"), (damaged, "a/second"), (damaged, "large")]);
}

#[tokio::test]
async fn a_missing_or_changed_part_manifest_is_damage() {
    let (manifest, _) = part(1, 1, 1);
    let key = manifest.attempt_path().manifest();
    let place = whole();
    place.remove(&key);
    assert_eq!(broken(&place).await[0].reason, Reason::CheckpointDamaged);
    let mut other = manifest.clone();
    other.store_meta = "x".to_owned();
    place.write(&key, other.encode());
    assert_eq!(broken(&place).await[0].reason, Reason::CheckpointDamaged);
    // The same length, other content.
    let mut bytes = manifest.encode();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    place.write(&key, bytes);
    assert_eq!(broken(&place).await[0].reason, Reason::CheckpointDamaged);
}

#[tokio::test]
async fn a_part_that_is_not_what_the_commit_names_is_refused() {
    let place = whole();
    let good = commit(1, 1).parts[0].clone();
    assert!(fetch_part(&place.store, &good).await.is_ok());
    for change in [
        |p: &mut lockstep_protocol::commit::CommitPart| p.files += 1,
        |p: &mut lockstep_protocol::commit::CommitPart| p.bytes += 1,
        |p: &mut lockstep_protocol::commit::CommitPart| p.host_idx += 1,
        |p: &mut lockstep_protocol::commit::CommitPart| p.manifest_length += 1,
        |p: &mut lockstep_protocol::commit::CommitPart| p.manifest_length -= 1,
    ] {
        let mut part = good.clone();
        change(&mut part);
        assert_eq!(fetch_part(&place.store, &part).await.unwrap_err().reason, Reason::CheckpointDamaged);
    }
}

#[tokio::test]
async fn what_cannot_be_read_now_is_not_called_damaged() {
    for (operation, fault) in [
        (Operation::GetRange, Fault::Deny),
        (Operation::GetRange, Fault::FailBefore),
        (Operation::GetRange, Fault::Truncate),
        (Operation::Get, Fault::Deny),
        (Operation::Get, Fault::Truncate),
    ] {
        let place = whole();
        place.buckets.inject(FaultRule::new(fault).operation(operation).times(1));
        let result = verify_checkpoint(&place.store, &commit(1, 1), &|_| {}).await;
        assert!(result.is_err(), "{operation} {fault:?}: {result:?}");
    }
}

/// Commit (1, 2) in which host 0 inherits what round 1 wrote in full, and the two manifests of that host.
fn inheriting(place: &Place) -> (CommitDocument, PartManifest, PartManifest) {
    let (mut full, objects) = part(1, 1, 0);
    let empty = full.files[0].clone();
    full.files.extend(
        (0..100).map(|n| FileEntry { path: RelativePath::new(format!("empty/{n:03}")).unwrap(), ..empty.clone() }),
    );
    full.files.sort_by(|a, b| a.path.cmp(&b.path));
    let bytes = full.encode();
    let key = full.attempt_path().manifest();
    let name = Inherited { key: key.to_string(), length: bytes.len() as u64, blake3: Digest::of(&bytes) };
    let mut delta = PartManifest { files: full.files.clone(), objects: full.objects.clone(), ..part(1, 2, 0).0 };
    let removed = delta.files.iter().position(|file| file.path.as_str() == "a/first").unwrap();
    delta.files.remove(removed);
    delta.relate(&full, name);
    assert!(delta.delta.is_some());

    place.whole_commit(1, 2);
    for (key, content) in objects {
        place.write(&key, content);
    }
    place.write(&key, bytes);
    let bytes = delta.encode();
    place.write(&delta.attempt_path().manifest(), bytes.clone());
    let mut commit = commit(1, 2);
    commit.parts[0].manifest_length = bytes.len() as u64;
    commit.parts[0].manifest_blake3 = Digest::of(&bytes);
    commit.parts[0].files = delta.files.len() as u64;
    commit.parts[0].bytes = delta.bytes();
    (commit, full, delta)
}

#[tokio::test]
async fn a_part_that_inherits_is_read_whole_in_two_requests_and_verified_whole() {
    let place = Place::new();
    let (commit, full, delta) = inheriting(&place);
    assert_eq!(verify_checkpoint(&place.store, &commit, &|_| {}).await, Ok(vec![]));
    let (rule, one_more) = (FaultRule::new(Fault::Deny).operation(Operation::Get).skip(2).times(1), &place.store);
    place.buckets.inject(rule);
    assert_eq!(fetch_part(one_more, &commit.parts[0]).await.map(|part| part.files), Ok(delta.files));
    fetch_part(one_more, &commit.parts[0]).await.expect_err("the third request is refused");
    // A file that only the inherited manifest lists.
    place.write(&full.attempt_path().data(1), vec![0; 50_000]);
    let broken = verify_checkpoint(&place.store, &commit, &|_| {}).await.unwrap();
    assert_eq!(broken.iter().map(|p| p.metadata["file"].as_str()).collect::<Vec<_>>(), ["large"]);
}

#[tokio::test]
async fn a_missing_or_changed_inherited_manifest_is_damage_by_its_own_key() {
    let place = Place::new();
    let (commit, full, delta) = inheriting(&place);
    let key = full.attempt_path().manifest();
    let damage = async || {
        let problems = verify_checkpoint(&place.store, &commit, &|_| {}).await.unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].reason, Reason::CheckpointDamaged, "{problems:?}");
        assert_eq!(problems[0].metadata["key"], key.to_string());
        assert_eq!(problems[0].metadata["host_idx"], "0");
    };
    let mut bytes = full.encode();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    place.write(&key, bytes);
    damage().await;
    place.write(&key, delta.encode());
    damage().await;
    place.remove(&key);
    damage().await;
}

#[tokio::test]
async fn an_inherited_manifest_that_cannot_be_read_now_is_not_called_damaged() {
    let place = Place::new();
    let (commit, full, _) = inheriting(&place);
    let key = full.attempt_path().manifest().to_string();
    place.buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::Get).key(key).times(1));
    verify_checkpoint(&place.store, &commit, &|_| {}).await.expect_err("nobody knows");
}

#[tokio::test]
async fn a_reading_that_stops_and_goes_on_reads_every_byte_once_and_finds_the_same() {
    let place = whole();
    let (_, objects) = part(1, 1, 1);
    let mut flipped = objects[1].1.to_vec();
    flipped[7] ^= 1;
    place.write(&objects[1].0, Bytes::from(flipped));
    let whole_reading = broken(&place).await;
    let (mut from, mut steps, mut found, mut bytes) = (Position::default(), 0, Vec::new(), 0);
    loop {
        let read = verify_some(&place.store, &commit(1, 1), from, 1).await.unwrap();
        (steps, bytes) = (steps + 1, bytes + read.bytes);
        found.extend(read.broken);
        match read.next {
            Some(next) => {
                assert!(next > from, "it goes on: {next:?} after {from:?}");
                from = next;
            }
            None => break,
        }
    }
    assert!(steps > 2, "{steps} steps of one run each");
    assert!(bytes >= commit(1, 1).bytes());
    assert_eq!(found, whole_reading);
    let at_once = verify_some(&place.store, &commit(1, 1), Position::default(), u64::MAX).await.unwrap();
    assert_eq!((at_once.next, at_once.bytes, at_once.broken), (None, bytes, found));
}

#[tokio::test]
async fn the_structure_tells_what_is_missing_or_short_and_reads_no_file() {
    let (_, objects) = part(1, 1, 0);
    let place = whole();
    assert_eq!(verify_structure(&place.store, &commit(1, 1)).await, Ok(vec![]));
    let mut flipped = objects[0].1.to_vec();
    flipped[0] ^= 1;
    place.write(&objects[0].0, Bytes::from(flipped));
    assert_eq!(verify_structure(&place.store, &commit(1, 1)).await, Ok(vec![]), "content is not looked at");
    place.remove(&objects[0].0);
    place.write(&objects[1].0, objects[1].1.slice(..100));
    let problems = verify_structure(&place.store, &commit(1, 1)).await.unwrap();
    let mut files: Vec<_> = problems.iter().map(|problem| problem.metadata["file"].as_str()).collect();
    files.sort_unstable();
    assert_eq!(files, ["a/first", "a/second", "large"]);
}

#[tokio::test]
async fn a_mark_stands_whoever_wrote_it_and_makes_the_checkpoint_before_the_latest() {
    let place = Place::new();
    place.fence(1);
    place.whole_commit(1, 1);
    place.whole_commit(1, 2);
    let newest = commit_ref(1, 2);
    let mark = DamageMark::new(commit(1, 2).pipeline, newest, &[], chrono::DateTime::UNIX_EPOCH);
    assert_eq!(put_mark(&place.store, &mark).await, Ok(()));
    let later = DamageMark { broken: 9, ..mark.clone() };
    assert_eq!(put_mark(&place.store, &later).await, Ok(()), "another's mark is as good");
    assert_eq!(place.read(&mark.key()), Some(Bytes::from(mark.encode())), "create-only");
    assert_eq!(still_stands(&place.store, &newest).await, Ok(()));
    let before = latest(&place.store, Access::ReadOnly).await.known().unwrap().map(|found| found.commit);
    assert_eq!(before, Some(commit_ref(1, 1)));
    place.retire(1, 2, 1);
    assert_eq!(still_stands(&place.store, &newest).await.unwrap_err().reason, Reason::CheckpointNotFound);
}

#[tokio::test]
async fn a_commit_is_retired_if_its_tombstone_counts() {
    let place = Place::new();
    place.fence(1);
    place.whole_commit(1, 1);
    place.whole_commit(1, 2);
    let retired = async |s: u64| is_retired(&place.store, &commit_ref(1, s)).await;
    assert_eq!(retired(1).await, Ok(false));
    place.retire(1, 1, 1);
    assert_eq!((retired(1).await, retired(2).await), (Ok(true), Ok(false)));
    // Taken over: what the base lists counts still, what the fenced owner wrote late does not, and before the base stands nobody knows.
    place.fence(2);
    assert_eq!(retired(1).await.unwrap_err().reason, Reason::TakeOverInProgress);
    finish_base(&place.store, generation(2)).await.unwrap();
    place.retire(1, 2, 1);
    assert_eq!((retired(1).await, retired(2).await), (Ok(true), Ok(false)));
    let newest = latest(&place.store, Access::ReadOnly).await.known().unwrap().map(|found| found.commit);
    assert_eq!(newest, Some(commit_ref(1, 2)), "as for whoever looks for one");
    assert_eq!(still_stands(&place.store, &commit_ref(1, 2)).await, Ok(()), "so what is broken of it is damage");
    place.buckets.inject(FaultRule::new(Fault::Deny).key("retired/"));
    assert_eq!(retired(1).await.unwrap_err().reason, Reason::StoreDenied);
}
