//! The one shape in which errors cross the wire: `google.rpc.Status` with an `ErrorInfo`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of every error of ours.
pub const ERROR_DOMAIN: &str = "lockstep";

/// The metadata key that says whether the same call may be repeated.
const RETRYABLE: &str = "retryable";

/// Bytes that an error may take in HTTP/2 headers, where it travels twice: percent-encoded in `grpc-message` and as
/// base64 in `grpc-status-details-bin`. Common limits on headers are 8 KiB (grpc-go, C++) and 16 KiB (hyper); an error
/// above them would arrive as a reset stream, its reason lost.
const HEADER_BUDGET: usize = 6 * 1024;

/// Bytes of the percent-encoded message; metadata get what it leaves of the budget.
const MESSAGE_BUDGET: usize = 2 * 1024;

/// `ErrorInfo.reason` is "at most 63 characters".
const REASON_LIMIT: usize = 63;

/// Type URLs, field tags and lengths around message and metadata.
const FRAMING: usize = 128;

const CUT: &str = "...";

/// Whether the same call may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retryable {
    /// The same call may succeed later.
    Yes,
    /// The same call succeeds only after something else has changed.
    AfterFix,
    /// The same call never succeeds.
    No,
}

impl Retryable {
    /// As it is written in metadata: `yes`, `after_fix`, `no`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::AfterFix => "after_fix",
            Self::No => "no",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Yes, Self::AfterFix, Self::No].into_iter().find(|retryable| retryable.as_str() == text)
    }

    /// What a code says by itself. `Cancelled` and `DeadlineExceeded` are how a lost answer comes back, like
    /// `Unavailable`: the call may or may not have happened, and all of ours are idempotent. Codes that name a state
    /// or a permission wait for somebody to change it.
    pub const fn of_code(code: Code) -> Self {
        match code {
            Code::Unavailable | Code::Aborted | Code::ResourceExhausted | Code::Cancelled | Code::DeadlineExceeded => {
                Self::Yes
            }
            Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::NotFound => {
                Self::AfterFix
            }
            _ => Self::No,
        }
    }
}

impl fmt::Display for Retryable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as one side of an RPC tells it to the other.
///
/// On the wire it is bounded: [`Self::into_status`] cuts message and metadata so that together they take at most 6 KiB
/// of HTTP/2 headers, since whatever exceeds a peer's header limit is lost with its reason. A cut text ends in `...`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct RpcProblem {
    /// The gRPC code; reasons, not codes, tell errors apart.
    pub code: Code,
    /// `ErrorInfo.reason`, such as `ROUND_IN_PROGRESS`. Of a status without one, the name of its code.
    pub reason: String,
    /// For people; lower case, without a full stop, with the values that matter.
    pub message: String,
    /// The values in the message, by name. The key `retryable` is taken.
    pub metadata: BTreeMap<String, String>,
    /// Whether the same call may be repeated.
    pub retryable: Retryable,
}

impl RpcProblem {
    /// A problem that is as retryable as its code says.
    pub fn new(code: Code, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            metadata: BTreeMap::new(),
            retryable: Retryable::of_code(code),
        }
    }

    /// Adds a value that the message shows.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        self.metadata.insert(key.into(), value.to_string());
        self
    }

    /// Overrides what the code says about repeating the call.
    #[must_use]
    pub fn retryable(mut self, retryable: Retryable) -> Self {
        self.retryable = retryable;
        self
    }

    /// The status to answer with, bounded as the type's documentation says.
    pub fn into_status(self) -> Status {
        let message = cut(&self.message, MESSAGE_BUDGET, percent_encoded_length);
        let reason = cut(&self.reason, REASON_LIMIT, char::len_utf8);
        let details = (HEADER_BUDGET - encoded_length(&message)) / 4 * 3;
        let left = details.saturating_sub(message.len() + reason.len() + FRAMING);
        let mut metadata = bounded(self.metadata, left);
        metadata.insert(RETRYABLE.to_owned(), self.retryable.as_str().to_owned());
        let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata);
        Status::with_error_details(self.code, message, details)
    }

    /// Whether a side of ours made the status: it carries an `ErrorInfo` of ours. What tonic or a stranger makes up never does.
    pub fn is_typed(status: &Status) -> bool {
        status.get_details_error_info().is_some_and(|info| info.domain == ERROR_DOMAIN)
    }

    /// Reads a status back. One without an `ErrorInfo` of ours (from the transport, or a stranger's server) gets the
    /// name of its code as reason (`UNAVAILABLE`) and is retryable if [`Retryable::of_code`] says so.
    pub fn from_status(status: &Status) -> Self {
        let code = status.code();
        let problem = Self::new(code, code_name(code), status.message());
        let Some(info) = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN) else {
            return problem;
        };
        let mut metadata: BTreeMap<_, _> = info.metadata.into_iter().collect();
        let retryable = metadata.remove(RETRYABLE).and_then(|text| Retryable::parse(&text));
        Self { reason: info.reason, metadata, retryable: retryable.unwrap_or(problem.retryable), ..problem }
    }
}

impl From<RpcProblem> for Status {
    fn from(problem: RpcProblem) -> Self {
        problem.into_status()
    }
}

impl From<&Status> for RpcProblem {
    fn from(status: &Status) -> Self {
        Self::from_status(status)
    }
}

impl From<Status> for RpcProblem {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

/// The name of a code as gRPC's specification writes it, such as `DEADLINE_EXCEEDED`.
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Metadata in at most `budget` bytes: first the longest values are cut, harder and harder, then whole entries go.
fn bounded(metadata: BTreeMap<String, String>, budget: usize) -> HashMap<String, String> {
    // Two tags and lengths an entry, each a byte or two, and the entry's own.
    let size = |key: &str, value: usize| key.len() + value + 12;
    let fits =
        |limit: usize| metadata.iter().map(|(key, value)| size(key, value.len().min(limit))).sum::<usize>() <= budget;
    let limit = [usize::MAX, 1024, 512, 256, 128, 64].into_iter().find(|&limit| fits(limit)).unwrap_or(64);
    let mut left = budget;
    metadata
        .into_iter()
        .map(|(key, value)| (key, cut(&value, limit, char::len_utf8)))
        .take_while(|(key, value)| {
            let fits = size(key, value.len()) <= left;
            left = left.saturating_sub(size(key, value.len()));
            fits
        })
        .collect()
}

/// `text` if it weighs at most `limit`, else as much of its beginning as fits together with the mark of the cut.
fn cut(text: &str, limit: usize, weight: impl Fn(char) -> usize) -> String {
    if text.chars().map(&weight).sum::<usize>() <= limit {
        return text.to_owned();
    }
    let mut left = limit.saturating_sub(CUT.len());
    let kept: String = text
        .chars()
        .take_while(|&character| {
            let fits = weight(character) <= left;
            left = left.saturating_sub(weight(character));
            fits
        })
        .collect();
    kept + CUT
}

fn encoded_length(text: &str) -> usize {
    text.chars().map(percent_encoded_length).sum()
}

/// Bytes of a character in `grpc-message`: an upper bound of what tonic encodes as `%XX`.
fn percent_encoded_length(character: char) -> usize {
    match character {
        ' ' | '"' | '#' | '%' | '<' | '>' | '`' | '?' | '{' | '}' => 3,
        '!'..='~' => 1,
        other => 3 * other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
    }

    #[test]
    fn a_problem_survives_the_wire() {
        let sent = RpcProblem::new(Code::Aborted, "ROUND_IN_PROGRESS", "pipeline orders: round 7 is active")
            .with("pipeline.name", "orders")
            .with("round.no", 7);
        let received = RpcProblem::from_status(&sent.clone().into_status());
        assert_eq!(received, sent);
        assert_eq!(received.retryable, Retryable::Yes);
    }

    #[test]
    fn retryable_said_by_the_sender_wins_over_the_code() {
        for retryable in [Retryable::Yes, Retryable::AfterFix, Retryable::No] {
            let sent = RpcProblem::new(Code::Aborted, "SUPERSEDED", "superseded").retryable(retryable);
            assert_eq!(RpcProblem::from_status(&sent.into_status()).retryable, retryable);
        }
    }

    #[test]
    fn a_bare_status_gets_reason_and_retryable_from_its_code() {
        for (code, reason, retryable) in [
            (Code::Unavailable, "UNAVAILABLE", Retryable::Yes),
            (Code::Aborted, "ABORTED", Retryable::Yes),
            (Code::ResourceExhausted, "RESOURCE_EXHAUSTED", Retryable::Yes),
            (Code::Cancelled, "CANCELLED", Retryable::Yes),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", Retryable::Yes),
            (Code::FailedPrecondition, "FAILED_PRECONDITION", Retryable::AfterFix),
            (Code::InvalidArgument, "INVALID_ARGUMENT", Retryable::No),
            (Code::Unknown, "UNKNOWN", Retryable::No),
        ] {
            let problem = RpcProblem::from_status(&Status::new(code, "text"));
            assert_eq!((problem.reason.as_str(), problem.retryable), (reason, retryable));
            assert_eq!(problem.message, "text");
        }
    }

    #[test]
    fn the_error_info_of_another_domain_is_not_ours() {
        let details = ErrorDetails::with_error_info("NOPE", "example.com", HashMap::new());
        let status = Status::with_error_details(Code::Internal, "text", details);
        assert_eq!(RpcProblem::from_status(&status).reason, "INTERNAL");
    }

    #[test]
    fn details_that_do_not_decode_leave_code_and_message() {
        let status = Status::with_details(Code::NotFound, "gone", vec![0xff, 0x01, 0x02].into());
        let problem = RpcProblem::from_status(&status);
        assert_eq!((problem.reason.as_str(), problem.message.as_str()), ("NOT_FOUND", "gone"));
    }

    #[test]
    fn no_error_outgrows_the_headers_of_its_answer() {
        for character in ["a", " ", "%", "é", "漢", "\n", "🦀"] {
            for (message, keys, value) in [(10, 3, 10_000), (10_000, 3, 10_000), (10_000, 500, 100), (0, 1, 6_000)] {
                let mut problem = RpcProblem::new(Code::DataLoss, "INTEGRITY", character.repeat(message));
                for key in 0..keys {
                    problem = problem.with(format!("key-{key:04}"), character.repeat(value));
                }
                let status = problem.into_status();
                // grpc-status, content-type and the names of the headers come on top of the budget.
                assert!(headers(&status) <= HEADER_BUDGET + 128, "{character:?} {message} {keys} {value}");
                let received = RpcProblem::from_status(&status);
                assert_eq!((received.reason.as_str(), received.retryable), ("INTEGRITY", Retryable::No));
                assert!(!received.metadata.is_empty());
            }
        }
    }

    #[test]
    fn a_long_value_is_cut_and_the_short_ones_stay_whole() {
        let status = RpcProblem::new(Code::PermissionDenied, "STORE_DENIED", "denied")
            .with("bucket", "acme")
            .with("detail", "x".repeat(9_000))
            .with("key", "orders/commits/1.json")
            .into_status();
        let received = RpcProblem::from_status(&status);
        assert_eq!(received.metadata["bucket"], "acme");
        assert_eq!(received.metadata["key"], "orders/commits/1.json");
        assert!(received.metadata["detail"].len() >= 1_000 && received.metadata["detail"].ends_with("xxx..."));
    }
}
