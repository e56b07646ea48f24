//! Bugs planted in production code and its twins, one at a time: a seed catches each, and holds the invariants without it.

use lockstep_protocol::planted::{Bug, plant};

use crate::{number_of, story};

/// Each with a seed that caught it; another one is looked for if the histories have changed since. What else there is, the model and the seeds of
/// docs/reliability/seeds.md catch.
const BUGS: [(Bug, u64); 15] = [
    (Bug::EffectsBeforeStored, 2),
    (Bug::UnknownTakenAsFailed, 0),
    (Bug::UnconditionalCommitPut, 298),
    // The version alone guards most writes, since each claim raises it too: what shows the bug is a replica that hands back a round of another's.
    (Bug::NoTermInWhere, 194),
    (Bug::NoVersionInWhere, 48),
    (Bug::NoGuardInWhere, 6),
    (Bug::ExistsTakenAsFailed, 0),
    (Bug::ExistsTakenAsMine, 10),
    (Bug::SecondRoundAdmitted, 0),
    (Bug::AbortOnlyInDatabase, 10),
    (Bug::DeadlineInCommitting, 197),
    (Bug::IncarnationNotCompared, 6),
    (Bug::SuccessAtTheFirstHost, 3),
    (Bug::CancelWhileInstalling, 24),
    (Bug::OtherCheckpointsStay, 0),
];

/// What `LOCKSTEP_BUG` names, planted from here on.
pub(crate) fn plant_what_is_asked_for() {
    if let Ok(name) = std::env::var("LOCKSTEP_BUG") {
        let known = Bug::ALL.iter().copied().find(|bug| format!("{bug:?}") == name);
        plant(Some(known.unwrap_or_else(|| panic!("LOCKSTEP_BUG={name}: one of {:?}", Bug::ALL))));
    }
}

/// How a seed catches a bug.
fn caught(bug: Bug, seed: u64) -> Option<String> {
    plant(Some(bug));
    let told = std::panic::catch_unwind(|| story::play(seed));
    plant(None);
    match told {
        Ok(Ok(_)) => None,
        Ok(Err(violation)) => Some(violation.lines().next().unwrap_or_default().to_owned()),
        Err(_) => Some("a panic".to_owned()),
    }
}

#[test]
fn planted_bugs_of_dispatch_bucket_and_twin_are_caught() {
    let seeds = number_of("LOCKSTEP_BUG_SEEDS").unwrap_or(400);
    let mut missed = Vec::new();
    println!("| planted bug | seed | what it violates |\n|---|---|---|");
    for (bug, known) in BUGS {
        let mut tried = std::iter::once(known).chain(0..seeds);
        match tried.find_map(|seed| Some((seed, caught(bug, seed)?))) {
            Some((seed, how)) => {
                println!("| {bug:?} | {seed} | {how} |");
                assert_eq!(story::play(seed).err(), None, "seed {seed} without {bug:?}");
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "{seeds} seeds don't catch {missed:?}");
}
