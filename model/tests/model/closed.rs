//! Explores a world to its end and prints how large it was.

use lockstep_model::explore::{Options, Outcome, World, explore};

/// Closed: every reachable state was seen, safety holds in each, and from each the end can be reached.
pub(crate) fn closes<W: World>(name: &str, world: &W) {
    let report = explore(world, &Options::default());
    println!(
        "{name}: {} states, {} transitions, depth {}, {:.1} s",
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

/// `LOCKSTEP_MODEL=large`: the same worlds with more of everything that may happen, up to some 50 million states.
pub(crate) fn large() -> bool {
    std::env::var("LOCKSTEP_MODEL").is_ok_and(|size| size == "large")
}
