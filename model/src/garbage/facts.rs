//! Documents, keys and ids, made once: four commits, each of one part, the later ones deltas of the first one's manifest.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart, CommitRef},
    digest::Digest,
    fence::{FenceBase, TombstoneRef},
    garbage::{CommitReach, Locked, Retiring},
    host::{Layout, Slot},
    id::{
        Attempt, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo, Seq, Step,
        Term,
    },
    key::AttemptPath,
    location::{Location, RawLocation},
    manifest::{Delta, FileEntry, Inherited, ObjectEntry, PartManifest, RelativePath},
    round::{Kind, Phase, PullRequest, PullState, PushState, Resolved, RetryPolicy, Round, Source, WantedCut},
    spec::PullSelector,
    tombstone::Tombstone,
};
use uuid::Uuid;

use super::{Objects, Slot as PushSlot};

/// Bits of [`Objects`] with their keys: data of the first commit, a pack of it that the second shares, data of the others, what a dead attempt of the
/// third's round wrote, and four part manifests.
pub(super) const PACK: Objects = Objects(1 << 1);
pub(super) const DEAD: Objects = Objects(1 << 5);
const COUNT: u8 = 10;

pub(super) const fn data(slot: PushSlot) -> Objects {
    Objects([1, 1 << 2, 1 << 3, 1 << 4][slot as usize - 1])
}

pub(super) const fn manifest(slot: PushSlot) -> Objects {
    Objects(1 << (5 + slot))
}

pub(super) const MANIFESTS: Objects = Objects(0b1111 << 6);

pub(super) fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

pub(super) const fn generation(number: u8) -> Generation {
    let mut at = Generation::NONE;
    let mut left = number;
    while left > 0 {
        at = at.next();
        left -= 1;
    }
    at
}

/// What depends on whether the fourth commit is the taker's, in generation 2.
pub(super) struct Facts {
    pub(super) keys: Vec<String>,
    pub(super) commits: Vec<CommitRef>,
    documents: Vec<CommitDocument>,
    full: PartManifest,
    /// Of the full manifests of the first and the third.
    deltas: [Option<Delta>; 2],
}

static OWN: LazyLock<Facts> = LazyLock::new(|| Facts::new(1));
static TAKEN: LazyLock<Facts> = LazyLock::new(|| Facts::new(2));

pub(super) fn facts(taken: bool) -> &'static Facts {
    if taken { &TAKEN } else { &OWN }
}

fn round_id(slot: PushSlot) -> RoundId {
    RoundId::new(Uuid::from_u128(u128::from(slot)))
}

fn attempt(slot: PushSlot, of: u8, second: bool) -> AttemptPath {
    let generation = if slot == 4 { generation(of) } else { Generation::FIRST };
    let attempt = if second { Attempt::FIRST.next() } else { Attempt::FIRST };
    AttemptPath::new(Slot::Solo, generation, round_id(slot), Incarnation::new(Uuid::from_u128(1)), attempt)
}

fn number<T>(value: Result<T, lockstep_protocol::problem::Problem>) -> T {
    value.unwrap_or_else(|problem| unreachable!("a fact of the model: {problem}"))
}

static NAME: LazyLock<PipelineName> = LazyLock::new(|| number(PipelineName::new("orders")));
static LOCATION: LazyLock<Location> =
    LazyLock::new(|| number(Location::try_from(RawLocation { bucket: "acme".to_owned(), ..RawLocation::default() })));

impl Facts {
    fn new(of: u8) -> Self {
        // The third round's first attempt died; what it wrote is nobody's.
        let path = |slot: PushSlot| attempt(slot, of, slot == 3);
        let mut keys = vec![String::new(); usize::from(COUNT)];
        for slot in 1..=4 {
            keys[data(slot).number()] = path(slot).data(0).to_string();
            keys[manifest(slot).number()] = path(slot).manifest().to_string();
        }
        keys[PACK.number()] = path(1).data(1).to_string();
        keys[DEAD.number()] = attempt(3, of, false).data(0).to_string();
        let commits: Vec<CommitRef> = (1..=4).map(|slot| commit_ref(slot, of)).collect();
        let documents = commits.iter().map(|commit| document(*commit, &keys)).collect();
        let full = full_part(path(1));
        let delta = |of: PushSlot| {
            let mut heir = PartManifest { round: round_id(4), ..full.clone() };
            let name = Inherited { key: keys[manifest(of).number()].clone(), length: 1, blake3: Digest::of(&[of]) };
            let base = PartManifest { round: round_id(of), ..full.clone() };
            heir.relate(&base, name);
            heir.delta
        };
        let deltas = [delta(1), delta(3)];
        Self { keys, commits, documents, deltas, full: PartManifest { files: Vec::new(), ..full } }
    }

    pub(super) fn commit(&self, slot: PushSlot) -> CommitRef {
        self.commits[usize::from(slot) - 1]
    }

    pub(super) fn slot(&self, commit: CommitRef) -> PushSlot {
        let at = self.commits.iter().position(|known| *known == commit).unwrap_or_default();
        u8::try_from(at + 1).unwrap_or_default()
    }

    pub(super) fn objects<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> Objects {
        let bit = |key: &str| self.keys.iter().position(|known| known == key);
        Objects(keys.into_iter().filter_map(bit).fold(0, |bits, at| bits | 1 << at))
    }

    /// Its part, resolved: a full manifest for a first one, else a delta of the first commit's.
    fn part(&self, slot: PushSlot, reached: Objects, full: PushSlot) -> PartManifest {
        let objects = (0..COUNT).filter(|bit| (reached.minus(MANIFESTS)).0 & (1 << bit) != 0);
        let objects = objects.map(|bit| ObjectEntry { key: self.keys[usize::from(bit)].clone(), size: 1 }).collect();
        let delta = self.deltas[usize::from(full == 3)].clone().filter(|_| full != slot);
        PartManifest { round: round_id(slot), objects, delta, ..self.full.clone() }
    }

    /// What production says that a commit reaches; `readable`: its manifest is there, and what that inherits; `live`: it must stay.
    pub(super) fn reach(
        &self,
        slot: PushSlot,
        reached: Objects,
        full: PushSlot,
        readable: bool,
        live: bool,
    ) -> Option<CommitReach> {
        let (commit, document) = (self.commit(slot), &self.documents[usize::from(slot) - 1]);
        let part = readable.then(|| self.part(slot, reached, full));
        if live {
            return CommitReach::of_broken(commit, document, &[part]).ok();
        }
        CommitReach::of_retired(commit, document, &[part]).ok()
    }
}

fn commit_ref(slot: PushSlot, of: u8) -> CommitRef {
    let (of, seq) = if slot == 4 && of > 1 { (of, 1) } else { (1, slot) };
    CommitRef {
        generation: generation(of),
        seq: number(Seq::new(seq.into())),
        round: round_id(slot),
        digest: Digest::of(&[slot]),
    }
}

fn document(commit: CommitRef, keys: &[String]) -> CommitDocument {
    let slot = u8::try_from(commit.round.uuid().as_u128()).unwrap_or_default();
    CommitDocument {
        pipeline: pipeline(),
        pipeline_name: NAME.clone(),
        generation: commit.generation,
        seq: commit.seq,
        parent: None,
        base: None,
        round: commit.round,
        round_no: number(RoundNo::new(slot.into())),
        step: number(Step::new(slot.into())),
        fingerprint: None,
        layout: Layout::Solo,
        created_at: now(),
        parts: vec![CommitPart {
            host_idx: 0,
            local_checkpoint: LocalCheckpointId::new(Uuid::from_u128(1)),
            manifest: keys[manifest(slot).number()].clone(),
            manifest_length: 1,
            manifest_blake3: Digest::of(&[slot]),
            files: 1,
            bytes: 1,
            bytes_uploaded: 1,
            processed_records: None,
        }],
        trace_id: None,
        writer: String::new(),
        labels: std::collections::BTreeMap::new(),
        partitions: Vec::new(),
    }
}

/// With as many files as make a delta of it worth writing.
fn full_part(path: AttemptPath) -> PartManifest {
    let file = |n: u8| FileEntry {
        path: number(RelativePath::new(format!("f{n:02}"))),
        size: 0,
        blake3: Digest::of(b""),
        head: None,
        object: None,
        offset: 0,
        length: 0,
    };
    PartManifest {
        pipeline: pipeline(),
        slot: Slot::Solo,
        generation: path.generation,
        round: path.round,
        incarnation: path.incarnation,
        attempt: path.attempt,
        local_checkpoint: LocalCheckpointId::new(Uuid::from_u128(1)),
        step: number(Step::new(1)),
        fingerprint: None,
        processed_records: None,
        store_meta: String::new(),
        objects: Vec::new(),
        files: (0..64).map(file).collect(),
        delta: None,
    }
}

fn pipeline() -> PipelineId {
    PipelineId::new(Uuid::from_u128(1))
}

pub(super) fn tombstone(commit: CommitRef, retired_in: u8) -> Tombstone {
    Tombstone { pipeline: pipeline(), commit, retired_in: generation(retired_in), retired_at: now() }
}

/// As it was stored with the mark.
pub(super) fn retiring(commit: CommitRef, retired_in: u8) -> Option<Retiring> {
    let tombstone = tombstone(commit, retired_in);
    Retiring::stored(&tombstone.key().to_string(), &tombstone.encode()).ok()
}

pub(super) fn locked(of: u8, last: Option<CommitRef>, in_use: std::collections::BTreeSet<CommitRef>) -> Locked {
    Locked { pipeline: pipeline(), generation: generation(of), last, in_use, now: now() }
}

pub(super) fn base(newest: Option<CommitRef>, retired: impl IntoIterator<Item = CommitRef>) -> FenceBase {
    let reference =
        |commit: CommitRef| TombstoneRef { generation: commit.generation, seq: commit.seq, digest: commit.digest };
    FenceBase { generation: generation(2), newest, tombstones: retired.into_iter().map(reference).collect() }
}

fn round(phase: Phase, kind: Kind) -> Round {
    Round {
        id: round_id(9),
        pipeline: pipeline(),
        pipeline_name: NAME.clone(),
        round_no: number(RoundNo::new(9)),
        generation: Generation::FIRST,
        layout: Layout::Solo,
        location: LOCATION.clone(),
        version: 0,
        term: Term::NONE,
        phase,
        deadline: now(),
        problem: None,
        cancel: None,
        participants: Vec::new(),
        retry: RetryPolicy::default(),
        kind,
    }
}

/// An active push with this base.
pub(super) fn push(base: Option<CommitRef>) -> Round {
    let state = PushState::asked(Seq::FIRST, WantedCut::Newest, false, base);
    round(Phase::Transferring, Kind::Push(state))
}

/// An active pull from this commit.
pub(super) fn pull(from: CommitRef) -> Round {
    let request = PullRequest {
        selector: PullSelector::Latest,
        standby: true,
        fail_if_none: true,
        allow_fingerprint: false,
        discard_local: false,
    };
    let resolved = Resolved {
        source: Source::Location,
        location: None,
        commit: Some(from),
        step: None,
        fingerprint: None,
        processed_records: None,
        parts: Vec::new(),
    };
    round(Phase::Transferring, Kind::Pull(PullState { resolved: Some(resolved), ..PullState::asked(request) }))
}
