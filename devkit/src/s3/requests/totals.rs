//! The request log in sums: cheap to ask for, however many requests there were.

use std::collections::BTreeMap;

use serde::Serialize;

/// All requests of one operation by one access key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestTotals {
    /// As the requests claimed it.
    pub access_key: Option<String>,
    /// As AWS names it.
    pub operation: String,
    /// How many there were.
    pub requests: u64,
    /// How many of these were answered with an error or not at all.
    pub failed: u64,
    /// Bytes of bodies that came in.
    pub bytes_in: u64,
    /// Bytes of bodies that went out.
    pub bytes_out: u64,
}

/// What one request adds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

/// By access key and operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Totals(BTreeMap<(Option<String>, &'static str), Sums>);

impl Totals {
    pub(super) fn add(&mut self, access_key: Option<&String>, operation: &'static str, sums: Sums) {
        let total = self.0.entry((access_key.cloned(), operation)).or_default();
        total.requests += sums.requests;
        total.failed += sums.failed;
        total.bytes_in += sums.bytes_in;
        total.bytes_out += sums.bytes_out;
    }

    pub(super) fn shown(self) -> Vec<RequestTotals> {
        let row = |((access_key, operation), sums): ((Option<String>, &'static str), Sums)| RequestTotals {
            access_key,
            operation: operation.to_owned(),
            requests: sums.requests,
            failed: sums.failed,
            bytes_in: sums.bytes_in,
            bytes_out: sums.bytes_out,
        };
        self.0.into_iter().map(row).collect()
    }
}
