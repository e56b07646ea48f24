//! Documents and ids, made once.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::{Fence, FenceBase, Writer},
    host::Layout,
    id::{DatabaseId, Generation, PipelineId, PipelineName, RoundId, RoundNo, Seq, Term},
    location::{Location, RawLocation},
    round::{Kind, Phase, PushState, RetryPolicy, Round, WantedCut},
};
use uuid::Uuid;

use super::Place;

pub(super) fn generation(number: u8) -> Generation {
    (0..number).fold(Generation::NONE, |at, _| at.next())
}

pub(super) fn number(generation: Generation) -> u8 {
    u8::try_from(generation.get()).unwrap_or(u8::MAX)
}

pub(super) fn seq(number: u8) -> Seq {
    (1..number).fold(Seq::FIRST, |at, _| at.next())
}

pub(super) fn seq_number(seq: Seq) -> u8 {
    u8::try_from(seq.get()).unwrap_or(u8::MAX)
}

pub(super) fn place(commit: CommitRef) -> Place {
    (number(commit.generation), seq_number(commit.seq))
}

/// Bytes of a commit: nothing here parses them.
fn bytes((generation, seq): Place) -> String {
    format!("commit {generation}-{seq}")
}

static COMMITS: LazyLock<Vec<Vec<CommitRef>>> = LazyLock::new(|| {
    let one = |place: Place| CommitRef {
        generation: generation(place.0),
        seq: seq(place.1),
        round: RoundId::new(Uuid::from_u128(u128::from(place.0) * 100 + u128::from(place.1))),
        digest: Digest::of(bytes(place).as_bytes()),
    };
    (0..8).map(|g| (0..8).map(|s| one((g, s))).collect()).collect()
});

pub(super) fn commit((generation, seq): Place) -> CommitRef {
    COMMITS[usize::from(generation)][usize::from(seq)]
}

pub(super) fn base(of: u8, newest: Option<Place>) -> FenceBase {
    FenceBase { generation: generation(of), newest: newest.map(commit), tombstones: Vec::new() }
}

pub(super) fn now() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

static NAME: LazyLock<Option<PipelineName>> = LazyLock::new(|| PipelineName::new("orders").ok());

pub(super) fn name() -> PipelineName {
    NAME.clone().unwrap_or_else(|| unreachable!("orders is a name"))
}

static LOCATION: LazyLock<Option<Location>> =
    LazyLock::new(|| Location::try_from(RawLocation { bucket: "acme".to_owned(), ..RawLocation::default() }).ok());

pub(super) fn location() -> Location {
    LOCATION.clone().unwrap_or_else(|| unreachable!("acme is a bucket"))
}

pub(super) fn pipeline(database: u8) -> PipelineId {
    PipelineId::new(Uuid::from_u128(u128::from(database) + 1))
}

pub(super) fn writer(database: u8) -> Writer {
    let id = DatabaseId::new(Uuid::from_u128(u128::from(database) + 1));
    Writer::Database { database: id, system_identifier: String::new(), timeline: 1 }
}

/// The fence of the old writer.
pub(super) fn first_fence() -> Fence {
    Fence {
        generation: Generation::FIRST,
        pipeline: pipeline(0),
        pipeline_name: name(),
        writer: writer(0),
        take_over: Uuid::from_u128(1),
        created_at: now(),
        released: false,
    }
}

/// A push whose commit's bytes are stored.
pub(super) fn round(place: Place) -> Round {
    let commit = commit(place);
    let state =
        PushState { commit_bytes: Some(bytes(place)), ..PushState::asked(commit.seq, WantedCut::Newest, false, None) };
    Round {
        id: commit.round,
        pipeline: pipeline(0),
        pipeline_name: name(),
        round_no: RoundNo::new(1).unwrap_or_else(|_| unreachable!("1 is a number")),
        generation: commit.generation,
        layout: Layout::Solo,
        location: location(),
        version: 0,
        term: Term::NONE,
        phase: Phase::Committing,
        deadline: now(),
        problem: None,
        cancel: None,
        participants: Vec::new(),
        retry: RetryPolicy::default(),
        kind: Kind::Push(state),
    }
}
