//! What a process is told to do where.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::Point;

/// What happens at a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// SIGKILL to the own process: no clean-up, no destructor, no flush. `kill`.
    Kill,
    /// SIGSTOP to the own process, until somebody sends SIGCONT. `stop`.
    Stop,
    /// A panic of whoever came there. `panic`.
    Panic,
    /// Whoever came there waits, blocking its thread, until the file exists; the rest of the process goes on. `wait:/path`.
    WaitFor(PathBuf),
}

/// One place, what happens there, and when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Where.
    pub point: Point,
    /// What.
    pub action: Action,
    /// At which time that the process comes there, from 1. It happens once.
    pub nth: u64,
}

/// `point=action[@n]`, several of them with `;` between. `n` is 1 if it is not said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan(pub Vec<Order>);

/// Why a plan is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanError(String);

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected point=kill|stop|panic|wait:<file>[@n];...", self.0)
    }
}

impl std::error::Error for PlanError {}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        text.split(';')
            .map(str::trim)
            .filter(|order| !order.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for Order {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let (point, rest) = text.split_once('=').ok_or_else(|| PlanError(format!("{text:?} has no =")))?;
        let point = Point::named(point.trim()).ok_or_else(|| PlanError(format!("there is no failpoint {point:?}")))?;
        let (action, nth) = match rest.rsplit_once('@') {
            None => (rest, 1),
            Some((action, nth)) => match nth.parse() {
                Ok(nth) if nth > 0 => (action, nth),
                _ => return Err(PlanError(format!("{nth:?} in {text:?} is no number from 1"))),
            },
        };
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "stop" => Action::Stop,
            None if action == "panic" => Action::Panic,
            Some(("wait", file)) if !file.is_empty() => Action::WaitFor(PathBuf::from(file)),
            _ => return Err(PlanError(format!("{action:?} in {text:?} is no action"))),
        };
        Ok(Self { point, action, nth })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_where_what_and_at_which_time() {
        let plan: Plan =
            "commit.before_put=kill; commit.after_put=stop@3 ;start.listening=wait:/tmp/go@2".parse().unwrap();
        let order = |point, action, nth| Order { point, action, nth };
        assert_eq!(
            plan.0,
            [
                order(Point::CommitBeforePut, Action::Kill, 1),
                order(Point::CommitAfterPut, Action::Stop, 3),
                order(Point::StartListening, Action::WaitFor("/tmp/go".into()), 2),
            ]
        );
        assert_eq!("".parse(), Ok(Plan::default()));
    }

    #[test]
    fn a_misspelt_plan_is_an_error_that_names_what_is_wrong() {
        for (text, wrong) in [
            ("commit.before_putt=kill", "commit.before_putt"),
            ("commit.before_put", "has no ="),
            ("commit.before_put=die", "die"),
            ("commit.before_put=kill@0", "\"0\""),
            ("commit.before_put=kill@x", "\"x\""),
            ("commit.before_put=wait:", "wait:"),
        ] {
            let error = text.parse::<Plan>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }
}
