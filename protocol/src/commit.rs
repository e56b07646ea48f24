//! The decision object of a push round: a commit document or an abort record at one key. Whoever wins the key has decided (push steps 4, 5).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    document::{self, FORMAT, check_format, invalid, kind},
    host::Layout,
    id::{Fingerprint, Generation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo, Seq, Step},
    key::Key,
    problem::Problem,
};

kind!(CommitKind, "commit");
kind!(AbortKind, "abort");

/// Names one commit of a location by its place in the chain and its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitRef {
    /// Of the location.
    pub generation: Generation,
    /// In that generation.
    pub seq: Seq,
    /// The push round that made it; also the checkpoint's id.
    pub round: RoundId,
    /// Of the document's exact bytes.
    pub digest: Digest,
}

impl CommitRef {
    /// Key of the decision.
    pub const fn key(&self) -> Key {
        Key::Commit(self.generation, self.seq)
    }

    /// Names what a decision key holds that nobody can read, by its place and bytes: its round is not known, so an id stands in for it that no round ever gets, the same for
    /// whoever looks.
    pub fn unreadable(generation: Generation, seq: Seq, bytes: &[u8]) -> Self {
        // Made of the key: rounds are drawn, and their version is another.
        let round = RoundId::new(Digest::of(Key::Commit(generation, seq).to_string().as_bytes()).to_uuid());
        Self { generation, seq, round, digest: Digest::of(bytes) }
    }

    /// In its chain: no two commits of one location have the same.
    pub const fn place(&self) -> (Generation, Seq) {
        (self.generation, self.seq)
    }

    /// Whether it stands later in the chain; says something of commits of one location only.
    pub fn is_after(&self, other: &Self) -> bool {
        self.place() > other.place()
    }
}

/// One host's part as the commit names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitPart {
    /// Slot; 0 for solo.
    pub host_idx: u32,
    /// The host's own checkpoint that the part holds.
    pub local_checkpoint: LocalCheckpointId,
    /// Key of the part manifest, relative to the location's prefix.
    pub manifest: String,
    /// Its bytes.
    pub manifest_length: u64,
    /// Its digest.
    pub manifest_blake3: Digest,
    /// Files of the part.
    pub files: u64,
    /// Bytes of the part.
    pub bytes: u64,
    /// Bytes that this round sent for it.
    pub bytes_uploaded: u64,
    /// Records this host has processed, if known.
    pub processed_records: Option<u64>,
}

/// A checkpoint: it exists once these bytes stand at its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitDocument {
    /// Immutable.
    pub pipeline: PipelineId,
    /// At the time of the commit.
    pub pipeline_name: PipelineName,
    /// Of the location.
    pub generation: Generation,
    /// In that generation.
    pub seq: Seq,
    /// The newest counted commit when the round was planned.
    pub parent: Option<CommitRef>,
    /// The commit whose objects this one may reuse.
    pub base: Option<CommitRef>,
    /// The push round.
    pub round: RoundId,
    /// Its number in the pipeline.
    pub round_no: RoundNo,
    /// One for all hosts (S9).
    pub step: Step,
    /// One for all hosts, if the engine has one (S9).
    pub fingerprint: Option<Fingerprint>,
    /// The frozen layout.
    pub layout: Layout,
    /// The database's clock on entering `Committing`.
    pub created_at: DateTime<Utc>,
    /// One a host, by index (S2).
    pub parts: Vec<CommitPart>,
    /// W3C trace id of the round, if traced.
    pub trace_id: Option<String>,
    /// Version of the writer.
    pub writer: String,
    /// Free text of the pipeline's owner.
    pub labels: BTreeMap<String, String>,
    /// Which partitions of the application each host holds; opaque, may be empty.
    pub partitions: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCommit {
    format: u32,
    kind: CommitKind,
    pipeline: PipelineId,
    pipeline_name: PipelineName,
    generation: Generation,
    seq: Seq,
    parent: Option<CommitRef>,
    base: Option<CommitRef>,
    round: RoundId,
    round_no: RoundNo,
    step: Step,
    fingerprint: Option<Fingerprint>,
    n_hosts: u32,
    created_at: DateTime<Utc>,
    parts: Vec<CommitPart>,
    root: Digest,
    trace_id: Option<String>,
    writer: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    partitions: Vec<serde_json::Value>,
}

impl CommitDocument {
    /// Key of this decision.
    pub const fn key(&self) -> Key {
        Key::Commit(self.generation, self.seq)
    }

    /// Digest over the parts: per host its index, manifest key and manifest digest, in order, each ended by a newline.
    pub fn root(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for part in &self.parts {
            hasher.update(format!("{} {} {}\n", part.host_idx, part.manifest, part.manifest_blake3).as_bytes());
        }
        Digest::from_hash(hasher.finalize())
    }

    /// Sum over hosts, if every host knows its own (scenario 12: records are partitioned, not replicated).
    pub fn processed_records(&self) -> Option<u64> {
        self.parts.iter().map(|part| part.processed_records).try_fold(0_u64, |sum, records| sum.checked_add(records?))
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Files of all parts.
    pub fn files(&self) -> u64 {
        self.parts.iter().map(|part| part.files).sum()
    }

    /// Bytes that the round sent.
    pub fn bytes_uploaded(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes_uploaded).sum()
    }

    /// The exact bytes to store in the row before they are PUT.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(&RawCommit {
            format: FORMAT,
            kind: CommitKind::Kind,
            pipeline: self.pipeline,
            pipeline_name: self.pipeline_name.clone(),
            generation: self.generation,
            seq: self.seq,
            parent: self.parent,
            base: self.base,
            round: self.round,
            round_no: self.round_no,
            step: self.step,
            fingerprint: self.fingerprint,
            n_hosts: self.layout.n_hosts(),
            created_at: self.created_at,
            parts: self.parts.clone(),
            root: self.root(),
            trace_id: self.trace_id.clone(),
            writer: self.writer.clone(),
            labels: self.labels.clone(),
            partitions: self.partitions.clone(),
        })
    }

    fn from_raw(key: &str, raw: RawCommit) -> Result<Self, Problem> {
        check_format(key, raw.format)?;
        let layout = Layout::from_n_hosts(raw.n_hosts).map_err(|problem| invalid(key, problem.message))?;
        let document = Self {
            pipeline: raw.pipeline,
            pipeline_name: raw.pipeline_name,
            generation: raw.generation,
            seq: raw.seq,
            parent: raw.parent,
            base: raw.base,
            round: raw.round,
            round_no: raw.round_no,
            step: raw.step,
            fingerprint: raw.fingerprint,
            layout,
            created_at: raw.created_at,
            parts: raw.parts,
            trace_id: raw.trace_id,
            writer: raw.writer,
            labels: raw.labels,
            partitions: raw.partitions,
        };
        let own = document.key().to_string();
        if own != key {
            return Err(invalid(key, format!("says it belongs at {own}")));
        }
        let names = document.parts.iter().map(|part| part.host_idx);
        if !names.eq(0..layout.len()) {
            return Err(invalid(key, format!("does not name each of {layout} once, in order")));
        }
        for part in &document.parts {
            let expected = match layout {
                Layout::Solo => None,
                Layout::Hosts(_) => Some(part.host_idx),
            };
            match Key::parse(&part.manifest) {
                Some(Key::PartManifest(path)) if path.host_idx == expected && path.round == document.round => {}
                _ => {
                    return Err(invalid(
                        key,
                        format!("names {:?} as the part manifest of host {}", part.manifest, part.host_idx),
                    ));
                }
            }
        }
        let sum = |value: fn(&CommitPart) -> u64| {
            document.parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(value(part)))
        };
        if [sum(|p| p.bytes), sum(|p| p.files), sum(|p| p.bytes_uploaded)]
            .iter()
            .any(|total| total.is_none_or(|t| t > crate::id::MAX_NUMBER))
        {
            return Err(invalid(key, "has totals above the greatest number allowed"));
        }
        if document.root() != raw.root {
            return Err(invalid(
                key,
                format!("has root digest {} over parts whose digest is {}", raw.root, document.root()),
            ));
        }
        Ok(document)
    }
}

/// What stands where a commit was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AbortRecord {
    /// The pipeline that gave up.
    pub pipeline: PipelineId,
    /// Of the location.
    pub generation: Generation,
    /// In that generation.
    pub seq: Seq,
    /// The push round.
    pub round: RoundId,
    /// Who.
    pub aborted_by: String,
    /// Why.
    pub cause: String,
    /// When.
    pub aborted_at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAbort {
    format: u32,
    kind: AbortKind,
    pipeline: PipelineId,
    generation: Generation,
    seq: Seq,
    round: RoundId,
    aborted_by: String,
    cause: String,
    aborted_at: DateTime<Utc>,
}

impl AbortRecord {
    /// Key of this decision, the same as the commit's.
    pub const fn key(&self) -> Key {
        Key::Commit(self.generation, self.seq)
    }

    /// The exact bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(&RawAbort {
            format: FORMAT,
            kind: AbortKind::Kind,
            pipeline: self.pipeline,
            generation: self.generation,
            seq: self.seq,
            round: self.round,
            aborted_by: self.aborted_by.clone(),
            cause: self.cause.clone(),
            aborted_at: self.aborted_at,
        })
    }
}

/// What stands at a decision key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DecisionObject {
    /// The checkpoint exists (whether it counts is F1's to say).
    Commit(Box<CommitDocument>),
    /// The round was given up.
    Abort(AbortRecord),
}

impl DecisionObject {
    /// Parses hostile bytes read at `key`.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Kind {
            format: u32,
            kind: String,
        }
        let kind: Kind = document::parse(key, bytes)?;
        // First of all: a newer one may have fields that this version doesn't know.
        check_format(key, kind.format)?;
        match kind.kind.as_str() {
            "commit" => CommitDocument::from_raw(key, document::parse(key, bytes)?).map(|d| Self::Commit(Box::new(d))),
            "abort" => {
                let raw: RawAbort = document::parse(key, bytes)?;
                check_format(key, raw.format)?;
                let record = AbortRecord {
                    pipeline: raw.pipeline,
                    generation: raw.generation,
                    seq: raw.seq,
                    round: raw.round,
                    aborted_by: raw.aborted_by,
                    cause: raw.cause,
                    aborted_at: raw.aborted_at,
                };
                let own = record.key().to_string();
                if own != key {
                    return Err(invalid(key, format!("says it belongs at {own}")));
                }
                Ok(Self::Abort(record))
            }
            other => Err(invalid(key, format!("has kind {other:?}; a decision is a commit or an abort"))),
        }
    }

    /// The round it decides.
    pub const fn round(&self) -> RoundId {
        match self {
            Self::Commit(document) => document.round,
            Self::Abort(record) => record.round,
        }
    }
}
