//! What is parsed from strangers' bytes, and what must hold of whatever parses.

use std::{
    fmt::Debug,
    path::{Component, Path},
    str::FromStr,
    sync::LazyLock,
};

use lockstep_protocol::{
    commit::{AbortRecord, DecisionObject},
    digest::Digest,
    fence::{Fence, FenceBase, LocationFormat, TombstoneRef, Writer},
    id::{Attempt, DatabaseId, Fingerprint, Generation, PipelineId, PipelineName, RoundId, Seq},
    key::Key,
    location::Location,
    manifest::{FileEntry, Inherited, ObjectEntry, PartDocument, PartManifest, RelativePath},
    order::PipelineSelector,
    pin::Pin,
    problem::Problem,
    spec::PipelineSpec,
    tombstone::Tombstone,
};
use serde_json::{Value, json};

use crate::sample;

/// Something that is fuzzed.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// To begin with.
    pub(crate) good: fn() -> Vec<Vec<u8>>,
    /// Whether it parsed; an error says which promise was broken.
    pub(crate) check: fn(&[u8]) -> Result<bool, String>,
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "part manifest", good: parts, check: part },
    Target { name: "decision", good: decisions, check: decision },
    Target { name: "fence, base, tombstone, pin, format", good: small_documents, check: small_document },
    Target { name: "key", good: keys, check: key },
    Target { name: "file name", good: paths, check: path },
    Target { name: "pipeline spec", good: specs, check: spec },
    Target { name: "words", good: words, check: word },
];

fn same<T: PartialEq + Debug>(what: &str, first: &T, second: Result<T, Problem>) -> Result<bool, String> {
    match second {
        Ok(second) if second == *first => Ok(true),
        other => Err(format!("{what}: {first:?} was written and read as {other:?}")),
    }
}

/// Parses, writes and parses again.
fn again<T: PartialEq + Debug>(
    what: &str,
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, Problem>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Result<bool, String> {
    let Ok(first) = parse(bytes) else { return Ok(false) };
    same(what, &first, parse(&encode(&first)))
}

// --- part manifests

/// A full part that others inherit: 80 files in 2 objects.
static FULL: LazyLock<(PartManifest, Vec<u8>, Inherited)> = LazyLock::new(|| {
    let mut part = sample::part();
    part.round = RoundId::new(sample::uuid(0x9000));
    let path = part.attempt_path();
    part.objects = vec![
        ObjectEntry { key: path.data(0).to_string(), size: 800 },
        ObjectEntry { key: path.data(1).to_string(), size: 10 },
    ];
    part.files = (0..80_u64)
        .map(|n| FileEntry {
            path: RelativePath::new(format!("d{}/f{n:03}", n % 7)).unwrap(),
            size: 10,
            blake3: Digest::of(&n.to_le_bytes()),
            head: None,
            object: Some(u32::from(n == 79)),
            offset: if n == 79 { 0 } else { 10 * n },
            length: 10,
        })
        .collect();
    part.files.sort_by(|a, b| a.path.cmp(&b.path));
    let bytes = part.encode();
    let key = path.manifest().to_string();
    let inherited = Inherited { key, length: bytes.len() as u64, blake3: Digest::of(&bytes) };
    (part, bytes, inherited)
});

fn delta() -> PartManifest {
    let (full, _, inherited) = &*FULL;
    let mut part = PartManifest { files: full.files.clone(), objects: full.objects.clone(), ..sample::part() };
    let own = part.attempt_path().data(0).to_string();
    part.files.remove(3);
    part.objects.push(ObjectEntry { key: own, size: 10 });
    part.files[5].blake3 = Digest::of(b"changed");
    (part.files[5].object, part.files[5].offset) = (Some(2), 0);
    part.relate(full, inherited.clone());
    part
}

fn parts() -> Vec<Vec<u8>> {
    vec![sample::part().encode(), FULL.1.clone(), delta().encode()]
}

/// The key that the bytes themselves name, so that this check doesn't hide all others; else the sample's.
fn part_key(bytes: &[u8]) -> String {
    let sample = sample::part();
    let round = serde_json::from_slice::<Value>(bytes).ok();
    let round = round.and_then(|value| RoundId::from_str(value.get("round")?.as_str()?).ok());
    let part = PartManifest { round: round.unwrap_or(sample.round), ..sample };
    part.attempt_path().manifest().to_string()
}

pub(crate) fn part(bytes: &[u8]) -> Result<bool, String> {
    let key = part_key(bytes);
    let parse = |bytes: &[u8]| {
        PartDocument::parse(&key, bytes)?.resolve(|inherits| match *inherits == FULL.2 {
            true => Ok(FULL.1.clone()),
            false => Err(Problem::new(lockstep_protocol::problem::Reason::StoreNotFound, "not there")),
        })
    };
    let Ok(part) = parse(bytes) else { return Ok(false) };
    for file in &part.files {
        stays_inside(file.path.as_str())?;
        let object = part.object_of(file);
        if object.is_none() != (file.size == 0) || object.is_some_and(|object| file.offset + file.length > object.size)
        {
            return Err(format!("{file:?} lies outside of {object:?}"));
        }
    }
    for object in &part.objects {
        stays_inside(&object.key)?;
    }
    let folders = part.files.iter().flat_map(|file| file.path.ancestors());
    let names: std::collections::BTreeSet<&str> = part.files.iter().map(|file| file.path.as_str()).collect();
    if names.len() != part.files.len() || folders.into_iter().any(|folder| names.contains(folder)) {
        return Err("two files at one path, or a file where a folder is".to_owned());
    }
    same("part", &part, parse(&part.encode()))
}

fn stays_inside(path: &str) -> Result<(), String> {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let plain = !path.is_empty() && !path.contains('\0') && !path.ends_with('/') && !path.contains("//");
    if inside && plain { Ok(()) } else { Err(format!("{path:?} leaves its folder")) }
}

// --- decisions

fn commit_key() -> String {
    Key::Commit(Generation::FIRST, Seq::FIRST).to_string()
}

fn abort() -> AbortRecord {
    AbortRecord {
        pipeline: PipelineId::new(sample::uuid(1)),
        generation: Generation::FIRST,
        seq: Seq::FIRST,
        round: sample::round_id(),
        aborted_by: "alice".to_owned(),
        cause: "a change of mind".to_owned(),
        aborted_at: sample::time(1),
    }
}

fn decisions() -> Vec<Vec<u8>> {
    let mut rich = sample::commit(2);
    rich.labels.insert("team".to_owned(), "orders".to_owned());
    rich.partitions.push(json!({"host": 0, "from": [1, 2]}));
    vec![sample::commit(0).encode(), sample::commit(3).encode(), rich.encode(), abort().encode()]
}

fn decision(bytes: &[u8]) -> Result<bool, String> {
    let encode = |decision: &DecisionObject| match decision {
        DecisionObject::Commit(document) => document.encode(),
        DecisionObject::Abort(record) => record.encode(),
    };
    if let Ok(DecisionObject::Commit(document)) = DecisionObject::parse(&commit_key(), bytes) {
        // Sums that a reader may ask for at any time.
        let _ = (document.bytes(), document.files(), document.bytes_uploaded(), document.processed_records());
        if document.parts.len() != document.layout.len() as usize {
            return Err(format!("{} parts of {}", document.parts.len(), document.layout));
        }
        for part in &document.parts {
            stays_inside(&part.manifest)?;
        }
    }
    again("decision", bytes, |bytes| DecisionObject::parse(&commit_key(), bytes), encode)
}

// --- fences and what belongs to them

const SECOND: Generation = Generation::FIRST.next();

fn fence() -> Fence {
    Fence {
        generation: SECOND,
        pipeline: PipelineId::new(sample::uuid(1)),
        pipeline_name: PipelineName::new("orders").unwrap(),
        writer: Writer::Database {
            database: DatabaseId::new(sample::uuid(7)),
            system_identifier: "7_433".to_owned(),
            timeline: 1,
        },
        take_over: sample::uuid(8),
        created_at: sample::time(0),
        released: false,
    }
}

fn reference() -> lockstep_protocol::commit::CommitRef {
    lockstep_protocol::commit::CommitRef {
        generation: Generation::FIRST,
        seq: Seq::FIRST,
        round: sample::round_id(),
        digest: Digest::of(b"commit"),
    }
}

fn small_documents() -> Vec<Vec<u8>> {
    let tombstones = vec![TombstoneRef { generation: Generation::FIRST, seq: Seq::FIRST, digest: Digest::of(b"t") }];
    vec![
        fence().encode(),
        Fence { writer: Writer::Direct, released: true, ..fence() }.encode(),
        FenceBase { generation: SECOND, newest: Some(reference()), tombstones }.encode(),
        FenceBase { generation: SECOND, newest: None, tombstones: Vec::new() }.encode(),
        tombstone().encode(),
        pin().encode(),
        LocationFormat::current().encode(),
    ]
}

fn tombstone() -> Tombstone {
    Tombstone {
        pipeline: PipelineId::new(sample::uuid(1)),
        commit: reference(),
        retired_in: SECOND,
        retired_at: sample::time(5),
    }
}

fn pin() -> Pin {
    Pin {
        name: "audit".to_owned(),
        id: sample::uuid(9),
        commit: reference(),
        pinned_by: "alice".to_owned(),
        pinned_at: sample::time(6),
    }
}

/// Each reader is shown every document: a fence where a tombstone should stand is an error, never something else's value.
fn small_document(bytes: &[u8]) -> Result<bool, String> {
    let (fence_key, base_key) = (Key::Fence(SECOND).to_string(), Key::FenceBase(SECOND).to_string());
    let (tombstone_key, pin_key) = (tombstone().key().to_string(), pin().key().to_string());
    let read = [
        again("fence", bytes, |bytes| Fence::parse(&fence_key, bytes), Fence::encode)?,
        again("base", bytes, |bytes| FenceBase::parse(&base_key, bytes), FenceBase::encode)?,
        again("tombstone", bytes, |bytes| Tombstone::parse(&tombstone_key, bytes), Tombstone::encode)?,
        again("pin", bytes, |bytes| Pin::parse(&pin_key, bytes), Pin::encode)?,
        again("format", bytes, |bytes| LocationFormat::parse("lockstep.json", bytes), LocationFormat::encode)?,
    ];
    let read = read.iter().filter(|read| **read).count();
    if read > 1 { Err("two kinds of document at once".to_owned()) } else { Ok(read == 1) }
}

// --- keys, paths, words

fn keys() -> Vec<Vec<u8>> {
    let (path, solo) = (sample::path(1, 3, 2), sample::path(0, 0, 1));
    let keys = [
        Key::Format,
        Key::Head,
        Key::Fence(SECOND),
        Key::FenceBase(SECOND),
        Key::Commit(SECOND, Seq::FIRST),
        Key::Retired(SECOND, Seq::FIRST),
        Key::Damaged(SECOND, Seq::FIRST),
        Key::Pin("audit-2026".to_owned(), sample::uuid(3)),
        Key::Probe(sample::uuid(3), 7),
        path.manifest(),
        path.data(12),
        solo.manifest(),
    ];
    keys.map(|key| key.to_string().into_bytes()).to_vec()
}

fn key(bytes: &[u8]) -> Result<bool, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let Some(key) = Key::parse(text) else { return Ok(false) };
    stays_inside(text)?;
    if key.to_string() != text {
        return Err(format!("{text:?} is read as {key:?} and written as {key}"));
    }
    Ok(true)
}

fn paths() -> Vec<Vec<u8>> {
    ["state.bin", "a/b/c.feldera", "w/0/0194-batch.feldera", "ünï/cödé", "...", "a..b/.hidden"]
        .map(|p| p.as_bytes().to_vec())
        .to_vec()
}

pub(crate) fn path(bytes: &[u8]) -> Result<bool, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let Ok(path) = RelativePath::new(text) else { return Ok(false) };
    stays_inside(path.as_str())?;
    let written = serde_json::to_string(&path).unwrap();
    if serde_json::from_str::<RelativePath>(&written).ok().as_ref() != Some(&path) {
        return Err(format!("{path:?} is read again as something else"));
    }
    Ok(true)
}

fn words() -> Vec<Vec<u8>> {
    let words = [
        "orders",
        "11111111-1111-4111-8111-111111111111",
        "11057525854332059820",
        "s3://acme-ckpt/orders?endpoint=http://127.0.0.1:9000&region=eu-west-1&path_style=true",
        "7",
    ];
    let digest = Digest::of(b"x").to_string();
    words.iter().map(|word| word.as_bytes().to_vec()).chain([digest.into_bytes()]).collect()
}

/// Written as it was read.
fn spelled<T: FromStr + ToString>(text: &str) -> Result<bool, String> {
    let Ok(value) = text.parse::<T>() else { return Ok(false) };
    let written = value.to_string();
    if written == text { Ok(true) } else { Err(format!("{text:?} is written {written:?}")) }
}

fn word(bytes: &[u8]) -> Result<bool, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let mut read = [
        spelled::<RoundId>(text)?,
        spelled::<Fingerprint>(text)?,
        spelled::<Digest>(text)?,
        spelled::<PipelineSelector>(text)?,
    ]
    .contains(&true);
    if let Ok(location) = text.parse::<Location>() {
        stays_inside(&location.full_key("lockstep.json"))?;
        // Another spelling of the same place is the same value.
        same("location", &location, location.to_string().parse())?;
        read = true;
    }
    let _ = text.parse::<u32>().map(Attempt::new);
    Ok(read)
}

// --- specs

fn specs() -> Vec<Vec<u8>> {
    let full = json!({
        "name": "orders",
        "initial": "running",
        "hosts": 3,
        "agents": "http://orders-{host}.orders.default.svc:7402",
        "location": {"bucket": "acme-ckpt", "prefix": "orders", "region": "eu-west-1", "endpoint": null, "force_path_style": false},
        "read_location": {"bucket": "acme-ckpt", "prefix": "staging"},
        "start": {"from": {"step": 7}, "fail_if_none": true},
        "push_interval": "2m",
        "pull_interval": "10s",
        "retention": {"min_count": 10, "min_age": "30d"},
        "transfer": {"concurrency": 16, "part_size": "16MiB", "memory": "64MiB", "bandwidth_limit": "1GiB"},
    });
    let solo = json!({
        "name": "o", "solo": true, "agents": ["http://127.0.0.1:7402"], "location": {"bucket": "acme-ckpt"},
        "start": {"from": {"time": "2026-01-01T00:00:00Z"}},
    });
    let yaml = b"name: orders\nhosts: 3\nagents: &a ['http://a:1', 'http://b:1', 'http://c:1']\nlocation: {bucket: acme-ckpt, prefix: orders}\npush_interval: 2m\n";
    vec![serde_json::to_vec(&full).unwrap(), serde_json::to_vec(&solo).unwrap(), yaml.to_vec()]
}

/// As the command line reads it: YAML, of which JSON is a part.
pub(crate) fn spec(bytes: &[u8]) -> Result<bool, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let Ok(value) = serde_saphyr::from_str::<Value>(text) else { return Ok(false) };
    let Ok(spec) = PipelineSpec::from_value(value) else { return Ok(false) };
    for host in 0..spec.layout.len() {
        let _ = spec.agents.of(host);
    }
    same("spec", &spec, PipelineSpec::from_value(spec.to_value()))
}
