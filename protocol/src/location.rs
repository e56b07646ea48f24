//! Locations: endpoint, bucket and prefix. Region and addressing style only help to reach one; they are no part of its identity.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::problem::{Problem, Reason};

/// Longest prefix in bytes: S3 keys have 1024, the longest key below a prefix takes less than 300.
pub const MAX_PREFIX_BYTES: usize = 512;

/// Where a pipeline keeps its checkpoints.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "RawLocation", into = "RawLocation")]
pub struct Location {
    endpoint: Option<String>,
    bucket: String,
    prefix: String,
    region: Option<String>,
    force_path_style: bool,
}

/// Unchecked values of a location, as specs and messages carry them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLocation {
    /// Name of the bucket.
    pub bucket: String,
    /// Without leading or trailing slash; may be empty.
    #[serde(default)]
    pub prefix: String,
    /// None: the region of the process that uses it.
    #[serde(default)]
    pub region: Option<String>,
    /// None: `AWS_ENDPOINT_URL` of the process that uses it, else AWS.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    #[serde(default)]
    pub force_path_style: bool,
}

fn refuse(field: &str, value: &str, why: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} {value:?} {why}")).with("field", field).with("value", value)
}

fn check_bucket(bucket: &str) -> Result<(), Problem> {
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = bucket.as_bytes();
    if bucket.contains('/') {
        return Err(refuse("bucket", bucket, "contains a slash; put what follows it into prefix"));
    }
    let good = (3..=63).contains(&bytes.len())
        && bytes.iter().all(|&c| alnum(c) || c == b'-' || c == b'.')
        && bytes.first().copied().is_some_and(alnum)
        && bytes.last().copied().is_some_and(alnum)
        && !bucket.contains("..");
    if good {
        Ok(())
    } else {
        Err(refuse(
            "bucket",
            bucket,
            "is no bucket name: 3 to 63 characters of a-z, 0-9, - and ., see S3's bucket naming rules",
        ))
    }
}

fn check_prefix(prefix: &str) -> Result<(), Problem> {
    if prefix.len() > MAX_PREFIX_BYTES {
        return Err(refuse("prefix", prefix, "is longer than 512 bytes"));
    }
    if prefix.is_empty() {
        return Ok(());
    }
    if prefix.starts_with('/') || prefix.ends_with('/') {
        return Err(refuse("prefix", prefix, "begins or ends with a slash; leave it out"));
    }
    for component in prefix.split('/') {
        if component.is_empty() {
            return Err(refuse("prefix", prefix, "has an empty component"));
        }
        if component == "." || component == ".." {
            return Err(refuse("prefix", prefix, "has a component . or .."));
        }
    }
    if prefix.chars().any(char::is_control) {
        return Err(refuse("prefix", prefix, "contains a control character"));
    }
    Ok(())
}

fn check_endpoint(endpoint: &str) -> Result<String, Problem> {
    let trimmed = endpoint.trim_end_matches('/');
    let rest = trimmed
        .strip_prefix("http://")
        .or_else(|| trimmed.strip_prefix("https://"))
        .ok_or_else(|| refuse("endpoint", endpoint, "does not begin with http:// or https://"))?;
    if rest.is_empty() || rest.contains(['/', '?', '#', ' ']) {
        return Err(refuse("endpoint", endpoint, "is not scheme://host[:port]"));
    }
    if rest.contains('@') {
        // Never shown: what stands before the @ may be a secret.
        return Err(Problem::new(
            Reason::SpecInvalid,
            "endpoint holds credentials: leave them out, they come from the AWS chain of each process",
        )
        .with("field", "endpoint"));
    }
    Ok(trimmed.to_ascii_lowercase())
}

impl TryFrom<RawLocation> for Location {
    type Error = Problem;
    fn try_from(raw: RawLocation) -> Result<Self, Problem> {
        check_bucket(&raw.bucket)?;
        check_prefix(&raw.prefix)?;
        let endpoint = raw.endpoint.filter(|e| !e.is_empty()).as_deref().map(check_endpoint).transpose()?;
        let region = raw.region.filter(|r| !r.is_empty());
        if let Some(region) = &region
            && !region.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        {
            return Err(refuse("region", region, "has characters other than letters, digits and -"));
        }
        Ok(Self { endpoint, bucket: raw.bucket, prefix: raw.prefix, region, force_path_style: raw.force_path_style })
    }
}

impl From<Location> for RawLocation {
    fn from(location: Location) -> Self {
        Self {
            bucket: location.bucket,
            prefix: location.prefix,
            region: location.region,
            endpoint: location.endpoint,
            force_path_style: location.force_path_style,
        }
    }
}

impl Location {
    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Without leading or trailing slash; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// None: the region of the process that uses it.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// None: `AWS_ENDPOINT_URL` of the process that uses it, else AWS.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// Path-style addressing.
    pub const fn force_path_style(&self) -> bool {
        self.force_path_style
    }

    /// The same location with an endpoint where it had none: what a process with `AWS_ENDPOINT_URL` means by it.
    #[must_use]
    pub fn or_endpoint(mut self, default: Option<&str>) -> Self {
        if self.endpoint.is_none() {
            self.endpoint = default.filter(|e| !e.is_empty()).map(|e| e.trim_end_matches('/').to_ascii_lowercase());
        }
        self
    }

    /// Same endpoint, bucket and prefix.
    pub fn same_place(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.bucket == other.bucket && self.prefix == other.prefix
    }

    /// Same place, or one inside the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let inside = |outer: &str, inner: &str| {
            outer.is_empty() || inner == outer || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
        };
        self.endpoint == other.endpoint
            && self.bucket == other.bucket
            && (inside(&self.prefix, &other.prefix) || inside(&other.prefix, &self.prefix))
    }

    /// The full key of a relative one.
    pub fn full_key(&self, relative: &str) -> String {
        if self.prefix.is_empty() { relative.to_owned() } else { format!("{}/{relative}", self.prefix) }
    }

    /// Back from a full key; None if it lies outside this location.
    pub fn relative_key<'k>(&self, full: &'k str) -> Option<&'k str> {
        if self.prefix.is_empty() {
            return Some(full);
        }
        full.strip_prefix(self.prefix.as_str())?.strip_prefix('/')
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let mut mark = '?';
        let mut pair = |f: &mut fmt::Formatter<'_>, key: &str, value: &str| {
            let result = write!(f, "{mark}{key}={value}");
            mark = '&';
            result
        };
        if let Some(endpoint) = &self.endpoint {
            pair(f, "endpoint", endpoint)?;
        }
        if let Some(region) = &self.region {
            pair(f, "region", region)?;
        }
        if self.force_path_style {
            pair(f, "path_style", "true")?;
        }
        Ok(())
    }
}

impl FromStr for Location {
    type Err = Problem;

    /// `s3://bucket/prefix?endpoint=http://host:port&region=r&path_style=true`, as flags carry it.
    fn from_str(text: &str) -> Result<Self, Problem> {
        let rest = text.strip_prefix("s3://").ok_or_else(|| {
            refuse("location", text, "does not begin with s3://, as in s3://bucket/prefix?endpoint=...&region=...")
        })?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let mut raw = RawLocation {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_end_matches('/').to_owned(),
            ..RawLocation::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("endpoint", value)) => raw.endpoint = Some(value.replace("%3A", ":").replace("%2F", "/")),
                Some(("region", value)) => raw.region = Some(value.to_owned()),
                Some(("path_style", "true")) => raw.force_path_style = true,
                Some(("path_style", "false")) => raw.force_path_style = false,
                _ => {
                    return Err(refuse(
                        "location",
                        text,
                        "has an unknown parameter; known are endpoint, region and path_style=true|false",
                    ));
                }
            }
        }
        Self::try_from(raw)
    }
}
