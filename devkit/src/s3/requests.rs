//! The request log: who asked what and what came of it, exact and in the order of arrival.
//!
//! A request is in the log from the moment its head has arrived, so a test that finds none knows that none was made.

mod totals;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use serde::Serialize;
use tokio::sync::Notify;

pub use totals::RequestTotals;

use totals::{Sums, Totals};

use super::operation::Target;
use super::store::now_ms;

/// How many requests are remembered; older ones are forgotten first.
pub const REMEMBERED: usize = 100_000;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// Counts from 1 for each server, never reused; also the tail of `x-amz-request-id`.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub arrived_ms: u64,
    /// As AWS names it (`PutObject`), or `Unsupported`.
    pub operation: String,
    pub method: String,
    pub bucket: Option<String>,
    /// The object's key; for listings the prefix.
    pub key: Option<String>,
    /// The access key id that the request claimed, whether or not the signature was right.
    pub access_key: Option<String>,
    /// The headers `traceparent`, `range`, `if-match` and `if-none-match`, where sent.
    pub traceparent: Option<String>,
    pub range: Option<String>,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    /// `None` while unanswered, and for good if the connection was cut instead of an answer.
    pub status: Option<u16>,
    /// Bytes of the body that came in, as they came over the wire.
    pub bytes_in: u64,
    /// Bytes of the answer's body that were handed to the connection.
    pub bytes_out: u64,
    /// Whether the answer was handed over to its end.
    pub finished: bool,
    /// The fault rules that took part, by id.
    pub faults: Vec<u64>,
}

/// A request while it is under way.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) seq: u64,
    pub(crate) target: Target,
    arrived_ms: u64,
    method: String,
    traceparent: Option<String>,
    range: Option<String>,
    if_match: Option<String>,
    if_none_match: Option<String>,
    status: AtomicU16,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    finished: AtomicBool,
    faults: Vec<u64>,
    log: RequestLog,
}

impl Exchange {
    pub(crate) fn request_id(&self) -> String {
        format!("LOCKSTEP{:016X}", self.seq)
    }

    pub(crate) fn came_in(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::AcqRel);
        self.log.inner.changed.notify_waiters();
    }

    pub(crate) fn went_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Ordering::AcqRel);
        self.log.inner.changed.notify_waiters();
    }

    pub(crate) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Release);
        self.log.inner.changed.notify_waiters();
    }

    pub(crate) fn finished(&self) {
        self.finished.store(true, Ordering::Release);
        self.log.inner.changed.notify_waiters();
    }

    fn sums(&self) -> Sums {
        let status = self.status.load(Ordering::Acquire);
        Sums {
            requests: 1,
            failed: u64::from(status == 0 || status >= 400),
            bytes_in: self.bytes_in.load(Ordering::Acquire),
            bytes_out: self.bytes_out.load(Ordering::Acquire),
        }
    }

    fn record(&self) -> RequestRecord {
        let status = self.status.load(Ordering::Acquire);
        RequestRecord {
            seq: self.seq,
            arrived_ms: self.arrived_ms,
            operation: self.target.operation.to_owned(),
            method: self.method.clone(),
            bucket: self.target.bucket.clone(),
            key: self.target.key.clone(),
            access_key: self.target.access_key.clone(),
            traceparent: self.traceparent.clone(),
            range: self.range.clone(),
            if_match: self.if_match.clone(),
            if_none_match: self.if_none_match.clone(),
            status: (status != 0).then_some(status),
            bytes_in: self.bytes_in.load(Ordering::Acquire),
            bytes_out: self.bytes_out.load(Ordering::Acquire),
            finished: self.finished.load(Ordering::Acquire),
            faults: self.faults.clone(),
        }
    }
}

/// The log of a server. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RequestLog {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    exchanges: Mutex<VecDeque<Arc<Exchange>>>,
    /// Sums of those that are no longer remembered, as they were then. Locked after `exchanges`.
    forgotten: Mutex<Totals>,
    changed: Notify,
}

impl RequestLog {
    /// What is remembered, oldest first.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.since(0)
    }

    /// What came after the request with this number, oldest first.
    pub fn since(&self, seq: u64) -> Vec<RequestRecord> {
        let exchanges = self.exchanges();
        let from = exchanges.partition_point(|exchange| exchange.seq <= seq);
        exchanges.range(from..).map(|exchange| exchange.record()).collect()
    }

    /// All requests since the log was last cleared, forgotten ones too, in sums by access key and operation.
    pub fn totals(&self) -> Vec<RequestTotals> {
        let exchanges = self.exchanges();
        let mut totals = self.forgotten().clone();
        for exchange in exchanges.iter() {
            totals.add(exchange.target.access_key.as_ref(), exchange.target.operation, exchange.sums());
        }
        drop(exchanges);
        totals.shown()
    }

    /// How many of the remembered requests are like this.
    pub fn count(&self, like: impl Fn(&RequestRecord) -> bool) -> usize {
        self.requests().iter().filter(|request| like(request)).count()
    }

    /// How many of the remembered requests were this operation (`PutObject`).
    pub fn count_of(&self, operation: &str) -> usize {
        self.exchanges().iter().filter(|exchange| exchange.target.operation == operation).count()
    }

    /// Waits until at least `number` remembered requests are like this, and returns those; put a timeout around it.
    pub async fn wait_for(&self, number: usize, like: impl Fn(&RequestRecord) -> bool) -> Vec<RequestRecord> {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            // Armed before looking: a change in between is not missed.
            changed.as_mut().enable();
            let found: Vec<RequestRecord> = self.requests().into_iter().filter(|request| like(request)).collect();
            if found.len() >= number {
                return found;
            }
            changed.await;
        }
    }

    /// Forgets everything; numbers go on.
    pub fn clear(&self) {
        let mut exchanges = self.exchanges();
        *self.forgotten() = Totals::default();
        exchanges.clear();
    }

    pub(crate) fn next_seq(&self) -> u64 {
        self.inner.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn begin(
        &self,
        seq: u64,
        method: &str,
        target: Target,
        headers: &HeaderMap,
        faults: Vec<u64>,
    ) -> Arc<Exchange> {
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let exchange = Arc::new(Exchange {
            seq,
            target,
            arrived_ms: now_ms(),
            method: method.to_owned(),
            traceparent: value("traceparent"),
            range: value("range"),
            if_match: value("if-match"),
            if_none_match: value("if-none-match"),
            status: AtomicU16::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            faults,
            log: self.clone(),
        });
        let mut exchanges = self.exchanges();
        // Numbers are drawn before the lock is taken, so a later one may be here already.
        let at = exchanges.partition_point(|other| other.seq < exchange.seq);
        exchanges.insert(at, Arc::clone(&exchange));
        if exchanges.len() > REMEMBERED
            && let Some(oldest) = exchanges.pop_front()
        {
            self.forgotten().add(oldest.target.access_key.as_ref(), oldest.target.operation, oldest.sums());
        }
        drop(exchanges);
        self.inner.changed.notify_waiters();
        exchange
    }

    fn forgotten(&self) -> MutexGuard<'_, Totals> {
        self.inner.forgotten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchanges(&self) -> MutexGuard<'_, VecDeque<Arc<Exchange>>> {
        self.inner.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
