//! Which checkpoint is re-read next, and how much of it, so that all are read again and again within a number of bytes a day.
//!
//! The allowance grows with time, evenly, up to what one day gives, so that neither midnight nor a pause makes a burst. A read may take more than is left, since a
//! run of files is read whole: what it took too much is waited for. Verified longest ago comes first; a checkpoint that was never verified was so at best when it was made.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::{
    commit::CommitRef,
    planted::{self, Bug},
};

/// How much of a checkpoint is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every byte.
    All,
    /// Its documents, and that every object they name is there and long enough.
    Structure,
}

impl Scope {
    /// As rows and messages carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Structure => "structure",
        }
    }
}

/// Bytes that were left at a time; negative: taken ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Allowance {
    /// At `at`.
    pub left: i64,
    /// By the database's clock.
    pub at: DateTime<Utc>,
}

const DAY_MICROS: i128 = 24 * 3600 * 1_000_000;

/// More is never allowed at once than a day gives.
fn most(bytes_per_day: u64) -> i64 {
    i64::try_from(bytes_per_day).unwrap_or(i64::MAX)
}

impl Allowance {
    /// Of a budget that was just switched on: a quarter of an hour's worth, so that something shows.
    pub fn first(bytes_per_day: u64, now: DateTime<Utc>) -> Self {
        Self { left: most(bytes_per_day) / 96, at: now }
    }

    /// What is left now. A clock that went back gives nothing and takes nothing.
    #[must_use]
    pub fn grown(self, bytes_per_day: u64, now: DateTime<Utc>) -> Self {
        let passed = i128::from((now - self.at).num_microseconds().unwrap_or(i64::MAX).max(0));
        let grown = i128::from(self.left) + i128::from(bytes_per_day) * passed / DAY_MICROS;
        let left = i64::try_from(grown).unwrap_or(i64::MAX).min(most(bytes_per_day));
        Self { left, at: now.max(self.at) }
    }

    /// After so many bytes were read.
    #[must_use]
    pub fn spent(self, bytes: u64) -> Self {
        let bytes = if planted::is(Bug::ReadingsAreNotCharged) { 0 } else { bytes };
        Self { left: self.left.saturating_sub(most(bytes)), at: self.at }
    }

    /// How long until something may be read; none: now. With a budget of 0, never: a day, and asked again.
    pub fn wait(self, bytes_per_day: u64) -> Option<Duration> {
        if self.left > 0 && bytes_per_day > 0 {
            return None;
        }
        let day = Duration::from_secs(24 * 3600);
        if bytes_per_day == 0 {
            return Some(day);
        }
        let missing = i128::from(1 - self.left);
        let micros = missing.saturating_mul(DAY_MICROS).div_euclid(i128::from(bytes_per_day)) + 1;
        Some(u64::try_from(micros).map_or(day, Duration::from_micros).min(day))
    }
}

/// Where to go on in a checkpoint: the part and the run of files in it, both counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Position {
    /// Of the commit document.
    pub part: u32,
    /// Of the part, in the order of its objects and offsets.
    pub run: u32,
}

/// A checkpoint that may be re-read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which.
    pub commit: CommitRef,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When all of its bytes were last read; none: never.
    pub verified_at: Option<DateTime<Utc>>,
    /// It bears a mark: nothing more is to be learnt from it.
    pub damaged: bool,
}

/// A checkpoint rests so long before it is read again, whatever the budget: a budget that exceeds all there is reads each once an hour.
pub const REST: TimeDelta = TimeDelta::hours(1);

/// The one to read next; none: all rest. Of several that are equally old the newest commit, which is the likeliest to be pulled.
pub fn next(candidates: &[Candidate], now: DateTime<Utc>) -> Option<CommitRef> {
    candidates
        .iter()
        .filter(|one| !one.damaged && one.verified_at.is_none_or(|at| now - at >= REST))
        .min_by_key(|one| {
            let place = (one.commit.generation, one.commit.seq);
            (one.verified_at.unwrap_or(one.created_at), std::cmp::Reverse(place))
        })
        .map(|one| one.commit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        id::{Generation, RoundId, Seq},
    };
    use uuid::Uuid;

    const DAY: u64 = 86_400_000;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn candidate(seq: u64, created: i64, verified: Option<i64>) -> Candidate {
        let commit = CommitRef {
            generation: Generation::FIRST,
            seq: Seq::new(seq).unwrap(),
            round: RoundId::new(Uuid::from_u128(u128::from(seq))),
            digest: Digest::of(b"x"),
        };
        Candidate { commit, created_at: at(created), verified_at: verified.map(at), damaged: false }
    }

    #[test]
    fn an_allowance_grows_evenly_and_never_beyond_a_day() {
        let begun = Allowance { left: 0, at: at(0) };
        assert_eq!(begun.grown(DAY, at(10)).left, 10_000);
        assert_eq!(begun.grown(DAY, at(10 * 86_400)).left, i64::try_from(DAY).unwrap());
        assert_eq!(begun.grown(DAY, at(-5)), begun, "a clock that goes back");
        assert_eq!(Allowance { left: 7, at: at(0) }.grown(0, at(86_400)).left, 0, "switched off");
    }

    #[test]
    fn what_was_read_ahead_is_waited_for() {
        let debt = Allowance { left: 500, at: at(0) }.spent(10_500);
        assert_eq!(debt.left, -10_000);
        let wait = debt.wait(DAY).unwrap();
        assert!(wait > Duration::from_secs(10) && wait < Duration::from_millis(10_010), "{wait:?}");
        assert_eq!(debt.grown(DAY, at(11)).wait(DAY), None);
        assert_eq!(debt.wait(0), Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn the_one_verified_longest_ago_is_next_and_a_new_one_counts_from_its_making() {
        let all = [candidate(1, 0, Some(50_000)), candidate(2, 40_000, None), candidate(3, 60_000, Some(60_001))];
        assert_eq!(next(&all, at(100_000)), Some(all[1].commit));
        let all = [candidate(1, 0, Some(30_000)), candidate(2, 40_000, None)];
        assert_eq!(next(&all, at(100_000)), Some(all[0].commit));
        let all = [candidate(1, 0, None), candidate(2, 0, None)];
        assert_eq!(next(&all, at(1)), Some(all[1].commit), "the newest of equals");
    }

    #[test]
    fn what_was_verified_just_now_and_what_is_damaged_rests() {
        let rested = candidate(1, 0, Some(10));
        assert_eq!(next(&[rested], at(3_000)), None);
        assert_eq!(next(&[rested], at(3_610)), Some(rested.commit));
        assert_eq!(next(&[Candidate { damaged: true, ..rested }], at(1_000_000)), None);
        assert_eq!(next(&[], at(0)), None);
    }
}
