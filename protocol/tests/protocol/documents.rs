use lockstep_protocol::{
    commit::{AbortRecord, DecisionObject},
    digest::Digest,
    fence::{Counts, Fence, FenceBase, LocationFormat, Successor, Writer, counts, newest_of},
    id::{Generation, RoundId, Seq},
    key::{AttemptPath, Key},
    manifest::{PartManifest, RelativePath},
    problem::Reason,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::sample;

fn part_key() -> String {
    sample::part().attempt_path().manifest().to_string()
}

/// Parses the sample part after `edit` changed its JSON.
fn edited_part(edit: impl FnOnce(&mut Value)) -> Result<PartManifest, lockstep_protocol::problem::Problem> {
    let mut value: Value = serde_json::from_slice(&sample::part().encode()).unwrap();
    edit(&mut value);
    PartManifest::parse(&part_key(), &serde_json::to_vec(&value).unwrap())
}

#[test]
fn a_part_manifest_is_read_as_it_was_written() {
    let part = sample::part();
    assert_eq!(PartManifest::parse(&part_key(), &part.encode()).unwrap(), part);
    assert_eq!(part.bytes(), 10);
    assert_eq!(part.object_of(&part.files[0]), Some(&part.objects[0]));
}

#[test]
fn hostile_part_manifests_are_refused_by_name() {
    type Edit = fn(&mut Value);
    let cases: Vec<(&str, Edit)> = vec![
        ("a component ..", |v| v["files"][0]["path"] = json!("../../etc/passwd")),
        ("is absolute", |v| v["files"][0]["path"] = json!("/etc/passwd")),
        ("a component ..", |v| v["files"][0]["path"] = json!("a/..")),
        ("empty component", |v| v["files"][0]["path"] = json!("a//b")),
        ("is empty", |v| v["files"][0]["path"] = json!("")),
        ("NUL", |v| v["files"][0]["path"] = json!("a\u{0}b")),
        ("255", |v| v["files"][0]["path"] = json!("x".repeat(256))),
        ("twice", |v| v["files"][1]["path"] = json!("a/b")),
        ("a file and a folder", |v| v["files"][1]["path"] = json!("a")),
        ("names object 7", |v| v["files"][0]["object"] = json!(7)),
        ("names no object", |v| v["files"][0]["object"] = json!(null)),
        ("is empty but names", |v| v["files"][1]["object"] = json!(0)),
        ("reaches to", |v| v["files"][0]["offset"] = json!(21)),
        ("reaches to", |v| v["files"][0]["offset"] = json!(u64::MAX)),
        ("length", |v| v["files"][0]["length"] = json!(9)),
        ("has a head", |v| v["files"][0]["head"] = json!(Digest::of(b"b"))),
        ("inherits nothing", |v| v["removed"] = json!(["a/c"])),
        ("no data object's key", |v| {
            v["objects"][0]["key"] = json!("commits/00000000000000000001-00000000000000000001.json")
        }),
        ("no data object's key", |v| v["objects"][0]["key"] = json!("../other-prefix/data-0")),
        ("format 2", |v| v["format"] = json!(2)),
        ("not valid", |v| v["kind"] = json!("commit")),
        ("not valid", |v| v["surprise"] = json!(true)),
        ("not valid", |v| v["attempt"] = json!(0)),
        ("names an attempt", |v| v["attempt"] = json!(2)),
        ("names an attempt", |v| v["host_idx"] = json!(2)),
        ("is not below n_hosts", |v| v["host_idx"] = json!(3)),
        ("not valid", |v| v["step"] = json!(u64::MAX)),
        ("not valid", |v| v["files"][0]["blake3"] = json!("ABC")),
    ];
    for (expected, edit) in cases {
        let problem = edited_part(edit).expect_err(expected);
        assert_eq!(problem.reason, Reason::ManifestInvalid, "{problem}");
        assert!(problem.message.contains(expected), "expected {expected:?} in {problem}");
        assert_eq!(problem.metadata["key"], part_key(), "{problem}");
    }
    edited_part(|_| ()).expect("the sample itself is good");
}

#[test]
fn a_part_may_use_only_its_own_objects_and_those_of_its_base() {
    let mut part = sample::part();
    part.check_closure(|_| None, None).expect("own objects");
    let foreign = sample::path(2, 3, 9).data(4).to_string();
    part.objects[0].key.clone_from(&foreign);
    let problem = part.check_closure(|_| None, None).expect_err("not in the base");
    assert!(problem.message.contains(&foreign), "{problem}");
    part.check_closure(|key| (key == foreign).then_some(30), None).expect("the base reaches it");
    part.check_closure(|key| (key == foreign).then_some(31), None).expect_err("another size");
}

#[test]
fn a_resumed_attempt_may_use_what_the_same_process_wrote_for_the_same_round() {
    let own = sample::path(1, 3, 3);
    let mut part = sample::part();
    part.attempt = own.attempt;
    let mut uses = |path: AttemptPath| {
        part.objects[0].key = path.data(0).to_string();
        part.check_closure(|_| None, None)
    };
    uses(own).expect("its own");
    uses(sample::path(1, 3, 1)).expect("an earlier attempt's");
    uses(sample::path(1, 3, 4)).expect_err("a later attempt's");
    uses(sample::path(2, 3, 1)).expect_err("another host's");
    uses(AttemptPath { incarnation: sample::incarnation(9), ..own }).expect_err("another incarnation's");
    uses(AttemptPath { round: RoundId::new(sample::uuid(0x3001)), ..own }).expect_err("another round's");
    uses(AttemptPath { generation: Generation::new(2).unwrap(), ..own }).expect_err("another generation's");
}

#[test]
fn a_commit_is_read_as_it_was_written_and_keeps_all_64_bits() {
    for hosts in [0, 1, 3] {
        let document = sample::commit(hosts);
        let bytes = document.encode();
        let key = document.key().to_string();
        match DecisionObject::parse(&key, &bytes).unwrap() {
            DecisionObject::Commit(back) => {
                assert_eq!(*back, document);
                assert_eq!(back.encode(), bytes, "one value, one spelling");
                assert_eq!(back.processed_records(), Some(10 * u64::from(hosts.max(1))));
            }
            DecisionObject::Abort(record) => panic!("read as {record:?}"),
        }
    }
}

#[test]
fn edited_commits_are_refused() {
    type Edit = fn(&mut Value);
    let cases: Vec<(&str, Edit)> = vec![
        ("does not name each", |v| {
            v["parts"].as_array_mut().unwrap().pop();
        }),
        ("does not name each", |v| v["parts"][1]["host_idx"] = json!(0)),
        ("part manifest", |v| v["parts"][0]["manifest"] = json!("head.json")),
        ("part manifest", |v| v["parts"][0]["manifest"] = json!(sample::path(1, 3, 1).manifest().to_string())),
        ("root digest", |v| v["parts"][0]["manifest_blake3"] = json!(Digest::of(b"other"))),
        ("belongs at", |v| v["seq"] = json!(2)),
        ("not valid", |v| v["surprise"] = json!(1)),
        ("kind", |v| v["kind"] = json!("fence")),
        ("totals", |v| v["parts"][0]["bytes"] = json!(u64::MAX)),
    ];
    let document = sample::commit(3);
    let key = document.key().to_string();
    for (expected, edit) in cases {
        let mut value: Value = serde_json::from_slice(&document.encode()).unwrap();
        edit(&mut value);
        let problem = DecisionObject::parse(&key, &serde_json::to_vec(&value).unwrap()).expect_err(expected);
        assert_eq!(problem.reason, Reason::ManifestInvalid);
        assert!(problem.message.contains(expected), "expected {expected:?} in {problem}");
    }
}

#[test]
fn an_abort_record_is_told_from_a_commit_at_the_same_key() {
    let document = sample::commit(3);
    let record = AbortRecord {
        pipeline: document.pipeline,
        generation: document.generation,
        seq: document.seq,
        round: document.round,
        aborted_by: "ops".to_owned(),
        cause: "wrong data".to_owned(),
        aborted_at: sample::time(1),
    };
    assert_eq!(record.key(), document.key());
    let parsed = DecisionObject::parse(&record.key().to_string(), &record.encode()).unwrap();
    assert_eq!(parsed, DecisionObject::Abort(record));
}

#[test]
fn fences_and_bases_are_read_as_they_were_written_and_only_at_their_own_key() {
    let document = sample::commit(3);
    let fence = Fence {
        generation: Generation::new(2).unwrap(),
        pipeline: document.pipeline,
        pipeline_name: document.pipeline_name.clone(),
        writer: Writer::Direct,
        take_over: sample::uuid(9),
        created_at: sample::time(0),
        released: false,
    };
    let key = Key::Fence(fence.generation).to_string();
    assert_eq!(Fence::parse(&key, &fence.encode()).unwrap(), fence);
    Fence::parse(&Key::Fence(Generation::FIRST).to_string(), &fence.encode()).expect_err("another generation's key");
    let newest = lockstep_protocol::commit::CommitRef {
        generation: Generation::FIRST,
        seq: Seq::new(4).unwrap(),
        round: document.round,
        digest: Digest::of(b"x"),
    };
    let base = FenceBase { generation: Generation::new(2).unwrap(), newest: Some(newest), tombstones: Vec::new() };
    let key = Key::FenceBase(base.generation).to_string();
    assert_eq!(FenceBase::parse(&key, &base.encode()).unwrap(), base);
    let same_generation = FenceBase {
        newest: Some(lockstep_protocol::commit::CommitRef { generation: Generation::new(2).unwrap(), ..newest }),
        ..base.clone()
    };
    FenceBase::parse(&key, &same_generation.encode()).expect_err("a base names something older");

    // F1: exactly fence g+1 and its base decide, by seq.
    let seq = |n| Seq::new(n).unwrap();
    let successor = Successor::Base(base.clone());
    assert_eq!(counts(Generation::FIRST, seq(4), &successor), Counts::Yes);
    assert_eq!(counts(Generation::FIRST, seq(5), &successor), Counts::No);
    assert_eq!(counts(Generation::FIRST, seq(5), &Successor::Absent), Counts::Yes);
    assert_eq!(counts(Generation::FIRST, seq(5), &Successor::FenceOnly), Counts::Undecided);
    assert!(!base.includes(Generation::NONE, seq(1)), "a base speaks of the generation before its own only");
    assert_eq!(newest_of(Generation::new(2).unwrap(), Some(&base), []), Some(newest));
}

#[test]
fn a_newer_location_format_and_unknown_features_are_refused() {
    LocationFormat::parse("lockstep.json", &LocationFormat::current().encode()).unwrap();
    for bad in [
        json!({"format": 2, "kind": "location", "features": []}),
        json!({"format": 1, "kind": "location", "features": ["packs"]}),
    ] {
        let problem = LocationFormat::parse("lockstep.json", &serde_json::to_vec(&bad).unwrap()).expect_err("newer");
        assert!(problem.message.contains("upgrade"), "{problem}");
    }
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic_and_never_change_the_meaning(at in 0_usize..2000, byte in any::<u8>(), cut in any::<bool>()) {
        let document = sample::commit(3);
        let key = document.key().to_string();
        let mut bytes = document.encode();
        let at = at % bytes.len();
        if cut { bytes.truncate(at); } else { bytes[at] = byte; }
        let _ = DecisionObject::parse(&key, &bytes);
        let mut bytes = sample::part().encode();
        let at = at % bytes.len();
        if cut { bytes.truncate(at); } else { bytes[at] = byte; }
        if let Ok(part) = PartManifest::parse(&part_key(), &bytes) {
            prop_assert_eq!(part.attempt_path(), sample::part().attempt_path());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(PartManifest::parse(&part_key(), &bytes).is_err());
        prop_assert!(DecisionObject::parse("commits/x", &bytes).is_err());
        prop_assert!(Fence::parse("fences/x", &bytes).is_err());
    }

    #[test]
    fn accepted_paths_stay_below_their_root(path in "[a-z./ ü]{0,40}") {
        if let Ok(path) = RelativePath::new(path.clone()) {
            let joined = std::path::Path::new("/root").join(path.as_str());
            prop_assert!(joined.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
            prop_assert!(joined.starts_with("/root"));
        }
    }
}

#[test]
fn names_with_spaces_utf8_and_dots_are_welcome() {
    for good in ["a b", "größe.dat", "..hidden", "a..b", "...", ".x/y", "-", "~", "con\\fig"] {
        RelativePath::new(good).unwrap_or_else(|problem| panic!("{good:?}: {problem}"));
    }
}
