//! What can go wrong.

use serde::{Deserialize, Serialize};

/// What happens to a request. "Write" stands for whatever the request does: the same actions fit reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FaultAction {
    /// 503 `SlowDown`; nothing was done.
    SlowDown,
    /// 500 `InternalError`; nothing was done.
    InternalError,
    /// 403 `AccessDenied`; nothing was done.
    AccessDenied,
    /// Any status and S3 code; nothing was done.
    Error { status: u16, code: String },
    /// Any status and S3 code, but it was done.
    ErrorAfterWrite { status: u16, code: String },
    /// The connection is reset (RST); nothing was done.
    ResetBeforeWrite,
    /// The connection is reset once this many bytes of the request's body came in; nothing was done.
    ResetDuringBody { after_bytes: u64 },
    /// It was done; then the connection is reset instead of an answer.
    ResetAfterWrite,
    /// Waits before anything is done; a client that leaves meanwhile takes its request with it.
    Delay { ms: u64 },
    /// The body is taken in, and the write happens this much later, also if the client has long given up: a late PUT.
    /// For PutObject, UploadPart, CompleteMultipartUpload, DeleteObject and DeleteObjects.
    DelayWrite { ms: u64 },
    /// Bodies, in and out, move at no more than this.
    Throttle { bytes_per_second: u64 },
    /// The connection is closed after this many bytes of the answer's body.
    Truncate { after_bytes: u64 },
    /// One bit of the answer's body at this offset is wrong.
    Corrupt { at: u64 },
    /// Nothing is done until the rule is removed; then the request goes on as if nothing had been.
    Hang,
    /// It was done; the answer comes when the rule is removed.
    HangAfterWrite,
    /// Bodies, in and out, stop after this many bytes; they go on when the rule is removed.
    Stop { after_bytes: u64 },
    /// The connection is reset once the last byte of the answer was handed to it: whether that still arrives is up to the network.
    ResetAfterAnswer,
    /// A range is answered with the bytes that stand `by` further on, as far as the object has such. The head speaks of the range that
    /// was asked for, unless the server `admits` what it did.
    OtherRange {
        by: u64,
        #[serde(default)]
        admits: bool,
    },
    /// `Content-Length` of the answer is off by this. The body is cut there, or the connection closed for what is missing.
    WrongLength { by: i64 },
    /// A header of the answer has this value: `content-range`, `x-amz-checksum-crc32`, `etag`, ...
    AnswerHeader { name: String, value: String },
}
