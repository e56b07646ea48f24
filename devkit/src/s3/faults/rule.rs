//! Which requests go wrong.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::FaultAction;
use crate::s3::operation::Target;

/// Which requests, and what happens to them. Every condition that is set must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// As AWS names it: `PutObject`, `GetObject`, `HeadObject`, `ListObjectsV2`, `UploadPart`, ...
    #[serde(default)]
    pub operation: Option<String>,
    /// `PUT`, `GET`, ...
    #[serde(default)]
    pub method: Option<String>,
    #[serde(default)]
    pub bucket: Option<String>,
    /// Of the key, or of a listing's prefix.
    #[serde(default)]
    pub key_prefix: Option<String>,
    #[serde(default)]
    pub key_contains: Option<String>,
    /// The access key id that the request claims.
    #[serde(default)]
    pub access_key: Option<String>,
    /// The first this many that match are spared.
    #[serde(default)]
    pub skip: u64,
    /// How many are hit after that; unlimited if unset.
    #[serde(default)]
    pub times: Option<u64>,
    /// None is hit later than this after the first that was: a bad minute. Unlimited if unset.
    #[serde(default)]
    pub lasts_ms: Option<u64>,
    /// Of those, this share is hit at random: 0 to 1. See `Faults::seed`.
    #[serde(default = "always")]
    pub probability: f64,
    pub action: FaultAction,
}

fn always() -> f64 {
    1.0
}

impl FaultRule {
    /// Hits every request.
    pub fn new(action: FaultAction) -> Self {
        Self {
            operation: None,
            method: None,
            bucket: None,
            key_prefix: None,
            key_contains: None,
            access_key: None,
            skip: 0,
            times: None,
            lasts_ms: None,
            probability: always(),
            action,
        }
    }

    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = Some(method.into());
        self
    }

    pub fn bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = Some(bucket.into());
        self
    }

    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.key_prefix = Some(prefix.into());
        self
    }

    pub fn key_contains(mut self, part: impl Into<String>) -> Self {
        self.key_contains = Some(part.into());
        self
    }

    pub fn access_key(mut self, access_key: impl Into<String>) -> Self {
        self.access_key = Some(access_key.into());
        self
    }

    /// Spares the first `number` that match.
    pub fn skip(mut self, number: u64) -> Self {
        self.skip = number;
        self
    }

    /// Hits no more than `number`.
    pub fn times(mut self, number: u64) -> Self {
        self.times = Some(number);
        self
    }

    /// Hits only the `number`th that matches, counted from 1.
    pub fn nth(self, number: u64) -> Self {
        self.skip(number.saturating_sub(1)).times(1)
    }

    /// Hits none later than this after the first.
    pub fn lasts(mut self, time: Duration) -> Self {
        self.lasts_ms = Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Hits this share, 0 to 1.
    pub fn probability(mut self, share: f64) -> Self {
        self.probability = share;
        self
    }

    pub(super) fn matches(&self, method: &str, target: &Target) -> bool {
        let equal = |wanted: &Option<String>, is: Option<&str>| wanted.is_none() || wanted.as_deref() == is;
        let key = target.key.as_deref().unwrap_or_default();
        equal(&self.operation, Some(target.operation))
            && equal(&self.method, Some(method))
            && equal(&self.bucket, target.bucket.as_deref())
            && equal(&self.access_key, target.access_key.as_deref())
            && self.key_prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix))
            && self.key_contains.as_ref().is_none_or(|part| key.contains(part))
    }
}
