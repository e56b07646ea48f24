//! Faults that wait for certain bytes of a request.

use std::{collections::BTreeMap, sync::Mutex};

use tokio::sync::watch;

use super::lock;

/// What a trap does to the connection on which its bytes come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapAction {
    /// Both sides are reset before the bytes go on: the server never gets the whole request.
    LoseRequest,
    /// The bytes go on, the server sees an orderly end behind them, the client a reset: it will happen, and nobody is told.
    CutAfterRequest,
    /// The bytes go on; with the first bytes of the answer both sides are reset: it has happened, and nobody was told.
    LoseAnswer,
}

/// Waits for bytes towards the server.
#[derive(Clone, Debug)]
pub struct Trap {
    contains: Vec<u8>,
    action: TrapAction,
    skip: u32,
    times: u32,
}

impl Trap {
    /// Springs once, for the first piece of any request that contains these bytes; they may come in several pieces.
    pub fn new(contains: impl Into<Vec<u8>>, action: TrapAction) -> Self {
        let contains = contains.into();
        assert!(!contains.is_empty(), "a trap needs bytes to wait for");
        Self { contains, action, skip: 0, times: 1 }
    }

    /// Spares the first this many.
    pub fn skip(mut self, number: u32) -> Self {
        self.skip = number;
        self
    }

    /// Springs this often, then never again.
    pub fn times(mut self, number: u32) -> Self {
        self.times = number;
        self
    }
}

#[derive(Debug)]
struct Armed {
    trap: Trap,
    seen: u32,
    sprung: u32,
}

/// The traps of a proxy.
#[derive(Debug, Default)]
pub(super) struct Traps {
    armed: Mutex<BTreeMap<u64, Armed>>,
    springing: watch::Sender<()>,
}

/// What one connection remembers of the bytes that went by, so that what a trap waits for may come in pieces.
#[derive(Debug, Default)]
pub(super) struct Snare {
    tail: Vec<u8>,
}

/// Longest that is remembered.
const TAIL: usize = 256;

impl Traps {
    pub(super) fn set(&self, trap: Trap) -> u64 {
        let mut armed = lock(&self.armed);
        let id = armed.last_key_value().map_or(1, |(id, _)| id + 1);
        armed.insert(id, Armed { trap, seen: 0, sprung: 0 });
        id
    }

    pub(super) fn clear(&self) {
        for armed in lock(&self.armed).values_mut() {
            armed.trap.times = 0;
        }
    }

    pub(super) fn sprung(&self, id: u64) -> u32 {
        lock(&self.armed).get(&id).map_or(0, |armed| armed.sprung)
    }

    pub(super) async fn springs(&self, id: u64) {
        let mut springing = self.springing.subscribe();
        // The sender lives as long as these traps.
        let _ = springing.wait_for(|()| self.sprung(id) > 0).await;
    }

    /// The first trap that springs on this piece.
    pub(super) fn check(&self, snare: &mut Snare, piece: &[u8]) -> Option<TrapAction> {
        let mut armed = lock(&self.armed);
        if armed.values().all(|armed| armed.trap.times == 0) {
            snare.tail.clear();
            return None;
        }
        let before = snare.tail.len();
        snare.tail.extend_from_slice(piece);
        let mut action = None;
        for armed in armed.values_mut().filter(|armed| armed.trap.times > 0) {
            // Only what ends in this piece is new.
            let from = before.saturating_sub(armed.trap.contains.len() - 1);
            if !snare.tail[from..].windows(armed.trap.contains.len()).any(|window| window == armed.trap.contains) {
                continue;
            }
            armed.seen += 1;
            if armed.seen > armed.trap.skip && action.is_none() {
                armed.trap.times -= 1;
                armed.sprung += 1;
                action = Some(armed.trap.action);
            }
        }
        let spare = snare.tail.len().saturating_sub(TAIL);
        snare.tail.drain(..spare);
        drop(armed);
        if action.is_some() {
            self.springing.send_replace(());
        }
        action
    }
}
