//! How far a standby is behind: what of its location's newest checkpoint the hosts don't hold yet (scenario 30).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{commit::CommitRef, id::Step};

/// A checkpoint as a look saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Point {
    /// Its place.
    pub commit: CommitRef,
    /// Of the cut.
    pub step: Step,
    /// When it was committed, by the clock of its writer's database.
    pub at: DateTime<Utc>,
}

/// How far behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lag {
    /// From what the hosts hold to the newest.
    pub steps: u64,
    /// That the pushes in between have sent: what a pull has to fetch, at most.
    pub bytes: u64,
    /// Something newer than what the hosts hold stands since then.
    pub since: DateTime<Utc>,
}

/// What looks have seen.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sighting {
    /// When the location last answered; none: never yet.
    pub at: Option<DateTime<Utc>>,
    /// Its newest checkpoint; none: it has none.
    pub newest: Option<Point>,
    /// What every host holds; none: nothing that the standby has seen.
    pub held: Option<Point>,
    /// None: the hosts hold the newest, or there is none.
    pub lag: Option<Lag>,
}

impl Sighting {
    /// The next sighting. `held`: what every host is known to hold now. `bytes`: what the pushes after that have sent.
    ///
    /// The time counts from the newest checkpoint's commit, but never from the future: the clock of another database may be ahead of this one's. While the hosts hold
    /// the same it goes on counting from the first checkpoint that they lacked.
    #[must_use]
    pub fn next(&self, newest: Option<Point>, held: Option<Point>, bytes: u64, now: DateTime<Utc>) -> Self {
        let same = |held: Option<Point>| held.map(|point| point.commit);
        let lag = newest.filter(|newest| held.is_none_or(|held| held.commit != newest.commit)).map(|newest| {
            let before = self.lag.filter(|_| same(self.held) == same(held));
            Lag {
                steps: newest.step.get().saturating_sub(held.map_or(0, |held| held.step.get())),
                bytes,
                since: before.map_or_else(|| newest.at.min(now), |before| before.since),
            }
        });
        Self { at: Some(now), newest, held, lag }
    }

    /// Whole seconds behind.
    pub fn seconds(&self, now: DateTime<Utc>) -> u64 {
        self.lag.map_or(0, |lag| (now - lag.since).num_seconds().max(0).unsigned_abs())
    }
}
