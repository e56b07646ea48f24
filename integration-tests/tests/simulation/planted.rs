//! Bugs planted in production code and its twins, one at a time: a seed catches each, and holds the invariants without it.

use lockstep_protocol::planted::{Bug, plant};

use crate::{damage, number_of, restore, schedule, story, world::Garbage};

/// Each with a seed that caught it; another one is looked for if the histories have changed since. What else there is, the model and the seeds of
/// docs/reliability/seeds.md catch.
const BUGS: [(Bug, u64); 34] = [
    (Bug::EffectsBeforeStored, 5),
    (Bug::UnknownTakenAsFailed, 0),
    (Bug::UnconditionalCommitPut, 24),
    // The version alone guards most writes, since each claim raises it too: what shows the bug is a replica that hands back a round of another's.
    (Bug::NoTermInWhere, 21),
    (Bug::NoVersionInWhere, 21),
    (Bug::NoGuardInWhere, 11),
    (Bug::ExistsTakenAsFailed, 0),
    (Bug::ExistsTakenAsMine, 8),
    (Bug::SecondRoundAdmitted, 0),
    (Bug::AbortOnlyInDatabase, 8),
    (Bug::DeadlineInCommitting, 118),
    (Bug::IncarnationNotCompared, 2),
    (Bug::SuccessAtTheFirstHost, 3),
    (Bug::CancelWhileInstalling, 51),
    (Bug::OtherCheckpointsStay, 2),
    (Bug::LostHostIsNotPulledAgain, 176),
    (Bug::WaitsForWhatIsGone, 437),
    // Of sources that are retired or missing (G5). Where a host restarts after the first is planted its round never ends (L1, seeds 206 and 260): this seed is one of those in which the check of sources sees it.
    (Bug::StagedOfRetiredStays, 1055),
    (Bug::MissingTakenAsRetired, 10),
    // Of take-overs. FenceCheckBeforeCommit and UnconditionalBase are caught by so few seeds that the next change of histories would lose them: the model has them.
    (Bug::FencedIsAdmitted, 0),
    (Bug::AckWithoutFenceCheck, 405),
    (Bug::TakerListsBeforeItsFence, 0),
    (Bug::ExistingFenceIsLost, 37),
    (Bug::UnconditionalFence, 147),
    // Of garbage.
    (Bug::SweepBeforeTombstoneLanded, 5),
    (Bug::OrphansByDatabaseBeforeListing, 1),
    (Bug::TombstoneOfFencedOwnerCounts, 17),
    // Of schedules.
    (Bug::ScheduleWithoutBackOff, 49),
    (Bug::NewestIsPushedAgain, 1),
    // Of damage and lost databases.
    (Bug::ReadingsAreNotCharged, 97),
    (Bug::MarkedIsLatest, 10),
    (Bug::MarkedIsAdopted, 10),
    (Bug::ResyncLearnsNothing, 26),
    (Bug::BehindIsDriven, 194),
];

/// What `LOCKSTEP_BUG` names, planted from here on.
pub(crate) fn plant_what_is_asked_for() {
    if let Ok(name) = std::env::var("LOCKSTEP_BUG") {
        plant(Some(named(&name)));
    }
}

fn named(name: &str) -> Bug {
    let known = Bug::ALL.iter().copied().find(|bug| format!("{bug:?}") == name);
    known.unwrap_or_else(|| panic!("{name}: none of {:?}", Bug::ALL))
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

/// Where nothing is collected, or nobody takes over, some bugs make no difference.
fn matters(bug: Bug, seed: u64) -> bool {
    let name = format!("{bug:?}");
    let of_garbage =
        ["Sweep", "Orphans", "Tombstone", "Retire", "BaseNotPinned", "Pins"].iter().any(|what| name.starts_with(what));
    let of_fences = name.contains("Fence") || name.contains("UnconditionalBase") || name.starts_with("Tombstone");
    let of_schedules = name.starts_with("Schedule") || name.starts_with("Newest");
    let of_lost_bases =
        [Bug::MarkedIsAdopted, Bug::LostBaseIsPulledForEver, Bug::UnpulledActivationOwns].contains(&bug);
    let of_retired_sources = bug == Bug::StagedOfRetiredStays;
    let of_missing_sources = bug == Bug::MissingTakenAsRetired;
    let of_damage = of_lost_bases || of_missing_sources || name.starts_with("Marked") || name.starts_with("Readings");
    let of_lost_databases = name.starts_with("Resync") || bug == Bug::BehindIsDriven;
    (!(of_garbage || of_retired_sources) || Garbage::of(seed).is_some())
        && (!(of_fences || of_retired_sources || of_missing_sources) || story::is_rivalled(seed))
        && (!of_schedules || schedule::interval_of(seed).is_some())
        && (!of_damage || damage::budget_of(seed).is_some())
        && (!of_lost_databases || restore::strikes(seed))
        && (!of_lost_bases || story::is_rivalled(seed))
}

/// A seed that catches the bug and holds without it, with what it says: the known one first.
fn found(bug: Bug, known: Option<u64>, seeds: u64) -> Option<(u64, String)> {
    let looked_at = known.into_iter().chain((0..seeds).filter(|seed| matters(bug, *seed)));
    let caught = looked_at.into_iter().find_map(|seed| Some((seed, caught(bug, seed)?)));
    if let Some((seed, _)) = caught {
        assert_eq!(story::play(seed).err(), None, "seed {seed} without {bug:?}");
    }
    caught
}

/// Looks for all of them, on every core.
fn look_for(bugs: &[(Bug, Option<u64>)]) -> Vec<Bug> {
    let seeds = number_of("LOCKSTEP_BUG_SEEDS").unwrap_or(1_000);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = |first: usize| {
        let mut missed = Vec::new();
        for (bug, known) in bugs.iter().skip(first).step_by(threads) {
            match found(*bug, *known, seeds) {
                Some((seed, how)) => println!("| {bug:?} | {seed} | {how} |"),
                None => missed.push(*bug),
            }
        }
        missed
    };
    println!("| planted bug | seed | what it violates |\n|---|---|---|");
    std::thread::scope(|scope| {
        let share = &share;
        let shares: Vec<_> = (0..threads).map(|first| scope.spawn(move || share(first))).collect();
        shares.into_iter().flat_map(|share| share.join().unwrap()).collect()
    })
}

/// `LOCKSTEP_BUGS=BaseNotPinned,…` looks for seeds of these instead.
#[test]
fn planted_bugs_of_dispatch_bucket_and_twin_are_caught() {
    let known = BUGS.map(|(bug, seed)| (bug, Some(seed))).to_vec();
    let bugs = match std::env::var("LOCKSTEP_BUGS") {
        Ok(names) => names.split(',').map(|name| (named(name), None)).collect(),
        Err(_) => known,
    };
    let missed = look_for(&bugs);
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
