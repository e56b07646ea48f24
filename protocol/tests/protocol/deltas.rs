//! Parts that inherit from the full manifest of an earlier round.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_protocol::{
    digest::Digest,
    id::{Generation, Incarnation, RoundId},
    key::Key,
    manifest::{Delta, FileEntry, Inherited, ObjectEntry, PartDocument, PartManifest, RelativePath, delta::worth_it},
    problem::{Problem, Reason},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::sample;

/// A part of the n-th round, without files.
fn empty_part(round: u128) -> PartManifest {
    PartManifest {
        round: RoundId::new(sample::uuid(0x3000 + round)),
        objects: Vec::new(),
        files: Vec::new(),
        ..sample::part()
    }
}

/// What files of a part are: by path, content as (object key, offset, size).
type Files = BTreeMap<String, (String, u64, u64)>;

fn build(round: u128, files: &Files) -> PartManifest {
    let mut part = empty_part(round);
    let mut index: BTreeMap<&str, u32> = BTreeMap::new();
    for (path, (key, offset, size)) in files {
        let object = (*size > 0).then(|| {
            *index.entry(key).or_insert_with(|| {
                part.objects.push(ObjectEntry { key: key.clone(), size: 1 << 30 });
                part.objects.len() as u32 - 1
            })
        });
        part.files.push(FileEntry {
            path: RelativePath::new(path).unwrap(),
            size: *size,
            blake3: Digest::of(format!("{key} {offset} {size}").as_bytes()),
            head: (*size > 1 << 20).then(|| Digest::of(path.as_bytes())),
            object,
            offset: if *size > 0 { *offset } else { 0 },
            length: *size,
        });
    }
    part
}

fn named(part: &PartManifest) -> (String, Vec<u8>, Inherited) {
    let (key, bytes) = (part.attempt_path().manifest().to_string(), part.encode());
    let name = Inherited { key: key.clone(), length: bytes.len() as u64, blake3: Digest::of(&bytes) };
    (key, bytes, name)
}

/// What a part means: its files with what they lie in, whatever the order of objects.
fn meaning(part: &PartManifest) -> Vec<(FileEntry, Option<ObjectEntry>)> {
    let entry = |file: &FileEntry| (FileEntry { object: None, ..file.clone() }, part.object_of(file).cloned());
    part.files.iter().map(entry).collect()
}

fn sample_files(count: usize) -> Files {
    let key = |n: u32| sample::path(1, 3, 1).data(n).to_string();
    (0..count).map(|n| (format!("d{}/f{n:05}", n % 7), (key(n as u32 / 50), n as u64 * 10, 10))).collect()
}

/// A full part of round 0 and a delta of round 1 in which one file is changed, one added, one removed.
fn pair() -> (PartManifest, PartManifest) {
    let mut files = sample_files(100);
    let full = build(0, &files);
    let own = AttemptOf(1).data(0);
    files.insert("d0/f00007".to_owned(), (own.clone(), 0, 11));
    files.insert("new/file".to_owned(), (own, 11, 12));
    files.remove("d1/f00008").unwrap();
    let mut delta = build(1, &files);
    delta.relate(&full, named(&full).2);
    assert_eq!(delta.delta.as_ref().map(Delta::entries), Some((2, 1)));
    (full, delta)
}

struct AttemptOf(u128);

impl AttemptOf {
    fn data(&self, number: u32) -> String {
        empty_part(self.0).attempt_path().data(number).to_string()
    }
}

#[test]
fn a_part_that_differs_little_is_written_short_and_read_whole() {
    let (full, delta) = pair();
    let (key, bytes, _) = named(&delta);
    assert!(bytes.len() * 10 < full.encode().len(), "{} bytes", bytes.len());
    let document = PartDocument::parse(&key, &bytes).unwrap();
    assert_eq!(document.inherits(), Some(&named(&full).2));
    let back = document.resolve(|_| Ok(full.encode())).unwrap();
    assert_eq!(meaning(&back), meaning(&delta));
    assert_eq!(back.delta, delta.delta);
    assert_eq!(back.encode(), bytes, "one value, one spelling");
    assert_eq!(back.bytes(), delta.bytes());
    PartManifest::parse(&key, &bytes).expect_err("a delta is not the whole part");
}

#[test]
fn a_delta_of_a_delta_inherits_the_full_manifest_and_needs_nothing_else() {
    let (full, first) = pair();
    let full_name = named(&full).2;
    // Put back what the first one removed and changed, remove what it added, change another one.
    let mut files = sample_files(100);
    files.insert("d2/f00009".to_owned(), (AttemptOf(2).data(0), 0, 5));
    let mut second = build(2, &files);
    second.relate(&first, named(&first).2);
    let delta = second.delta.as_ref().unwrap();
    assert_eq!(delta.inherits(), &full_name);
    let (key, bytes, _) = named(&second);
    let back = PartDocument::parse(&key, &bytes).unwrap().resolve(|_| Ok(full.encode())).unwrap();
    assert_eq!(meaning(&back), meaning(&second));
    assert_eq!(back.full_form(named(&second).2), full_name);
}

#[test]
fn objects_that_no_file_uses_any_more_are_not_in_the_whole_part() {
    let mut files = sample_files(100);
    let full = build(0, &files);
    assert_eq!(full.objects.len(), 2);
    // The second object holds the files from 50 on; 25 of the 100 may change at most.
    for n in 75..100 {
        files.remove(&format!("d{}/f{n:05}", n % 7)).unwrap();
    }
    for (_, (key, offset, _)) in files.iter_mut().filter(|(path, _)| path.as_str().ends_with("f00074")) {
        (*key, *offset) = (AttemptOf(1).data(3), 1);
    }
    let mut part = build(1, &files);
    part.relate(&full, named(&full).2);
    assert_eq!(part.delta, None, "26 of 75 differ");
    let document = json!({"inherits": named(&full).2, "objects": [], "files": [],
        "removed": (50..100).map(|n| format!("d{}/f{n:05}", n % 7)).collect::<Vec<_>>()});
    let mut value: Value = serde_json::from_slice(&empty_part(1).encode()).unwrap();
    value.as_object_mut().unwrap().extend(document.as_object().unwrap().clone());
    let key = named(&empty_part(1)).0;
    let back = PartDocument::parse(&key, &serde_json::to_vec(&value).unwrap()).unwrap();
    let back = back.resolve(|_| Ok(full.encode())).unwrap();
    assert_eq!((back.files.len(), &back.objects[..]), (50, &full.objects[..1]));
}

#[test]
fn a_part_is_written_in_full_where_a_delta_would_not_pay_or_not_be_allowed() {
    assert!(worth_it(16, 64) && !worth_it(17, 64) && !worth_it(0, 63));
    let full = build(0, &sample_files(100));
    let name = named(&full).2;
    let related = |mut part: PartManifest| {
        part.relate(&full, name.clone());
        part.delta.is_some()
    };
    assert!(related(build(1, &sample_files(100))), "nothing changed");
    assert!(!related(build(1, &sample_files(20))), "80 of 100 are gone");
    assert!(!related(build(0, &sample_files(100))), "the same round");
    assert!(!related(PartManifest { slot: sample::layout(4).slot(1).unwrap(), ..build(1, &sample_files(100)) }));
    assert!(!related(PartManifest { slot: sample::layout(3).slot(2).unwrap(), ..build(1, &sample_files(100)) }));
}

/// Parses and resolves the sample's delta after `edit` changed its JSON.
fn edited(edit: impl FnOnce(&mut Value)) -> Result<PartManifest, Problem> {
    let (full, delta) = pair();
    let (key, bytes, _) = named(&delta);
    let mut value: Value = serde_json::from_slice(&bytes).unwrap();
    edit(&mut value);
    PartDocument::parse(&key, &serde_json::to_vec(&value).unwrap())?.resolve(|_| Ok(full.encode()))
}

#[test]
fn hostile_deltas_are_refused_by_name() {
    type Edit = fn(&mut Value);
    let cases: Vec<(&str, Edit)> = vec![
        ("no part manifest of the same host", |v| {
            v["inherits"]["key"] = json!(sample::path(2, 3, 1).manifest().to_string());
        }),
        ("no part manifest of the same host", |v| {
            v["inherits"]["key"] = json!(sample::path(1, 3, 1).data(1).to_string());
        }),
        ("no part manifest of the same host", |v| v["inherits"]["key"] = json!("../elsewhere/part.json")),
        ("no earlier round", |v| v["inherits"]["key"] = json!(named(&empty_part(1)).0)),
        ("no earlier round", |v| {
            let later = PartManifest { generation: Generation::new(2).unwrap(), ..empty_part(0) };
            v["inherits"]["key"] = json!(named(&later).0);
        }),
        ("greatest allowed", |v| v["inherits"]["length"] = json!(1_u64 << 40)),
        ("what inherits it says", |v| v["inherits"]["length"] = json!(5)),
        ("what inherits it says", |v| v["inherits"]["blake3"] = json!(Digest::of(b"other"))),
        ("not valid", |v| v["inherits"]["surprise"] = json!(1)),
        ("names an attempt", |v| {
            let other = PartManifest { incarnation: Incarnation::new(sample::uuid(77)), ..empty_part(0) };
            v["inherits"]["key"] = json!(named(&other).0);
        }),
        ("does not have", |v| v["removed"] = json!(["nobody"])),
        ("does not have", |v| v["removed"] = json!(["zzz"])),
        ("does not have", |v| v["removed"] = json!(["new/file"])),
        ("both lists and removes", |v| v["removed"] = json!(["d0/f00007"])),
        ("twice", |v| v["removed"] = json!(["d1/f00008", "d1/f00008"])),
        ("a component ..", |v| v["removed"] = json!(["../x"])),
        ("twice", |v| v["files"][1]["path"] = v["files"][0]["path"].clone()),
        ("a file and a folder", |v| v["files"][1]["path"] = json!("d1")),
        ("a file and a folder", |v| v["files"][1]["path"] = json!("d1/f00001/x")),
        ("names object 7", |v| v["files"][0]["object"] = json!(7)),
        ("the manifest that it inherits says", |v| {
            v["objects"][0] = json!({"key": sample::path(1, 3, 1).data(0).to_string(), "size": 100});
        }),
        ("64-bit", |v| {
            v["objects"][0]["size"] = json!(i64::MAX);
            v["files"][0]["offset"] = json!(0);
            v["files"][0]["size"] = json!(i64::MAX);
            v["files"][0]["length"] = json!(i64::MAX);
        }),
    ];
    for (number, (expected, edit)) in cases.into_iter().enumerate() {
        let problem = edited(edit).expect_err(expected);
        assert_eq!(problem.reason, Reason::ManifestInvalid, "{number}: {problem}");
        assert!(problem.message.contains(expected), "{number}: expected {expected:?} in {problem}");
    }
    edited(|_| ()).expect("the sample itself is good");
}

#[test]
fn a_delta_that_inherits_a_delta_is_refused() {
    let (_, first) = pair();
    let mut second = build(2, &sample_files(100));
    let full = build(0, &sample_files(100));
    second.relate(&full, named(&full).2);
    let (key, bytes, _) = named(&second);
    let mut value: Value = serde_json::from_slice(&bytes).unwrap();
    value["inherits"] = json!(named(&first).2);
    let document = PartDocument::parse(&key, &serde_json::to_vec(&value).unwrap()).unwrap();
    let problem = document.resolve(|_| Ok(first.encode())).expect_err("depth 2");
    assert!(problem.message.contains("only a full manifest"), "{problem}");
}

#[test]
fn a_part_may_inherit_only_what_the_part_of_its_base_is_or_inherits() {
    let (full, delta) = pair();
    let name = named(&full).2;
    let objects: BTreeMap<String, u64> = full.objects.iter().map(|o| (o.key.clone(), o.size)).collect();
    delta.check_closure(|key| objects.get(key).copied(), Some(&name)).expect("the base's");
    delta.check_closure(|key| objects.get(key).copied(), None).expect_err("no base");
    delta
        .check_closure(|key| objects.get(key).copied(), Some(&Inherited { blake3: Digest::of(b"x"), ..name.clone() }))
        .expect_err("digest");
    let problem = delta.check_closure(|_| None, Some(&name)).expect_err("objects that the base lost");
    assert!(problem.message.contains(&full.objects[0].key), "{problem}");
}

#[derive(Clone, Debug)]
enum Edit {
    Change(usize, u64),
    Add(usize, u64),
    Remove(usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        (any::<usize>(), 0_u64..3 << 20).prop_map(|(at, size)| Edit::Change(at, size)),
        (0_usize..300, 0_u64..3 << 20).prop_map(|(name, size)| Edit::Add(name, size)),
        any::<usize>().prop_map(Edit::Remove),
    ];
    prop::collection::vec(edit, 0..30)
}

fn apply(files: &mut Files, round: u128, edits: &[Edit]) {
    let mut offset = 0;
    for edit in edits {
        let path = |at: usize| files.keys().nth(at % files.len().max(1)).cloned();
        match edit {
            Edit::Change(at, size) => {
                if let Some(path) = path(*at) {
                    files.insert(path, (AttemptOf(round).data(0), offset, *size));
                    offset += size;
                }
            }
            Edit::Add(name, size) => {
                files.insert(format!("d{}/n{name}", name % 9), (AttemptOf(round).data(1), offset, *size));
                offset += size;
            }
            Edit::Remove(at) => {
                if let Some(path) = path(*at) {
                    files.remove(&path);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_read_of_any_chain_of_rounds_is_what_was_written(rounds in prop::collection::vec(edits(), 1..6)) {
        let mut files = sample_files(120);
        let mut base = build(0, &files);
        let mut documents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let (key, bytes, mut base_name) = named(&base);
        documents.insert(key, bytes);
        for (round, edits) in (1_u128..).zip(&rounds) {
            apply(&mut files, round, edits);
            let mut part = build(round, &files);
            part.relate(&base, base_name);
            let (key, bytes, name) = named(&part);
            let back = PartDocument::parse(&key, &bytes).unwrap().resolve(|full| Ok(&documents[&full.key])).unwrap();
            prop_assert_eq!(meaning(&back), meaning(&part));
            prop_assert_eq!(&back.delta, &part.delta);
            prop_assert_eq!(back.encode(), bytes.clone());
            let used: BTreeSet<_> = back.files.iter().filter_map(|file| file.object).collect();
            prop_assert_eq!(used.len(), back.objects.len());
            if let Some((listed, removed)) = part.delta.as_ref().map(Delta::entries) {
                prop_assert!(worth_it(listed + removed, part.files.len()));
                let inherits = part.delta.as_ref().map(Delta::inherits).unwrap();
                prop_assert!(PartDocument::parse(&inherits.key, &documents[&inherits.key]).unwrap().inherits().is_none());
            }
            documents.insert(key, bytes);
            // The next round knows of its base only what was read back.
            (base, base_name) = (back, name);
        }
    }

    #[test]
    fn damaged_deltas_never_panic_and_stay_the_same_attempt(at in any::<usize>(), byte in any::<u8>(), cut in any::<bool>()) {
        let (full, delta) = pair();
        let (key, mut bytes, _) = named(&delta);
        let at = at % bytes.len();
        if cut { bytes.truncate(at); } else { bytes[at] = byte; }
        if let Ok(part) = PartDocument::parse(&key, &bytes).and_then(|document| document.resolve(|_| Ok(full.encode()))) {
            prop_assert_eq!(Key::PartManifest(part.attempt_path()).to_string(), key);
            prop_assert!(part.files.is_sorted_by(|a, b| a.path < b.path));
            for file in &part.files {
                prop_assert!(part.object_of(file).is_some() == (file.size > 0));
            }
        }
    }
}
