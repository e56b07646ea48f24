//! Plants one bug and expects the explorer to find it.

use lockstep_model::explore::{Options, Outcome, World, explore};
use lockstep_protocol::planted::Bug;

/// Explores with the bug, prints what it was caught by with the shortest trace, and expects that rule; without the bug the same world is closed.
pub(crate) fn is_caught_by<W: World>(bug: Bug, world: impl Fn() -> W, rule: &str) {
    let options = Options { planted: Some(bug), ..Options::default() };
    let report = explore(&world(), &options);
    let (what, trace) = match report.outcome {
        Outcome::Violation { what, trace } => (what, trace),
        Outcome::Stuck { trace } => ("L1: no end can be reached any more".to_owned(), trace),
        outcome => panic!("{bug:?} is not caught: {outcome:?} after {} states", report.states),
    };
    println!("planted {bug:?}, after {} states, {} steps: {what}\n{trace}", report.states, steps(&trace));
    assert!(what.starts_with(rule), "{bug:?} was expected to break {rule}: {what}");
    assert_eq!(explore(&world(), &Options::default()).outcome, Outcome::Closed, "without {bug:?}");
}

fn steps(trace: &str) -> usize {
    trace.lines().filter(|line| line.trim_start().starts_with(|first: char| first.is_ascii_digit())).count()
}
