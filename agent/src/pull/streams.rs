//! How many segments are fetched at once. A far store wants all that the order allows, because each waits for its answer; a near one is exhausted by a few, and more of them
//! only push each other's bytes out of the cores' caches (docs/performance.md). Pure.

use std::time::{Duration, Instant};

/// To begin with.
const FEW: usize = 4;

/// A store that answers within this is near.
const NEAR: Duration = Duration::from_millis(8);

/// Without an answer for this long, nothing more is waited for.
const PATIENCE: Duration = Duration::from_millis(25);

/// Between two looks at how fast bytes come.
const LOOK: Duration = Duration::from_millis(500);

/// Twice the segments at once must bring this much more, else they are not worth it.
const WORTH_IT: f64 = 1.4;

/// After this, more may be worth it again.
const AGAIN: Duration = Duration::from_secs(10);

/// The number, and what was tried.
#[derive(Debug)]
pub(super) struct Streams {
    most: usize,
    now: usize,
    started: Instant,
    /// When, and after how many bytes, the present number began.
    since: Option<(Instant, u64)>,
    /// Bytes a second with half the number.
    before: Option<f64>,
    look: Duration,
}

impl Streams {
    pub(super) fn new(most: usize, now: Instant) -> Self {
        Self { most, now: FEW.min(most), started: now, since: None, before: None, look: LOOK }
    }

    /// How many there may be now. `quickest` is the time of the quickest answer so far, `bytes` what came in all.
    pub(super) fn allowed(&mut self, now: Instant, quickest: Option<Duration>, bytes: u64) -> usize {
        match quickest {
            None if now.duration_since(self.started) < PATIENCE => return self.now,
            Some(quickest) if quickest <= NEAR && self.now < self.most => {}
            // Far, or busy: if it is near after all, one of the next answers will show it.
            None | Some(_) => return self.most,
        }
        let (since, then) = *self.since.get_or_insert((now, bytes));
        let time = now.duration_since(since);
        if time >= self.look {
            let rate = bytes.saturating_sub(then) as f64 / time.as_secs_f64();
            self.since = Some((now, bytes));
            if self.before.is_some_and(|before| rate < before * WORTH_IT) {
                self.now = (self.now / 2).max(1);
                self.before = None;
                self.look = AGAIN;
            } else {
                self.now = (self.now * 2).min(self.most);
                self.before = Some(rate);
                self.look = LOOK;
            }
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that are tried in so many looks, where `rate` says what a number brings.
    fn tried(most: usize, looks: u32, rate: impl Fn(usize) -> f64) -> Vec<usize> {
        let begin = Instant::now();
        let mut streams = Streams::new(most, begin);
        let mut bytes = 0.0;
        let mut numbers = Vec::new();
        for look in 0..=looks {
            let number = streams.allowed(begin + LOOK * look, Some(NEAR / 2), bytes as u64);
            bytes += rate(number);
            numbers.push(number);
        }
        numbers
    }

    #[test]
    fn a_near_store_gets_more_while_that_brings_more() {
        assert_eq!(tried(16, 4, |number| number as f64 * 1e6), [4, 8, 16, 16, 16]);
        assert_eq!(tried(16, 4, |number| number.min(8) as f64 * 1e6), [4, 8, 16, 16, 16], "16 is the most and stays");
        assert_eq!(tried(64, 5, |number| number.min(8) as f64 * 1e6), [4, 8, 16, 8, 8, 8]);
        assert_eq!(tried(64, 4, |_| 1e9), [4, 8, 4, 4, 4]);
        assert_eq!(tried(2, 3, |_| 1e9), [2, 2, 2, 2]);
    }

    #[test]
    fn it_is_tried_again_after_a_while() {
        let numbers = tried(64, 30, |_| 1e9);
        assert_eq!(numbers.iter().filter(|&&number| number == 8).count(), 2, "{numbers:?}");
    }

    #[test]
    fn a_far_store_and_one_that_does_not_answer_get_all_at_once_until_an_answer_says_that_it_is_near() {
        let begin = Instant::now();
        let mut streams = Streams::new(16, begin);
        assert_eq!(streams.allowed(begin, None, 0), 4);
        assert_eq!(streams.allowed(begin + NEAR, Some(NEAR * 2), 0), 16);
        let mut streams = Streams::new(16, begin);
        assert_eq!(streams.allowed(begin + PATIENCE, None, 0), 16);
        assert_eq!(streams.allowed(begin + PATIENCE, Some(NEAR * 2), 0), 16);
        assert_eq!(streams.allowed(begin + PATIENCE, Some(NEAR), 0), 4);
    }
}
