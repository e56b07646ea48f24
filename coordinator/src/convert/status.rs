//! The one place where a problem becomes a gRPC status. Handlers never pick a code: the reason has one.

use lockstep_proto::v1;
use lockstep_protocol::problem::{Problem, Retryable};
use lockstep_rpc::RpcProblem;
use tonic::{Code, Status};

/// The status that carries this problem: code of its reason, `ErrorInfo` with every value.
pub fn status(problem: Problem) -> Status {
    let retryable = match problem.retryable() {
        Retryable::Yes => lockstep_rpc::Retryable::Yes,
        Retryable::AfterFix => lockstep_rpc::Retryable::AfterFix,
        Retryable::No => lockstep_rpc::Retryable::No,
    };
    RpcProblem {
        code: Code::from(problem.reason.code() as i32),
        reason: problem.reason.as_str().to_owned(),
        message: problem.message,
        metadata: problem.metadata,
        retryable,
    }
    .into_status()
}

/// The same values as a message, where the problem is part of an answer.
pub fn problem(problem: &Problem) -> v1::Problem {
    let retryable = match problem.retryable() {
        Retryable::Yes => v1::Retryable::Yes,
        Retryable::AfterFix => v1::Retryable::AfterFix,
        Retryable::No => v1::Retryable::No,
    };
    v1::Problem {
        code: problem.reason.code() as i32,
        reason: problem.reason.as_str().to_owned(),
        message: problem.message.clone(),
        metadata: problem.metadata.clone().into_iter().collect(),
        retryable: retryable.into(),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::problem::Reason;

    use super::*;

    #[test]
    fn every_reason_travels_with_its_code_and_retry_class() {
        for &reason in Reason::ALL {
            let sent = Problem::new(reason, "what happened").with("round", "r");
            let received = RpcProblem::from_status(&status(sent.clone()));
            assert_eq!(received.code as i32, reason.code() as i32, "{reason}");
            assert_eq!(received.reason, reason.as_str());
            assert_eq!(received.retryable.as_str(), reason.retryable().as_str(), "{reason}");
            assert_eq!(received.metadata, sent.metadata);
            assert_eq!(problem(&sent).code, reason.code() as i32);
        }
    }

    #[test]
    fn a_site_that_knows_better_overrides_the_retry_class() {
        let sent = Problem::new(Reason::Integrity, "a defect").retry(Retryable::No);
        assert_eq!(RpcProblem::from_status(&status(sent.clone())).retryable.as_str(), "no");
        assert_eq!(problem(&sent).retryable(), v1::Retryable::No);
    }
}
