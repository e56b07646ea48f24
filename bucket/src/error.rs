//! What a store answered when it did not do what was asked. Mapped by HTTP status first and S3 code second: servers agree on the former.

use std::fmt;

use lockstep_protocol::problem::{Problem, Reason, Retryable};

/// Which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// PUT with `If-None-Match: *`.
    Create,
    /// PUT.
    Put,
    /// GET of a whole document.
    Get,
    /// GET of a range.
    GetRange,
    /// HEAD.
    Head,
    /// ListObjectsV2.
    List,
    /// DELETE.
    Delete,
    /// DeleteObjects.
    DeleteMany,
    /// CreateMultipartUpload.
    CreateMultipart,
    /// UploadPart.
    UploadPart,
    /// CompleteMultipartUpload.
    CompleteMultipart,
    /// AbortMultipartUpload.
    AbortMultipart,
    /// ListMultipartUploads.
    ListMultipart,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Create,
        Self::Put,
        Self::Get,
        Self::GetRange,
        Self::Head,
        Self::List,
        Self::Delete,
        Self::DeleteMany,
        Self::CreateMultipart,
        Self::UploadPart,
        Self::CompleteMultipart,
        Self::AbortMultipart,
        Self::ListMultipart,
    ];

    /// As metrics, spans and messages show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Put => "put",
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
            Self::DeleteMany => "delete_many",
            Self::CreateMultipart => "create_multipart",
            Self::UploadPart => "upload_part",
            Self::CompleteMultipart => "complete_multipart",
            Self::AbortMultipart => "abort_multipart",
            Self::ListMultipart => "list_multipart",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// 401, 403, credentials unknown, expired or missing.
    Denied,
    /// No such bucket, key or upload.
    NotFound,
    /// Asked to slow down.
    Throttled,
    /// 5xx, no connection, reset, time-out, no progress.
    Unavailable,
    /// The clocks of both sides are too far apart.
    ClockSkew,
    /// 409: another request for the same key is under way.
    Conflict,
    /// 412: a condition did not hold.
    Precondition,
    /// 3xx, other 4xx, 501: the store can't or won't do this, for instance because the region is another.
    BadRequest,
    /// The store sent other bytes than it was asked for or than it announced, or says that it got others.
    Integrity,
    /// A document above the allowed size.
    TooLarge,
}

impl StoreErrorKind {
    /// Classifies an answer: status first, S3 code second. No status: the answer never came.
    pub fn of(status: Option<u16>, code: Option<&str>) -> Self {
        let code = code.unwrap_or_default();
        match status {
            None => Self::Unavailable,
            // Some servers (and CompleteMultipartUpload of all) report an error inside a 200.
            Some(200..=299) => Self::of_code(code).unwrap_or(Self::Unavailable),
            Some(401 | 403) if code == "RequestTimeTooSkewed" => Self::ClockSkew,
            Some(401 | 403) => Self::Denied,
            Some(404 | 410) => Self::NotFound,
            Some(408) => Self::Unavailable,
            Some(409) => Self::Conflict,
            Some(412) => Self::Precondition,
            Some(429) => Self::Throttled,
            Some(503) if matches!(code, "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded") => {
                Self::Throttled
            }
            Some(501) => Self::BadRequest,
            Some(500..=599) => Self::Unavailable,
            Some(400) => Self::of_code(code).unwrap_or(Self::BadRequest),
            Some(_) => Self::BadRequest,
        }
    }

    /// For the statuses that say little.
    fn of_code(code: &str) -> Option<Self> {
        match code {
            "AccessDenied"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidAccessKeyId"
            | "SignatureDoesNotMatch" => Some(Self::Denied),
            "RequestTimeTooSkewed" => Some(Self::ClockSkew),
            "NoSuchKey" | "NoSuchBucket" | "NoSuchUpload" => Some(Self::NotFound),
            "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded" => Some(Self::Throttled),
            "RequestTimeout" | "IncompleteBody" | "InternalError" | "ServiceUnavailable" => Some(Self::Unavailable),
            "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
                Some(Self::Integrity)
            }
            _ => None,
        }
    }

    /// As metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::ClockSkew => "clock_skew",
            Self::Conflict => "conflict",
            Self::Precondition => "precondition",
            Self::BadRequest => "bad_request",
            Self::Integrity => "integrity",
            Self::TooLarge => "too_large",
        }
    }

    /// The row of the error table.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Denied => Reason::StoreDenied,
            Self::NotFound => Reason::StoreNotFound,
            Self::Throttled => Reason::StoreThrottled,
            // 409 and 412 pass by themselves: the next read tells what stands there.
            Self::Unavailable | Self::Conflict | Self::Precondition => Reason::StoreUnavailable,
            Self::ClockSkew => Reason::StoreClockSkew,
            Self::BadRequest => Reason::LocationUnsuitable,
            Self::Integrity => Reason::Integrity,
            Self::TooLarge => Reason::ManifestInvalid,
        }
    }

    /// What to do about it, where the kind tells.
    const fn advice(self) -> &'static str {
        match self {
            Self::Denied => "check the credentials of this process and their rights on bucket and prefix",
            Self::NotFound => "check bucket, prefix and endpoint",
            Self::ClockSkew => "set the clock of this machine",
            Self::BadRequest => "check region, endpoint and addressing style",
            Self::Throttled
            | Self::Unavailable
            | Self::Conflict
            | Self::Precondition
            | Self::Integrity
            | Self::TooLarge => "",
        }
    }
}

/// A request that did not do what was asked. Holds no secret: neither headers nor bodies of requests get in here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// Which request.
    pub operation: Operation,
    /// Of the location.
    pub bucket: String,
    /// The full key, or prefix of a listing.
    pub key: String,
    /// None: no answer came.
    pub http_status: Option<u16>,
    /// As the store gave it.
    pub s3_code: Option<String>,
    /// As the store gave it.
    pub request_id: Option<String>,
    /// What kind of failure.
    pub kind: StoreErrorKind,
    /// What the store or the connection said.
    pub message: Box<str>,
}

impl StoreError {
    /// An error as a server answers it, classified by [`StoreErrorKind::of`].
    pub fn answered(
        operation: Operation,
        (bucket, key): (&str, &str),
        http_status: Option<u16>,
        s3_code: Option<&str>,
        message: impl Into<Box<str>>,
    ) -> Self {
        Self {
            operation,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            http_status,
            s3_code: s3_code.map(str::to_owned),
            request_id: None,
            kind: StoreErrorKind::of(http_status, s3_code),
            message: message.into(),
        }
    }

    /// Whether the same request may succeed later without anybody's doing. The SDK takes the server's clock over from every answer, a refusal too, and signs the next request by it: so a
    /// clock that is off costs a process its first request, and only a server that doesn't tell its time needs somebody to set it.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Throttled
                | StoreErrorKind::Unavailable
                | StoreErrorKind::Conflict
                | StoreErrorKind::Precondition
                | StoreErrorKind::Integrity
                | StoreErrorKind::ClockSkew
        )
    }

    /// Whether a write that ended so surely did not happen by this try. Everything else is unknown.
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Denied | StoreErrorKind::NotFound | StoreErrorKind::BadRequest | StoreErrorKind::TooLarge
        )
    }

    /// As the error table has it, with every value the message shows.
    pub fn problem(&self) -> Problem {
        let advice = self.kind.advice();
        let message = if advice.is_empty() { self.to_string() } else { format!("{self}; {advice}") };
        let mut problem = Problem::new(self.kind.reason(), message)
            .with("operation", self.operation)
            .with("bucket", &self.bucket)
            .with("key", &self.key);
        if self.kind == StoreErrorKind::ClockSkew {
            problem = problem.retry(Retryable::Yes);
        }
        if let Some(status) = self.http_status {
            problem = problem.with("http_status", status);
        }
        if let Some(code) = &self.s3_code {
            problem = problem.with("s3_code", code);
        }
        if let Some(id) = &self.request_id {
            problem = problem.with("request_id", id);
        }
        problem
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        error.problem()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of s3://{}/{} failed: ", self.operation, self.bucket, self.key)?;
        match self.http_status {
            Some(status) => write!(f, "status {status}")?,
            None => f.write_str("no answer")?,
        }
        if let Some(code) = &self.s3_code {
            write!(f, ", code {code}")?;
        }
        if let Some(id) = &self.request_id {
            write!(f, ", request id {id}")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_decides_and_the_code_refines() {
        use StoreErrorKind as Kind;
        for (status, code, kind) in [
            (None, None, Kind::Unavailable),
            (Some(403), None, Kind::Denied),
            (Some(403), Some("SignatureDoesNotMatch"), Kind::Denied),
            (Some(403), Some("InvalidAccessKeyId"), Kind::Denied),
            // A code that contradicts its status: the status holds.
            (Some(403), Some("NoSuchKey"), Kind::Denied),
            (Some(500), Some("AccessDenied"), Kind::Unavailable),
            (Some(403), Some("RequestTimeTooSkewed"), Kind::ClockSkew),
            (Some(404), Some("NoSuchBucket"), Kind::NotFound),
            (Some(404), None, Kind::NotFound),
            (Some(409), Some("ConditionalRequestConflict"), Kind::Conflict),
            (Some(412), Some("PreconditionFailed"), Kind::Precondition),
            (Some(429), None, Kind::Throttled),
            (Some(503), Some("SlowDown"), Kind::Throttled),
            (Some(503), None, Kind::Unavailable),
            (Some(501), Some("NotImplemented"), Kind::BadRequest),
            (Some(301), Some("PermanentRedirect"), Kind::BadRequest),
            (Some(400), Some("ExpiredToken"), Kind::Denied),
            (Some(400), Some("BadDigest"), Kind::Integrity),
            (Some(400), Some("RequestTimeout"), Kind::Unavailable),
            (Some(400), Some("AuthorizationHeaderMalformed"), Kind::BadRequest),
            (Some(200), Some("InternalError"), Kind::Unavailable),
        ] {
            assert_eq!(Kind::of(status, code), kind, "{status:?} {code:?}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_worth_another_try_and_says_what_to_do_if_that_fails() {
        let error =
            StoreError::answered(Operation::Get, ("bucket", "key"), Some(403), Some("RequestTimeTooSkewed"), "");
        let problem = error.problem();
        assert!(error.is_retryable() && !error.is_refusal());
        assert_eq!((problem.reason, problem.retryable()), (Reason::StoreClockSkew, Retryable::Yes));
        assert!(problem.message.contains("set the clock of this machine"), "{problem}");
    }

    #[test]
    fn nothing_is_a_refusal_and_retryable_at_once() {
        for status in [
            None,
            Some(200),
            Some(301),
            Some(400),
            Some(403),
            Some(404),
            Some(409),
            Some(412),
            Some(429),
            Some(500),
            Some(503),
        ] {
            let error = StoreError::answered(Operation::Put, ("bucket", "key"), status, None, "");
            assert_ne!(error.is_refusal(), error.is_retryable(), "{error}");
        }
    }
}
