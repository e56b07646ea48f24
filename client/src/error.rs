//! What can go wrong with a call, seen from the caller.

use std::error::Error as _;

use lockstep_rpc::{Retryable, RpcProblem, code_name};
use tonic::{Code, Status};

/// Reasons that say: somebody else's state is in the way.
const CONFLICTS: [&str; 9] = [
    "ROUND_IN_PROGRESS",
    "TRANSFER_IN_PROGRESS",
    "ROUND_NOT_CANCELLABLE",
    "ETAG_MISMATCH",
    "PIPELINE_EXISTS",
    "LOCATION_OWNED",
    "FENCED",
    "SUPERSEDED",
    "REQUEST_ID_REUSED",
];

/// Why a call failed, after all tries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No answer: the coordinator can't be reached, or was lost before it answered. The call may or may not have
    /// happened; the same call with the same `request_id` finds out.
    #[error("coordinator {address} is unreachable: {cause} ({tries} tries)")]
    Unreachable {
        /// As given to the client.
        address: String,
        /// What the last try met.
        cause: String,
        /// How often the call was sent.
        tries: u32,
    },
    /// The coordinator answered with a typed error, or the client itself refused the call.
    #[error(transparent)]
    Problem(#[from] RpcProblem),
}

impl ClientError {
    pub(crate) fn from_status(status: &Status, address: &str, tries: u32) -> Self {
        let problem = RpcProblem::from_status(status);
        if is_lost(status, &problem) {
            Self::Unreachable { address: address.to_owned(), cause: problem.message, tries }
        } else {
            Self::Problem(problem)
        }
    }

    /// The typed error, unless the coordinator was unreachable.
    pub fn problem(&self) -> Option<&RpcProblem> {
        match self {
            Self::Unreachable { .. } => None,
            Self::Problem(problem) => Some(problem),
        }
    }

    /// The reason in the error table, such as `ROUND_IN_PROGRESS`; `UNREACHABLE` if there was no answer.
    pub fn reason(&self) -> &str {
        self.problem().map_or("UNREACHABLE", |problem| &problem.reason)
    }

    /// Whether there was no answer.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether what the call named does not exist.
    pub fn is_not_found(&self) -> bool {
        self.problem().is_some_and(|problem| problem.code == Code::NotFound)
    }

    /// Whether somebody else's state is in the way: an active round, a newer version, another owner.
    pub fn is_conflict(&self) -> bool {
        self.problem().is_some_and(|problem| CONFLICTS.contains(&problem.reason.as_str()))
    }

    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> Retryable {
        self.problem().map_or(Retryable::Yes, |problem| problem.retryable)
    }
}

/// Whether this is no word of the coordinator but how a lost connection comes back. A status of the coordinator's has a
/// reason of the error table; one made up on the way has the name of its code, and if tonic made it here, its source.
/// `CANCELLED` is both, and nothing of ours makes that up on the way: typed, it is the coordinator's.
fn is_lost(status: &Status, problem: &RpcProblem) -> bool {
    let bare = problem.reason == code_name(problem.code);
    match problem.code {
        Code::Cancelled => !RpcProblem::is_typed(status),
        Code::Unavailable | Code::DeadlineExceeded => bare,
        Code::Unknown | Code::Internal => bare && status.source().is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(code: Code, reason: &str) -> ClientError {
        ClientError::from_status(&RpcProblem::new(code, reason, "text").into_status(), "http://c:7400", 1)
    }

    #[test]
    fn a_bare_unavailable_is_unreachable_and_a_typed_one_is_a_problem() {
        let bare = ClientError::from_status(&Status::unavailable("connection refused"), "http://c:7400", 3);
        assert!(bare.is_unreachable());
        assert_eq!(bare.retryable(), Retryable::Yes);
        assert_eq!(bare.to_string(), "coordinator http://c:7400 is unreachable: connection refused (3 tries)");
        let typed = received(Code::Unavailable, "DATABASE_UNAVAILABLE");
        assert_eq!((typed.is_unreachable(), typed.reason()), (false, "DATABASE_UNAVAILABLE"));
        let lost = ClientError::from_status(&Status::cancelled("timeout expired"), "http://c:7400", 1);
        assert!(lost.is_unreachable());
        let by_somebody = received(Code::Cancelled, "CANCELLED");
        assert_eq!((by_somebody.is_unreachable(), by_somebody.reason()), (false, "CANCELLED"));
        // These are made up by our own channel too, typed and with the name of their code.
        for (code, reason) in [(Code::Unavailable, "UNAVAILABLE"), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")] {
            assert!(received(code, reason).is_unreachable(), "{reason}");
        }
    }

    #[test]
    fn not_found_and_conflicts_are_told_apart() {
        for (code, reason, not_found, conflict) in [
            (Code::NotFound, "ROUND_NOT_FOUND", true, false),
            (Code::Aborted, "ROUND_IN_PROGRESS", false, true),
            (Code::AlreadyExists, "PIPELINE_EXISTS", false, true),
            (Code::FailedPrecondition, "LOCATION_OWNED", false, true),
            (Code::FailedPrecondition, "NO_COMMON_CHECKPOINT", false, false),
        ] {
            let error = received(code, reason);
            assert_eq!((error.is_not_found(), error.is_conflict()), (not_found, conflict), "{reason}");
        }
    }
}
