//! The mark of a checkpoint that was found broken: no base, not `latest`, never deleted. Damage doesn't change what counts (F1), so a mark needs neither a fence
//! nor a base to hold, and one that a former owner writes late is as true as any.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    commit::CommitRef,
    document::{self, FORMAT, check_format, invalid, kind},
    id::PipelineId,
    key::Key,
    problem::Problem,
};

kind!(DamageKind, "damage");

/// A mark names so many broken places; there may be more.
pub const MOST_PLACES: usize = 16;

/// `damaged/<g>-<seq>.json`: create-only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamageMark {
    /// Whose verification found it.
    pub pipeline: PipelineId,
    /// What is broken.
    pub commit: CommitRef,
    /// The first places, as the problems tell them.
    pub places: Vec<String>,
    /// How many there are in all.
    pub broken: u64,
    /// When.
    pub found_at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMark {
    format: u32,
    kind: DamageKind,
    pipeline: PipelineId,
    commit: CommitRef,
    places: Vec<String>,
    broken: u64,
    found_at: DateTime<Utc>,
}

impl DamageMark {
    /// Of what a verification found.
    pub fn new(pipeline: PipelineId, commit: CommitRef, problems: &[Problem], found_at: DateTime<Utc>) -> Self {
        let places = problems.iter().take(MOST_PLACES).map(|problem| problem.message.clone()).collect();
        Self { pipeline, commit, places, broken: u64::try_from(problems.len()).unwrap_or(u64::MAX), found_at }
    }

    /// Key of this mark.
    pub const fn key(&self) -> Key {
        Self::key_of(&self.commit)
    }

    /// Key of a commit's mark.
    pub const fn key_of(commit: &CommitRef) -> Key {
        Key::Damaged(commit.generation, commit.seq)
    }

    /// The exact bytes.
    pub fn encode(&self) -> Vec<u8> {
        document::encode(&RawMark {
            format: FORMAT,
            kind: DamageKind::Kind,
            pipeline: self.pipeline,
            commit: self.commit,
            places: self.places.clone(),
            broken: self.broken,
            found_at: self.found_at,
        })
    }

    /// Parses bytes read at `key`.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self, Problem> {
        let raw: RawMark = document::parse(key, bytes)?;
        check_format(key, raw.format)?;
        let mark = Self {
            pipeline: raw.pipeline,
            commit: raw.commit,
            places: raw.places,
            broken: raw.broken,
            found_at: raw.found_at,
        };
        let own = mark.key().to_string();
        if own != key {
            return Err(invalid(key, format!("says it belongs at {own}")));
        }
        Ok(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        id::{Generation, RoundId, Seq},
        problem::Reason,
    };
    use uuid::Uuid;

    fn mark(broken: usize) -> DamageMark {
        let commit = CommitRef {
            generation: Generation::FIRST,
            seq: Seq::FIRST,
            round: RoundId::new(Uuid::from_u128(7)),
            digest: Digest::of(b"commit"),
        };
        let problems: Vec<Problem> =
            (0..broken).map(|n| Problem::new(Reason::Integrity, format!("host 1: file {n} differs"))).collect();
        DamageMark::new(PipelineId::new(Uuid::from_u128(1)), commit, &problems, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_mark_is_read_back_as_it_was_written_and_only_at_its_own_key() {
        let mark = mark(2);
        let (key, bytes) = (mark.key().to_string(), mark.encode());
        assert_eq!(DamageMark::parse(&key, &bytes), Ok(mark));
        let other = Key::Damaged(Generation::FIRST, Seq::FIRST.next()).to_string();
        assert_eq!(DamageMark::parse(&other, &bytes).unwrap_err().reason, Reason::ManifestInvalid);
        assert!(DamageMark::parse(&key, b"{}").is_err());
    }

    #[test]
    fn a_mark_names_the_first_places_and_counts_all() {
        let mark = mark(40);
        assert_eq!((mark.places.len(), mark.broken), (MOST_PLACES, 40));
        assert_eq!(mark.places.first().map(String::as_str), Some("host 1: file 0 differs"));
    }
}
