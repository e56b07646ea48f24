//! What an exploration must end with, and its figures on standard output.

use std::fmt::Debug;

use lockstep_model::explore::{Options, Outcome, World, explore};
use lockstep_protocol::planted::Bug;

/// The world is closed: no violation, and the goal can be reached from everywhere.
pub(crate) fn closed(name: &str, world: &impl World, bounds: &impl Debug) {
    let report = explore(world, &Options::default());
    println!(
        "{name}: {} states, {} transitions, depth {}, {:.1} s; {bounds:?}",
        report.states,
        report.transitions,
        report.depth,
        report.took.as_secs_f64()
    );
    match report.outcome {
        Outcome::Closed => {}
        Outcome::Violation { what, trace } => panic!("{name}: {what}\n{trace}"),
        Outcome::Stuck { trace } => panic!("{name}: no end can be reached any more\n{trace}"),
        Outcome::TooLarge => panic!("{name}: more than {} states", report.states),
    }
}

/// With the bug a rule breaks, and the shortest trace is printed.
pub(crate) fn caught(bug: Bug, world: &impl World, rule: &str) {
    let report = explore(world, &Options { planted: Some(bug), ..Options::default() });
    let (what, trace) = match report.outcome {
        Outcome::Violation { what, trace } => (what, trace),
        Outcome::Stuck { trace } => ("L1: no end can be reached any more".to_owned(), trace),
        outcome => panic!("{bug:?} is not caught: {outcome:?} after {} states", report.states),
    };
    println!("planted {bug:?}, after {} states, {} steps: {what}\n{trace}", report.states, steps(&trace));
    assert!(what.starts_with(rule), "{bug:?} was expected to break {rule}: {what}");
}

/// As [`caught`], and without the bug the very same world is closed.
pub(crate) fn caught_only<W: World>(bug: Bug, world: impl Fn() -> W, rule: &str) {
    caught(bug, &world(), rule);
    assert_eq!(explore(&world(), &Options::default()).outcome, Outcome::Closed, "without {bug:?}");
}

fn steps(trace: &str) -> usize {
    trace.lines().filter(|line| line.trim_start().starts_with(|first: char| first.is_ascii_digit())).count()
}

/// `LOCKSTEP_MODEL=large`: more of everything that may happen, ten million states and more.
pub(crate) fn large() -> bool {
    std::env::var("LOCKSTEP_MODEL").is_ok_and(|size| size == "large")
}
