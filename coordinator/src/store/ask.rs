//! A request for a round, of either kind.

use std::time::Duration;

use lockstep_protocol::{
    id::{RequestId, RoundId},
    round::RetryPolicy,
};
use serde_json::{Value, json};

use super::{
    AdmitPull, AdmitPush, Caller, PipelineSelector, Trigger,
    sqlstate::Fail,
    text::{bigint, json as stored_json},
};

/// What is asked for, of either kind.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Push(AdmitPush),
    Pull(AdmitPull),
}

/// A request with the id its round will have: a call that is repeated after a lost answer finds its own round.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) round: RoundId,
    pub(super) caller: Caller,
}

impl Ask {
    pub(super) const fn pipeline(&self) -> &PipelineSelector {
        match self {
            Self::Push(push) => &push.pipeline,
            Self::Pull(pull) => &pull.pipeline,
        }
    }

    pub(super) const fn request_id(&self) -> Option<RequestId> {
        match self {
            Self::Push(push) => push.request_id,
            Self::Pull(pull) => pull.request_id,
        }
    }

    pub(super) const fn deadline(&self) -> Duration {
        match self {
            Self::Push(push) => push.deadline,
            Self::Pull(pull) => pull.deadline,
        }
    }

    pub(super) const fn retry(&self) -> RetryPolicy {
        match self {
            Self::Push(push) => push.retry,
            Self::Pull(pull) => pull.retry,
        }
    }

    pub(super) const fn trigger(&self) -> Trigger {
        match self {
            Self::Push(push) => push.trigger,
            Self::Pull(pull) => Trigger::of(pull.follows.is_some()),
        }
    }

    pub(super) const fn wants(&self) -> &'static str {
        match self {
            Self::Push(_) => "no push",
            Self::Pull(_) => "no pull",
        }
    }

    /// What the same request id may not change (S14). The retry policy is the coordinator's, not the caller's.
    pub(super) fn parameters(&self) -> Result<Value, Fail> {
        Ok(match self {
            Self::Push(push) => json!({
                "kind": "push",
                "wanted": stored_json(&push.wanted)?,
                "force": push.force,
                "deadline_ms": bigint(u64::try_from(push.deadline.as_millis()).unwrap_or(u64::MAX)),
            }),
            Self::Pull(pull) => json!({
                "kind": "pull",
                "request": stored_json(&pull.request)?,
                "deadline_ms": bigint(u64::try_from(pull.deadline.as_millis()).unwrap_or(u64::MAX)),
            }),
        })
    }
}
