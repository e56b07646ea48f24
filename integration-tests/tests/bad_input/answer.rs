//! What a bad call may be answered with.

use lockstep_client::RpcProblem;
use lockstep_protocol::problem::Reason;
use tonic::{Code, Status};

/// What a call came to, for the figures.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// Nothing was wrong with it.
    Accepted,
    /// A row of the error table.
    Reason,
    /// Not even a message: gRPC's own code.
    Transport,
}

/// Fails unless the answer is a row of the error table, or gRPC's own word for what is no message.
pub(crate) fn check(what: &str, answer: &Result<Option<bytes::Bytes>, Status>) -> Kind {
    let Err(status) = answer else { return Kind::Accepted };
    let problem = RpcProblem::from_status(status);
    if let Some(reason) = Reason::ALL.iter().find(|reason| reason.as_str() == problem.reason) {
        assert_eq!(reason.code() as i32, i32::from(status.code()), "{what}: {status:?}");
        assert!(!matches!(reason, Reason::AgentPanic | Reason::LocalIo), "{what}: {status:?}");
        return Kind::Reason;
    }
    let message = status.message();
    let undecodable = status.code() == Code::Internal && message.contains("decode");
    let too_large = matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) && message.contains("large");
    assert!(undecodable || too_large, "{what}: no row of the error table: {status:?}");
    Kind::Transport
}
