//! How far hosts are, for people. Kept in memory and written at most once a second, so that a thousand busy hosts don't become a thousand writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use lockstep_protocol::id::Attempt;

use crate::{agents::Counters, store::HostProgress};

/// Latest counters of each host of one round.
#[derive(Debug, Default)]
pub(super) struct ProgressBoard {
    hosts: Mutex<Hosts>,
}

#[derive(Debug, Default)]
struct Hosts {
    latest: BTreeMap<u32, HostProgress>,
    unsaved: BTreeSet<u32>,
}

impl ProgressBoard {
    /// A host moved.
    pub(super) fn report(&self, host_idx: u32, attempt: Attempt, counters: &Counters) {
        let known = |value: u64| (value > 0).then_some(value);
        let progress = HostProgress {
            host_idx,
            attempt,
            bytes_done: counters.bytes_done,
            bytes_total: known(counters.bytes_total),
            files_done: counters.files_done,
            files_total: known(counters.files_total),
            bytes_transferred: counters.bytes_transferred,
            bytes_per_second: counters.bytes_per_second,
        };
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.latest.insert(host_idx, progress) != Some(progress) {
            hosts.unsaved.insert(host_idx);
        }
    }

    /// What a host was on the way to is known to be reached.
    pub(super) fn forget(&self, host_idx: u32) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).unsaved.remove(&host_idx);
    }

    /// What to write, if anything changed since this was last asked.
    pub(super) fn take_unsaved(&self) -> Option<Vec<HostProgress>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let unsaved = std::mem::take(&mut hosts.unsaved);
        let moved: Vec<_> = unsaved.iter().filter_map(|host_idx| hosts.latest.get(host_idx).copied()).collect();
        (!moved.is_empty()).then_some(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_moved_since_the_last_save_is_saved_again() {
        let board = ProgressBoard::default();
        assert_eq!(board.take_unsaved(), None);
        let counters = Counters { bytes_done: 5, bytes_total: 10, ..Counters::default() };
        board.report(1, Attempt::FIRST, &counters);
        board.report(0, Attempt::FIRST, &counters);
        let saved = board.take_unsaved().unwrap();
        assert_eq!(saved.iter().map(|host| host.host_idx).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((saved[0].bytes_total, saved[0].files_total), (Some(10), None));
        board.report(1, Attempt::FIRST, &counters);
        assert_eq!(board.take_unsaved(), None);
        board.report(1, Attempt::FIRST.next(), &counters);
        board.report(0, Attempt::FIRST.next(), &counters);
        board.forget(0);
        let moved = board.take_unsaved().unwrap();
        assert_eq!(moved.iter().map(|host| (host.host_idx, host.attempt.get())).collect::<Vec<_>>(), [(1, 2)]);
    }
}
