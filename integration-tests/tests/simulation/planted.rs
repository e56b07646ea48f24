//! Bugs planted in production code and its twins, one at a time: a seed catches each.

use lockstep_protocol::planted::{Bug, plant};

use crate::{number_of, story};

/// Each with a seed that caught it; another one is looked for if the histories have changed since. `NoTermInWhere` alone in a write is caught by the version, which
/// each claim raises too: what catches it is a replica that hands back a round which is another's.
const BUGS: [(Bug, u64); 15] = [
    (Bug::EffectsBeforeStored, 1),
    (Bug::UnknownTakenAsFailed, 50),
    (Bug::UnconditionalCommitPut, 45),
    (Bug::NoTermInWhere, 0),
    (Bug::NoVersionInWhere, 98),
    (Bug::NoGuardInWhere, 24),
    (Bug::ExistsTakenAsFailed, 19),
    (Bug::ExistsTakenAsMine, 63),
    (Bug::SecondRoundAdmitted, 0),
    (Bug::AbortOnlyInDatabase, 63),
    (Bug::DeadlineInCommitting, 144),
    (Bug::IncarnationNotCompared, 0),
    (Bug::SuccessAtTheFirstHost, 0),
    (Bug::CancelWhileInstalling, 0),
    (Bug::OtherCheckpointsStay, 1),
];

/// A seed that catches a bug, and how.
fn caught(bug: Bug, first: u64, seeds: u64) -> Option<(u64, String)> {
    std::iter::once(first).chain(0..seeds).find_map(|seed| {
        plant(Some(bug));
        let told = std::panic::catch_unwind(|| story::play(seed));
        plant(None);
        match told {
            Ok(Ok(_)) => None,
            Ok(Err(violation)) => Some((seed, violation)),
            Err(_) => Some((seed, "a panic".to_owned())),
        }
    })
}

#[test]
fn planted_bugs_of_dispatch_bucket_and_twin_are_caught() {
    let seeds = number_of("LOCKSTEP_SEEDS").unwrap_or(400);
    let mut missed = Vec::new();
    for (bug, first) in BUGS {
        match caught(bug, first, seeds) {
            Some((seed, how)) => println!("{bug:?}: seed {seed}: {}", how.lines().next().unwrap_or_default()),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "{seeds} seeds don't catch {missed:?}");
}
