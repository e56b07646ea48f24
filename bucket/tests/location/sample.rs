//! A location in memory, and documents that fit together.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, TimeZone as _, Utc};
use lockstep_bucket::{MemoryBuckets, MemoryStore, ObjectStore as _};
use lockstep_protocol::{
    commit::{AbortRecord, CommitDocument, CommitPart, CommitRef},
    digest::Digest,
    fence::{Fence, FenceBase, Writer},
    host::Layout,
    id::{Attempt, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo, Seq, Step},
    key::{AttemptPath, Key},
    manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath},
    tombstone::Tombstone,
};
use uuid::Uuid;

pub(crate) fn generation(g: u64) -> Generation {
    Generation::new(g).unwrap()
}

pub(crate) fn seq(s: u64) -> Seq {
    Seq::new(s).unwrap()
}

pub(crate) fn time(seconds: u64) -> DateTime<Utc> {
    Utc.timestamp_opt(1_790_000_000, 0).unwrap() + std::time::Duration::from_secs(seconds)
}

/// Every (generation, seq) is another round.
pub(crate) fn round(g: u64, s: u64) -> RoundId {
    RoundId::new(Uuid::from_u128(u128::from(g) << 64 | u128::from(s)))
}

pub(crate) fn pipeline(n: u128) -> PipelineId {
    PipelineId::new(Uuid::from_u128(0xabc0_0000 + n))
}

pub(crate) fn name(text: &str) -> PipelineName {
    PipelineName::new(text).unwrap()
}

pub(crate) fn fence(g: u64, owner: u128) -> Fence {
    Fence {
        generation: generation(g),
        pipeline: pipeline(owner),
        pipeline_name: name(&format!("pipeline-{owner}")),
        writer: Writer::Direct,
        take_over: Uuid::from_u128(owner),
        created_at: time(0),
        released: false,
    }
}

/// One of two hosts: two packed files, one file of its own object and an empty one.
pub(crate) fn part(g: u64, s: u64, host_idx: u32) -> (PartManifest, Vec<(Key, Bytes)>) {
    let slot = Layout::hosts(2).unwrap().slot(host_idx).unwrap();
    let path = AttemptPath::new(
        slot,
        generation(g),
        round(g, s),
        Incarnation::new(Uuid::from_u128(u128::from(host_idx))),
        Attempt::FIRST,
    );
    let small: Bytes = (0..30_000_u32).map(|i| (i * (host_idx + 3) % 251) as u8).collect();
    let large: Bytes = (0..50_000_u64).map(|i| (i * (s + 7) % 253) as u8).collect();
    let file = |name: &str, object: Option<u32>, offset: usize, content: &[u8]| FileEntry {
        path: RelativePath::new(name).unwrap(),
        size: content.len() as u64,
        blake3: Digest::of(content),
        head: None,
        object,
        offset: offset as u64,
        length: content.len() as u64,
    };
    let manifest = PartManifest {
        pipeline: pipeline(1),
        slot,
        generation: generation(g),
        round: round(g, s),
        incarnation: path.incarnation,
        attempt: path.attempt,
        local_checkpoint: LocalCheckpointId::new(Uuid::from_u128(u128::from(s) * 10 + u128::from(host_idx))),
        step: Step::new(s * 10).unwrap(),
        fingerprint: None,
        processed_records: None,
        store_meta: String::new(),
        objects: vec![
            ObjectEntry { key: path.data(0).to_string(), size: 30_000 },
            ObjectEntry { key: path.data(1).to_string(), size: 50_000 },
        ],
        files: vec![
            file("a/empty", None, 0, b""),
            file("a/first", Some(0), 0, &small[..10_000]),
            // Bytes 10,000 to 10,500 belong to no file of this part.
            file("a/second", Some(0), 10_500, &small[10_500..]),
            file("large", Some(1), 0, &large),
        ],
        delta: None,
    };
    (manifest, vec![(path.data(0), small), (path.data(1), large)])
}

pub(crate) fn commit(g: u64, s: u64) -> CommitDocument {
    let parts = (0..2)
        .map(|host_idx| {
            let (manifest, _) = part(g, s, host_idx);
            let bytes = manifest.encode();
            CommitPart {
                host_idx,
                local_checkpoint: manifest.local_checkpoint,
                manifest: manifest.attempt_path().manifest().to_string(),
                manifest_length: bytes.len() as u64,
                manifest_blake3: Digest::of(&bytes),
                files: manifest.files.len() as u64,
                bytes: manifest.bytes(),
                bytes_uploaded: manifest.bytes(),
                processed_records: None,
            }
        })
        .collect();
    CommitDocument {
        pipeline: pipeline(1),
        pipeline_name: name("orders"),
        generation: generation(g),
        seq: seq(s),
        parent: None,
        base: None,
        round: round(g, s),
        round_no: RoundNo::new(s).unwrap(),
        step: Step::new(s * 10).unwrap(),
        fingerprint: None,
        layout: Layout::hosts(2).unwrap(),
        created_at: time(g * 1000 + s),
        parts,
        trace_id: None,
        writer: "test".to_owned(),
        labels: BTreeMap::new(),
        partitions: Vec::new(),
    }
}

pub(crate) fn commit_bytes(g: u64, s: u64) -> Bytes {
    Bytes::from(commit(g, s).encode())
}

pub(crate) fn commit_ref(g: u64, s: u64) -> CommitRef {
    CommitRef { generation: generation(g), seq: seq(s), round: round(g, s), digest: Digest::of(&commit_bytes(g, s)) }
}

pub(crate) fn abort(g: u64, s: u64) -> AbortRecord {
    AbortRecord {
        pipeline: pipeline(1),
        generation: generation(g),
        seq: seq(s),
        round: round(g, s),
        aborted_by: "test".to_owned(),
        cause: "cancelled".to_owned(),
        aborted_at: time(0),
    }
}

pub(crate) fn tombstone(g: u64, s: u64, retired_in: u64) -> Tombstone {
    Tombstone {
        pipeline: pipeline(1),
        commit: commit_ref(g, s),
        retired_in: generation(retired_in),
        retired_at: time(0),
    }
}

pub(crate) fn base(g: u64, newest: Option<CommitRef>) -> FenceBase {
    FenceBase { generation: generation(g), newest, tombstones: Vec::new() }
}

/// One location.
pub(crate) struct Place {
    pub(crate) buckets: MemoryBuckets,
    pub(crate) store: MemoryStore,
}

impl Place {
    pub(crate) fn new() -> Self {
        let buckets = MemoryBuckets::new(["bucket"]);
        let store = buckets.store("s3://bucket/orders".parse().unwrap());
        Self { buckets, store }
    }

    pub(crate) fn write(&self, key: &Key, bytes: impl Into<Bytes>) {
        self.buckets.tamper("bucket", &self.store.location().full_key(&key.to_string()), Some(bytes.into()));
    }

    pub(crate) fn remove(&self, key: &Key) {
        self.buckets.tamper("bucket", &self.store.location().full_key(&key.to_string()), None);
    }

    pub(crate) fn read(&self, key: &Key) -> Option<Bytes> {
        self.buckets.read("bucket", &self.store.location().full_key(&key.to_string()))
    }

    /// A fence without base.
    pub(crate) fn fence(&self, g: u64) {
        self.write(&Key::Fence(generation(g)), fence(g, 1).encode());
    }

    pub(crate) fn fence_with_base(&self, g: u64, newest: Option<CommitRef>) {
        self.fence(g);
        self.write(&Key::FenceBase(generation(g)), base(g, newest).encode());
    }

    pub(crate) fn commit(&self, g: u64, s: u64) {
        self.write(&Key::Commit(generation(g), seq(s)), commit_bytes(g, s));
    }

    pub(crate) fn abort(&self, g: u64, s: u64) {
        self.write(&Key::Commit(generation(g), seq(s)), abort(g, s).encode());
    }

    pub(crate) fn retire(&self, g: u64, s: u64, retired_in: u64) {
        self.write(&Key::Retired(generation(g), seq(s)), tombstone(g, s, retired_in).encode());
    }

    pub(crate) fn mark_damaged(&self, g: u64, s: u64) {
        self.write(&Key::Damaged(generation(g), seq(s)), "{}");
    }

    /// A commit with everything it reaches.
    pub(crate) fn whole_commit(&self, g: u64, s: u64) {
        for host_idx in 0..2 {
            let (manifest, objects) = part(g, s, host_idx);
            for (key, bytes) in objects {
                self.write(&key, bytes);
            }
            self.write(&manifest.attempt_path().manifest(), manifest.encode());
        }
        self.commit(g, s);
    }
}
