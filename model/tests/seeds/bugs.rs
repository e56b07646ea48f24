//! Planted bugs: which of them the simulation catches, and within how many seeds.

use lockstep_protocol::planted::Bug;

use crate::report::{setting, sweep};

/// Within how many seeds each must be caught.
const WITHIN: u64 = 3_000;

/// What this simulation has no part in, or can't show.
const ELSEWHERE: &[(Bug, &str)] = &[
    (Bug::AttemptNotComparedInReports, "nobody reports here without having been asked for that attempt: the model"),
    (Bug::ConfirmSkipped, "the model"),
    (Bug::ResolvedAnewInTheSameAttempt, "nobody else owns a location here: the model"),
    (Bug::StagedOfRetiredStays, "nobody else owns a location here: the dispatcher's simulation"),
    (Bug::MissingTakenAsRetired, DISPATCHER),
    (Bug::FencedIsAdmitted, DISPATCHER),
    (Bug::AcceptedTakenAsInstalled, "an install takes no time here: the model"),
    (Bug::FenceCheckBeforeCommit, "too rare among these seeds: the model"),
    (Bug::BaseFromOldListing, RIVALS),
    (Bug::UnconditionalBase, RIVALS),
    (Bug::ReaderWithoutSecondLook, RIVALS),
    (Bug::LaterBaseDecides, RIVALS),
    (Bug::LostBaseIsPulledForEver, ACTIVATIONS),
    (Bug::UnpulledActivationOwns, ACTIVATIONS),
    (Bug::EmptyGenerationEndsTheChain, RIVALS),
    (Bug::ScheduleWithoutBackOff, DISPATCHER),
    (Bug::NewestIsPushedAgain, DISPATCHER),
    (Bug::ReadingsAreNotCharged, DISPATCHER),
    (Bug::MarkedIsLatest, DISPATCHER),
    (Bug::MarkedIsAdopted, DISPATCHER),
    (Bug::ResyncLearnsNothing, DISPATCHER),
    (Bug::BehindIsDriven, DISPATCHER),
    (Bug::TombstoneOfFencedOwnerCounts, GARBAGE),
    (Bug::BaseNotPinned, GARBAGE),
    (Bug::BaseChosenOutsideAdmission, GARBAGE),
    (Bug::RetireWithoutTheLock, GARBAGE),
    (Bug::SweepBeforeTombstoneLanded, GARBAGE),
    (Bug::PinsListedBeforeTombstone, GARBAGE),
    (Bug::SweepWithoutReadingTheNextFence, GARBAGE),
    (Bug::SweepReadsTheNextFenceTooEarly, GARBAGE),
    (Bug::OrphansWithoutReadingTheNextFence, GARBAGE),
    (Bug::OrphansByDatabaseBeforeListing, GARBAGE),
    (Bug::InheritedManifestsNotFollowed, GARBAGE),
    (Bug::LostManifestReachesNothing, GARBAGE),
];

const RIVALS: &str = "rivals take over and commit nothing here: the model";
const ACTIVATIONS: &str = "nobody activates anything here: the model";
const DISPATCHER: &str = "code of the dispatcher only: its simulation";
const GARBAGE: &str = "retention and sweeps are not simulated: the model";

#[test]
fn every_planted_bug_that_the_simulation_can_meet_is_caught() {
    let within = setting("LOCKSTEP_BUG_SEEDS", WITHIN);
    let mut missed = Vec::new();
    println!("| planted bug | first seed that shows it | as |\n|---|---|---|");
    for &bug in Bug::ALL {
        if let Some((_, why)) = ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == bug) {
            println!("| {bug:?} | - | {why} |");
            continue;
        }
        let found = sweep(0, within, Some(bug));
        match found.violations.first() {
            Some((seed, what)) => println!("| {bug:?} | {seed} | {what} |"),
            None => {
                println!("| {bug:?} | none of {within} | |");
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
