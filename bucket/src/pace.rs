//! A limit to bandwidth, shared by all that moves under it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What an idle line saves up: enough to make good what timers oversleep, and no more than a 40th of two seconds.
const BURST: Duration = Duration::from_millis(50);

/// What is best taken at once. A larger take is as fair on average, but comes in jerks.
const SLICE: Duration = Duration::from_millis(20);

/// No slice is smaller, so that slow lines are not all headers and system calls.
const MIN_SLICE: u64 = 1 << 10;

/// A bandwidth limit. Whoever wants to move bytes [takes](Self::take) them first; takers are served in the order they came. In any stretch of time no more
/// passes than the rate permits and 50 ms' worth.
#[derive(Debug)]
pub struct Pace {
    rate: u64,
    /// When all that was taken so far is paid for.
    paid_until: Mutex<Instant>,
}

impl Pace {
    /// At most this many bytes in a second; 0 counts as 1.
    pub fn new(bytes_per_second: u64) -> Self {
        let start = Instant::now();
        Self { rate: bytes_per_second.max(1), paid_until: Mutex::new(start.checked_sub(BURST).unwrap_or(start)) }
    }

    /// Waits until `bytes` more may move. A take that is given up while it waits costs nothing.
    pub async fn take(&self, bytes: u64) {
        let now = Instant::now();
        let due = self.book(now, bytes);
        if due > now {
            let booking = Booking { pace: self, bytes };
            tokio::time::sleep_until(due).await;
            // It was used: nothing is given back.
            std::mem::forget(booking);
        }
    }

    /// How much is best taken at once.
    pub fn slice(&self) -> u64 {
        let per_second = u64::try_from(Duration::from_secs(1).as_millis() / SLICE.as_millis()).unwrap_or(1);
        (self.rate / per_second).max(MIN_SLICE)
    }

    /// Books `bytes`, and says when they may move.
    fn book(&self, now: Instant, bytes: u64) -> Instant {
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let start = now.checked_sub(BURST).map_or(*paid_until, |saved| saved.max(*paid_until));
        *paid_until = start + self.cost(bytes);
        *paid_until
    }

    fn cost(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        // A day is longer than any deadline.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(Duration::from_secs(86_400))
    }
}

/// Bytes that are booked, but have not moved.
struct Booking<'p> {
    pace: &'p Pace,
    bytes: u64,
}

impl Drop for Booking<'_> {
    fn drop(&mut self) {
        let mut paid_until = self.pace.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paid_until = paid_until.checked_sub(self.pace.cost(self.bytes)).unwrap_or(*paid_until);
    }
}

#[cfg(test)]
mod tests {
    use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

    use super::*;

    const RATE: u64 = 40 << 20;

    /// What `takers` that take and take let through in `time` of virtual time, if each wakes up to `late` after its turn.
    fn passed(pace: &Pace, sizes: &[u64], time: Duration, late: Duration) -> u64 {
        let begin = Instant::now();
        let mut passed = 0;
        let mut turns: BinaryHeap<_> =
            sizes.iter().enumerate().map(|(taker, &size)| Reverse((pace.book(begin, size), taker))).collect();
        while let Some(Reverse((due, taker))) = turns.pop() {
            if due > begin + time {
                break;
            }
            passed += sizes[taker];
            let woken = if due > begin { due + late.mul_f64(rand::random_range(0.0..1.0)) } else { begin };
            turns.push(Reverse((pace.book(woken, sizes[taker]), taker)));
        }
        passed
    }

    #[test]
    fn over_two_seconds_the_rate_holds_within_5_percent_whatever_is_taken_and_by_however_many() {
        for sizes in [
            &[1][..],
            &[1_000],
            &[128 << 10],
            &[1 << 20],
            &[1, 1, 1],
            &[128 << 10; 16],
            &[1 << 20, 1, 64 << 10, 1 << 20, 5_000],
        ] {
            // One byte at a time needs a slow line, or else the test is what is slow.
            let rate = if sizes.contains(&1) && sizes.len() <= 3 { 100_000 } else { RATE };
            for late in [0, 2, 20] {
                let pace = Pace::new(rate);
                let passed = passed(&pace, sizes, Duration::from_secs(2), Duration::from_millis(late));
                let permitted = 2 * rate;
                let deviation = (passed as f64 - permitted as f64) / permitted as f64;
                assert!(deviation.abs() <= 0.05, "{sizes:?}, up to {late} ms late: {passed} instead of {permitted}");
            }
        }
    }

    #[test]
    fn an_idle_line_saves_up_50_ms_and_no_more() {
        let pace = Pace::new(1_000_000);
        let later = Instant::now() + Duration::from_secs(60);
        assert!(pace.book(later, 50_000) <= later);
        assert_eq!(pace.book(later, 10_000), later + Duration::from_millis(10));
    }

    #[tokio::test]
    async fn a_take_that_is_given_up_costs_nothing() {
        let pace = Arc::new(Pace::new(1000));
        pace.take(50).await;
        {
            let hour = pace.take(3_600_000);
            tokio::pin!(hour);
            assert!(futures::poll!(hour).is_pending());
        }
        // A second's worth at most; with the hour still booked this would not end.
        tokio::time::timeout(Duration::from_secs(30), pace.take(100)).await.unwrap();
    }

    #[tokio::test]
    async fn takes_wait_for_their_turn() {
        let pace = Pace::new(1_000_000);
        let begin = Instant::now();
        for _ in 0..25 {
            pace.take(10_000).await;
        }
        // 250 ms' worth less the burst.
        assert!(begin.elapsed() >= Duration::from_millis(200), "{:?}", begin.elapsed());
    }
}
