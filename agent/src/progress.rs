//! Counters of a transfer: written by whoever moves bytes, read by status calls.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The rate is that of about this long.
const WINDOW: Duration = Duration::from_secs(5);

/// Samples closer together than this say nothing new.
const SPACING: Duration = Duration::from_millis(250);

/// Live counters. All relaxed: they inform people and wake nobody.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    files_done: AtomicU64,
    files_total: AtomicU64,
    bytes_transferred: Arc<AtomicU64>,
    throttled: AtomicU64,
    samples: Mutex<VecDeque<(Instant, u64)>>,
}

/// The counters at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) bytes_done: u64,
    pub(crate) bytes_total: u64,
    pub(crate) files_done: u64,
    pub(crate) files_total: u64,
    pub(crate) bytes_transferred: u64,
    pub(crate) throttled: u64,
    pub(crate) bytes_per_second: u64,
    pub(crate) elapsed: Duration,
}

impl Snapshot {
    /// Whether anything but the clock moved since `earlier`.
    pub(crate) fn moved_since(&self, earlier: &Self) -> bool {
        let counters =
            |s: &Self| (s.bytes_done, s.bytes_total, s.files_done, s.files_total, s.bytes_transferred, s.throttled);
        counters(self) != counters(earlier)
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            files_done: AtomicU64::new(0),
            files_total: AtomicU64::new(0),
            bytes_transferred: Arc::default(),
            throttled: AtomicU64::new(0),
            samples: Mutex::new(VecDeque::new()),
        }
    }

    pub(crate) fn expect(&self, files: u64, bytes: u64) {
        self.files_total.store(files, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of the checkpoint are dealt with, however.
    pub(crate) fn done(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn file_done(&self) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes went over the network.
    pub(crate) fn transferred(&self, bytes: u64) {
        self.bytes_transferred.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes on their way out as they go.
    pub(crate) fn meter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes_transferred)
    }

    /// The store asked to slow down: nothing moves, and yet nothing hangs.
    pub(crate) fn throttled(&self) {
        self.throttled.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn bytes_transferred(&self) -> u64 {
        self.bytes_transferred.load(Ordering::Relaxed)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let bytes_transferred = self.bytes_transferred();
        Snapshot {
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            files_done: self.files_done.load(Ordering::Relaxed),
            files_total: self.files_total.load(Ordering::Relaxed),
            bytes_transferred,
            throttled: self.throttled.load(Ordering::Relaxed),
            bytes_per_second: self.rate(Instant::now(), bytes_transferred),
            elapsed: self.started.elapsed(),
        }
    }

    fn rate(&self, now: Instant, bytes: u64) -> u64 {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.is_empty() {
            samples.push_back((self.started, 0));
        }
        while samples.len() > 1 && samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            samples.pop_front();
        }
        let rate = samples.front().map_or(0, |(at, then)| {
            let millis = now.duration_since(*at).as_millis().max(1);
            u64::try_from(u128::from(bytes.saturating_sub(*then)) * 1000 / millis).unwrap_or(u64::MAX)
        });
        if samples.back().is_some_and(|(at, _)| now.duration_since(*at) >= SPACING) {
            samples.push_back((now, bytes));
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_forgets_what_lies_before_its_window() {
        let progress = Progress::new();
        let start = progress.started;
        assert_eq!(progress.rate(start + Duration::from_secs(1), 1000), 1000);
        for second in 2..20 {
            progress.rate(start + Duration::from_secs(second), 1000);
        }
        assert_eq!(progress.rate(start + Duration::from_secs(20), 1000), 0);
    }

    #[test]
    fn time_alone_is_no_movement() {
        let progress = Progress::new();
        let before = progress.snapshot();
        assert!(!progress.snapshot().moved_since(&before));
        progress.done(1);
        assert!(progress.snapshot().moved_since(&before));
    }
}
