//! When a call is sent again, and after how long.

use std::time::Duration;

use lockstep_rpc::Retryable;

use crate::error::ClientError;

/// How calls are repeated. The defaults outlast the restart of a coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first included; at least one is made. 8.
    pub tries: u32,
    /// Pause after the first try; it doubles from try to try. 100 ms. Each pause is cut by a random share of up to
    /// half of it, so that many callers don't come back as one.
    pub first_pause: Duration,
    /// No pause is longer. 5 s.
    pub longest_pause: Duration,
    /// No try begins later than this after the first. 30 s.
    pub budget: Duration,
    /// Whether `ROUND_IN_PROGRESS` is waited out, within `budget` and without counting as tries. False.
    pub wait_for_round: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries: 8,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            budget: Duration::from_secs(30),
            wait_for_round: false,
        }
    }
}

impl RetryPolicy {
    /// Every call is sent once.
    pub fn never() -> Self {
        Self { tries: 1, ..Self::default() }
    }

    /// The pause before the next try, if there shall be one after `tries` of them, the last of which met `error`.
    pub(crate) fn pause(&self, error: &ClientError, tries: u32, elapsed: Duration) -> Option<Duration> {
        let waits = match error.reason() {
            "ROUND_IN_PROGRESS" if self.wait_for_round => true,
            "ROUND_IN_PROGRESS" | "ETAG_MISMATCH" => return None,
            _ => false,
        };
        if !waits && (error.retryable() != Retryable::Yes || tries >= self.tries) {
            return None;
        }
        let pause = self.backoff(tries);
        (elapsed + pause <= self.budget).then_some(pause)
    }

    /// The jittered pause after `tries` tries in a row that failed.
    pub(crate) fn backoff(&self, tries: u32) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << tries.saturating_sub(1).min(20));
        doubled.min(self.longest_pause).mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use lockstep_rpc::RpcProblem;
    use tonic::Code;

    use super::*;

    fn problem(code: Code, reason: &str) -> ClientError {
        RpcProblem::new(code, reason, "text").into()
    }

    #[test]
    fn only_what_may_succeed_later_is_tried_again() {
        let policy = RetryPolicy::default();
        let unreachable = ClientError::Unreachable { address: String::new(), cause: String::new(), tries: 1 };
        for (error, again) in [
            (unreachable, true),
            (problem(Code::Unavailable, "DATABASE_UNAVAILABLE"), true),
            (problem(Code::FailedPrecondition, "NO_COMMON_CHECKPOINT"), false),
            (problem(Code::InvalidArgument, "SPEC_INVALID"), false),
            (problem(Code::Aborted, "ROUND_IN_PROGRESS"), false),
            (problem(Code::Aborted, "ETAG_MISMATCH"), false),
        ] {
            assert_eq!(policy.pause(&error, 1, Duration::ZERO).is_some(), again, "{error}");
        }
    }

    #[test]
    fn an_active_round_is_waited_out_when_asked_and_within_the_budget() {
        let policy = RetryPolicy { wait_for_round: true, ..RetryPolicy::default() };
        let busy = problem(Code::Aborted, "ROUND_IN_PROGRESS");
        assert!(policy.pause(&busy, 100, Duration::ZERO).is_some());
        assert!(policy.pause(&busy, 100, policy.budget).is_none());
    }

    #[test]
    fn tries_and_budget_both_end_it() {
        let policy = RetryPolicy::default();
        let down = problem(Code::Unavailable, "DATABASE_UNAVAILABLE");
        assert!(policy.pause(&down, policy.tries - 1, Duration::ZERO).is_some());
        assert!(policy.pause(&down, policy.tries, Duration::ZERO).is_none());
        assert!(policy.pause(&down, 1, policy.budget).is_none());
        assert!(RetryPolicy::never().pause(&down, 1, Duration::ZERO).is_none());
    }

    #[test]
    fn pauses_double_with_jitter_up_to_the_longest() {
        let policy = RetryPolicy::default();
        for (tries, full) in [(1, 100), (2, 200), (4, 800), (7, 5_000), (u32::MAX, 5_000)] {
            let full = Duration::from_millis(full);
            let pause = policy.backoff(tries);
            assert!(pause >= full / 2 && pause <= full, "{tries}: {pause:?}");
        }
    }
}
