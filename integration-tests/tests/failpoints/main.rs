//! Processes that die at every failpoint of push, pull, install and recovery, one case a failpoint, and what becomes of the round then.
//!
//! `s36`: a coordinator dies and another one is there. `s37`: an agent dies and is started again on the same disk. Each case is a line of the output. Of the cases some are left to
//! `LOCKSTEP_FAILPOINTS_ALL=1`; `LOCKSTEP_FAILPOINTS_CASE=commit.` runs those whose name contains it. Pairs of deaths are drawn from a seed: `LOCKSTEP_FAILPOINTS_PAIRS=100`,
//! `LOCKSTEP_SEED=7`. docs/reliability/failpoints.md says of each failpoint how a round ends that lost somebody there.
//!
//! - `lane`: runs cases over clusters, several at a time
//! - `coordinators`, `collectors`, `standbys`, `agents`: the cases and what happens in them; `take_overs`: the coordinators' of take-overs
//! - `pairs`: two deaths in one round; `panics`: nobody dies, something panics
//! - `soundness`: the outside auditor; `engine`: what an engine would find on a disk
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "tests: a failed expectation is a failed test")]

mod agents;
mod collectors;
mod coordinators;
mod engine;
mod lane;
mod pairs;
mod panics;
mod soundness;
mod standbys;
mod take_overs;

use std::collections::BTreeSet;

use lockstep_failpoint::Point;

/// The other direction, a point that exists and is not listed, can't be: the list is the type.
#[test]
fn each_failpoint_there_is_has_a_case() {
    let cases = coordinators::cases().into_iter().map(|case| case.point);
    let cases = cases.chain(collectors::cases().into_iter().map(|case| case.point));
    let cases = cases.chain(standbys::cases().into_iter().map(|case| case.point));
    let gone_through: BTreeSet<Point> =
        cases.chain(agents::cases().into_iter().flat_map(|case| case.points())).collect();
    let missing: Vec<&Point> = Point::ALL.iter().filter(|point| !gone_through.contains(point)).collect();
    assert!(missing.is_empty(), "no case of s36 or s37 lets a process die at {missing:?}");
}

#[test]
fn each_failpoint_stands_in_the_page_about_them() {
    let page = include_str!("../../../docs/reliability/failpoints.md");
    let missing: Vec<&Point> = Point::ALL.iter().filter(|point| !page.contains(&format!("| `{point}` |"))).collect();
    assert!(missing.is_empty(), "docs/reliability/failpoints.md lacks {missing:?}");
}
