//! Values as Postgres' columns and expressions have them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::digest::Digest;

use crate::store::{
    Page,
    sqlstate::Fail,
    text::{from_json, json},
};

/// Rows on a page.
pub(super) fn limit(page: &Page) -> usize {
    usize::try_from(page.limit()).unwrap_or(usize::MAX)
}

/// As a jsonb column gives a value back.
pub(super) fn as_json<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> Result<T, Fail> {
    from_json("a value", json(value)?)
}

/// Of a request's parameters.
pub(super) fn digest_of(value: &serde_json::Value) -> String {
    Digest::of(value.to_string().as_bytes()).to_string()
}

/// Added to the database's clock.
pub(super) fn later(now: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    chrono::TimeDelta::from_std(by).ok().and_then(|by| now.checked_add_signed(by)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
