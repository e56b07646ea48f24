//! Fences, their bases, and the rules by which a commit counts (F1 to F4). Pure: the reader that lists and fetches stands in `bucket`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    commit::CommitRef,
    digest::Digest,
    document::{self, FORMAT, check_format, invalid, kind},
    id::{DatabaseId, Generation, PipelineId, PipelineName, Seq},
    location::Location,
    planted::{self, Bug},
    problem::{Problem, Reason},
};

kind!(FormatKind, "location");
kind!(FenceKind, "fence");
kind!(BaseKind, "fence_base");

/// `lockstep.json`: which format a location has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocationFormat {
    format: u32,
    kind: FormatKind,
    /// Features a reader must know; none exist yet.
    pub features: Vec<String>,
}

impl LocationFormat {
    /// What this version writes.
    pub const fn current() -> Self {
        Self { format: FORMAT, kind: FormatKind::Kind, features: Vec::new() }
    }

    /// The document's bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(self)
    }

    /// Refuses a newer format and unknown features: an old reader must not guess.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let format: Self = document::parse(key, bytes)?;
        check_format(key, format.format)?;
        match format.features.first() {
            None => Ok(format),
            Some(feature) => Err(invalid(key, format!("needs feature {feature:?}: upgrade lockstep"))),
        }
    }
}

/// Who may write a location.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Writer {
    /// A coordinator's database.
    Database {
        /// Minted by its first migration.
        database: DatabaseId,
        /// Postgres' own system identifier.
        system_identifier: String,
        /// Postgres' timeline; a promoted replica has another.
        timeline: u32,
    },
    /// A solo agent without a coordinator.
    Direct,
}

/// `fences/<g>.json`: who owns the location from generation `g` on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fence {
    /// Contiguous, from 1.
    pub generation: Generation,
    /// The owner.
    pub pipeline: PipelineId,
    /// Its name at that time; names change.
    pub pipeline_name: PipelineName,
    /// Who writes for it.
    pub writer: Writer,
    /// Names the take-over, so that two takers never write the same bytes.
    pub take_over: Uuid,
    /// When it was prepared.
    pub created_at: DateTime<Utc>,
    /// True: the owner gave the location up; nobody owns it from here.
    pub released: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFence {
    format: u32,
    kind: FenceKind,
    generation: Generation,
    pipeline: PipelineId,
    pipeline_name: PipelineName,
    writer: Writer,
    take_over: Uuid,
    created_at: DateTime<Utc>,
    #[serde(default)]
    released: bool,
}

impl Fence {
    /// The exact bytes to store before they are PUT.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(&RawFence {
            format: FORMAT,
            kind: FenceKind::Kind,
            generation: self.generation,
            pipeline: self.pipeline,
            pipeline_name: self.pipeline_name.clone(),
            writer: self.writer.clone(),
            take_over: self.take_over,
            created_at: self.created_at,
            released: self.released,
        })
    }

    /// Parses bytes read at `key`.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let raw: RawFence = document::parse(key, bytes)?;
        check_format(key, raw.format)?;
        let own = crate::key::Key::Fence(raw.generation).to_string();
        if own != key {
            return Err(invalid(key, format!("says it belongs at {own}")));
        }
        Ok(Self {
            generation: raw.generation,
            pipeline: raw.pipeline,
            pipeline_name: raw.pipeline_name,
            writer: raw.writer,
            take_over: raw.take_over,
            created_at: raw.created_at,
            released: raw.released,
        })
    }
}

/// A tombstone that the taker saw when it wrote a base.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TombstoneRef {
    /// Of the retired commit.
    pub generation: Generation,
    /// Of the retired commit.
    pub seq: Seq,
    /// Digest of the retired commit's bytes.
    pub digest: Digest,
}

/// `fences/<g>.base.json`: the last commit before generation `g` that counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FenceBase {
    /// The generation it starts.
    pub generation: Generation,
    /// The newest older commit that counts; none: nothing counts from before.
    pub newest: Option<CommitRef>,
    /// Tombstones of older generations that count.
    pub tombstones: Vec<TombstoneRef>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBase {
    format: u32,
    kind: BaseKind,
    generation: Generation,
    newest: Option<CommitRef>,
    tombstones: Vec<TombstoneRef>,
}

impl FenceBase {
    /// The exact bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(&RawBase {
            format: FORMAT,
            kind: BaseKind::Kind,
            generation: self.generation,
            newest: self.newest,
            tombstones: self.tombstones.clone(),
        })
    }

    /// Parses bytes read at `key`.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let raw: RawBase = document::parse(key, bytes)?;
        check_format(key, raw.format)?;
        let own = crate::key::Key::FenceBase(raw.generation).to_string();
        if own != key {
            return Err(invalid(key, format!("says it belongs at {own}")));
        }
        if raw.newest.is_some_and(|newest| newest.generation >= raw.generation) {
            return Err(invalid(key, "names a commit that is not older than its own generation"));
        }
        Ok(Self { generation: raw.generation, newest: raw.newest, tombstones: raw.tombstones })
    }

    /// Whether this base, of generation g+1, lets commit (g, seq) count: it names (g, t) with `seq <= t` (F1).
    pub fn includes(&self, generation: Generation, seq: Seq) -> bool {
        if planted::is(Bug::LaterBaseDecides) {
            return self.newest.is_some_and(|newest| (generation, seq) <= (newest.generation, newest.seq));
        }
        generation.next() == self.generation
            && self.newest.is_some_and(|newest| newest.generation == generation && seq <= newest.seq)
    }
}

/// What is known of fence g+1 when the question is whether a commit of generation g counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Successor {
    /// Read and proven absent: generation g is the highest.
    Absent,
    /// The fence stands, its base doesn't (yet).
    FenceOnly,
    /// The base stands.
    Base(FenceBase),
}

/// Whether a commit of generation g counts (F1). For a commit of generation g exactly fence g+1 and its base decide, never a later one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counts {
    /// It does.
    Yes,
    /// It does not and never will.
    No,
    /// Fence g+1 stands without a base: nothing is decided (F4).
    Undecided,
}

/// F1 for one commit object that exists.
pub fn counts(generation: Generation, seq: Seq, successor: &Successor) -> Counts {
    match successor {
        Successor::Absent => Counts::Yes,
        Successor::FenceOnly => Counts::Undecided,
        Successor::Base(base) if base.includes(generation, seq) => Counts::Yes,
        Successor::Base(_) => Counts::No,
    }
}

/// Newest commit that counts for a location whose highest fence is `highest` (F2 step 3): the greatest usable commit of that generation, else
/// what its base names. `commits` are those of generation `highest` whose objects are commits, neither retired nor damaged.
pub fn newest_of(
    highest: Generation,
    base: Option<&FenceBase>,
    commits: impl IntoIterator<Item = CommitRef>,
) -> Option<CommitRef> {
    commits
        .into_iter()
        .filter(|commit| commit.generation == highest)
        .max_by_key(|commit| commit.seq)
        .or_else(|| base.and_then(|base| base.newest))
}

/// `LOCATION_OWNED`, naming both pipelines.
pub fn location_owned(location: &Location, mine: PipelineId, my_name: &PipelineName, owner: &Fence) -> Problem {
    // The same name with another UUID: maybe the very pipeline, whose database is gone.
    let lost = if owner.pipeline_name == *my_name && owner.pipeline != mine {
        format!("; if it is the same one and its database was lost: lockstep resync {my_name} -f SPEC.yaml")
    } else {
        String::new()
    };
    Problem::new(
        Reason::LocationOwned,
        format!(
            "{location} is owned by pipeline {} ({}) since generation {}; pipeline {my_name} ({mine}) must take it over or use another prefix{lost}",
            owner.pipeline_name, owner.pipeline, owner.generation
        ),
    )
    .with("location", location)
    .with("owner", owner.pipeline)
    .with("owner_name", &owner.pipeline_name)
    .with("generation", owner.generation)
    .with("pipeline", mine)
    .with("pipeline_name", my_name)
}
