//! How a command fails: exit code, text for people, document for programs.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use lockstep_client::{ClientError, RpcProblem, v1};
use lockstep_protocol::problem::{Code, Problem};
use serde_json::{Value, json};

/// Exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// What was asked is done.
    Done = 0,
    /// The operation failed, or the round that was waited for did not succeed.
    Failed = 1,
    /// The coordinator gave no answer. (2 is a wrong command line, by clap.)
    Unreachable = 3,
    /// What the command names does not exist.
    NotFound = 4,
    /// Somebody else's state is in the way.
    Conflict = 5,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) metadata: BTreeMap<String, String>,
    /// `yes`, `after_fix` or `no`.
    pub(crate) retryable: &'static str,
    /// True if the command has put its one document on stdout already.
    pub(crate) document_given: bool,
}

impl Failure {
    /// A failure of this command itself.
    pub(crate) fn local(reason: &str, message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            reason: reason.to_owned(),
            message: message.into(),
            metadata: BTreeMap::new(),
            retryable: "after_fix",
            document_given: false,
        }
    }

    pub(crate) fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// A round or verification that ended badly, whose document was given already.
    pub(crate) fn of_problem(problem: &v1::Problem) -> Self {
        Self {
            exit: Exit::Failed,
            reason: problem.reason.clone(),
            message: problem.message.clone(),
            metadata: problem.metadata.clone().into_iter().collect(),
            retryable: retryable_name(problem.retryable()),
            document_given: true,
        }
    }

    pub(crate) fn document(&self) -> Value {
        json!({"error": {
            "reason": self.reason,
            "message": self.message,
            "metadata": self.metadata,
            "retryable": self.retryable,
        }})
    }

    fn value<'a>(&'a self, key: &str, placeholder: &'a str) -> &'a str {
        self.metadata.get(key).map_or(placeholder, String::as_str)
    }

    /// What the reader can do, as a command where there is one.
    fn advice(&self) -> Option<String> {
        let round = self.value("round.id", self.value("round", "ROUND"));
        let pipeline = self.value("pipeline.name", self.value("pipeline", "PIPELINE"));
        Some(match self.reason.as_str() {
            "UNREACHABLE" => "is it running? `lockstep dev` starts one here; name another with --coordinator URL or \
                              LOCKSTEP_COORDINATOR"
                .to_owned(),
            "ROUND_IN_PROGRESS" => {
                format!("follow it with `lockstep round watch {round}`, end it with `lockstep round cancel {round}`")
            }
            "PIPELINE_NOT_FOUND" => "`lockstep pipeline list` shows what there is".to_owned(),
            "ROUND_NOT_FOUND" => "`lockstep round list PIPELINE` shows what there is".to_owned(),
            "CHECKPOINT_NOT_FOUND" => format!("`lockstep checkpoint list {pipeline}` shows what there is"),
            "ETAG_MISMATCH" => {
                "somebody changed the pipeline meanwhile: look with `lockstep pipeline get`, then repeat".to_owned()
            }
            "PIPELINE_EXISTS" => "`lockstep pipeline apply` updates a pipeline of that name".to_owned(),
            "REQUEST_ID_REUSED" => "leave out --request-id or draw a new one".to_owned(),
            "FINGERPRINT_MISMATCH" => "if the program may start from it, repeat with --allow-fingerprint".to_owned(),
            "STORE_DENIED" | "STORE_NOT_FOUND" => {
                "credentials and bucket are looked up by the process that failed, not by this command: check its AWS \
                 environment; `lockstep probe s3://bucket/prefix` tries from here"
                    .to_owned()
            }
            _ if self.retryable == "yes" => "the same command may succeed later".to_owned(),
            _ => return None,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}: {}", self.reason, self.message)?;
        let width = self.metadata.keys().map(String::len).max().unwrap_or_default();
        for (key, value) in &self.metadata {
            let mut line = String::new();
            write!(line, "\n  {key:width$}  {value}")?;
            f.write_str(&line)?;
        }
        match self.advice() {
            Some(advice) => write!(f, "\n  -> {advice}"),
            None => Ok(()),
        }
    }
}

/// As it is written in error metadata.
pub(crate) fn retryable_name(retryable: v1::Retryable) -> &'static str {
    match retryable {
        v1::Retryable::Yes => "yes",
        v1::Retryable::AfterFix => "after_fix",
        v1::Retryable::No | v1::Retryable::Unspecified => "no",
    }
}

impl From<RpcProblem> for Failure {
    fn from(problem: RpcProblem) -> Self {
        ClientError::from(problem).into()
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            _ if error.is_unreachable() => Exit::Unreachable,
            _ if error.is_not_found() => Exit::NotFound,
            _ if error.is_conflict() => Exit::Conflict,
            _ => Exit::Failed,
        };
        let retryable = error.retryable().as_str();
        let (reason, message, metadata) = match error {
            ClientError::Unreachable { ref address, ref cause, .. } => {
                let metadata = [("coordinator", address), ("cause", cause)];
                let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone())).into();
                ("UNREACHABLE".to_owned(), format!("coordinator {address} gives no answer"), metadata)
            }
            ClientError::Problem(problem) => (problem.reason, problem.message, problem.metadata),
        };
        Self { exit, reason, message, metadata, retryable, document_given: false }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let exit = if problem.reason.code() == Code::NotFound { Exit::NotFound } else { Exit::Failed };
        Self {
            exit,
            reason: problem.reason.as_str().to_owned(),
            retryable: problem.retryable().as_str(),
            message: problem.message,
            metadata: problem.metadata,
            document_given: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        for (code, reason, exit) in [
            (Code::Aborted, "ROUND_IN_PROGRESS", 5),
            (Code::Aborted, "ETAG_MISMATCH", 5),
            (Code::AlreadyExists, "PIPELINE_EXISTS", 5),
            (Code::FailedPrecondition, "LOCATION_OWNED", 5),
            (Code::NotFound, "PIPELINE_NOT_FOUND", 4),
            (Code::NotFound, "CHECKPOINT_NOT_FOUND", 4),
            (Code::FailedPrecondition, "NO_COMMON_CHECKPOINT", 1),
            (Code::Unavailable, "DATABASE_UNAVAILABLE", 1),
        ] {
            let failure = Failure::from(RpcProblem::new(code, reason, "text"));
            assert_eq!(failure.exit as u8, exit, "{reason}");
        }
        let lost = ClientError::Unreachable { address: "a".into(), cause: "c".into(), tries: 1 };
        assert_eq!(Failure::from(lost).exit as u8, 3);
    }

    #[test]
    fn the_text_has_reason_message_values_and_what_to_do() {
        let busy = RpcProblem::new(Code::Aborted, "ROUND_IN_PROGRESS", "pipeline orders: round 7 is active")
            .with("round.id", "r-7")
            .with("pipeline.name", "orders");
        assert_eq!(
            Failure::from(busy).to_string(),
            "error: ROUND_IN_PROGRESS: pipeline orders: round 7 is active\n  pipeline.name  orders\n  round.id       r-7\n  \
             -> follow it with `lockstep round watch r-7`, end it with `lockstep round cancel r-7`"
        );
    }

    #[test]
    fn the_document_has_what_a_program_needs() {
        let denied = Problem::new(lockstep_protocol::problem::Reason::SpecInvalid, "hosts 0").with("field", "hosts");
        assert_eq!(
            Failure::from(denied).document(),
            json!({"error": {
                "reason": "SPEC_INVALID", "message": "hosts 0", "metadata": {"field": "hosts"}, "retryable": "after_fix"
            }})
        );
    }
}
