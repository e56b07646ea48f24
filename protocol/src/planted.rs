//! Bugs that tests plant, one at a time, to show that the model check and the simulation catch them.
//!
//! Each stands at the place where a careless version of the production code would differ, as `planted::is(Bug::…)`. The switch belongs to the
//! thread that sets it and exists in builds with debug assertions only: elsewhere [`is`] is a constant false, and no process can be told to plant one.

/// One way to get the protocol wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Bug {
    /// A commit that stands is acknowledged without reading what follows its generation.
    AckWithoutFenceCheck,
    /// What follows the generation is read before the commit stood.
    FenceCheckBeforeCommit,
    /// A cancel in `Committing` ends the round in the database, without winning the key.
    AbortOnlyInDatabase,
    /// The deadline acts in `Committing` too.
    DeadlineInCommitting,
    /// A decision PUT without an answer fails the round.
    UnknownTakenAsFailed,
    /// A decision key that exists is taken for another round's, without comparing bytes.
    ExistsTakenAsFailed,
    /// A decision key that exists is taken for what was put, without comparing bytes.
    ExistsTakenAsMine,
    /// A fence alone fails the round, whatever its base will say.
    FencedWithoutReadingTheBase,
    /// A decision is put over another one.
    UnconditionalCommitPut,
    /// Effects of a decision are carried out before it is stored: bytes are put, or hosts install, that the row knows nothing of.
    EffectsBeforeStored,
    /// A write repeats the term and not the version.
    NoVersionInWhere,
    /// A write repeats the version and not the term.
    NoTermInWhere,
    /// A write repeats neither version nor term.
    NoGuardInWhere,
    /// A report counts whatever attempt it is of.
    AttemptNotComparedInReports,
    /// Neither agents nor reports compare incarnations.
    IncarnationNotCompared,
    /// Keys don't name the attempt.
    AttemptNotInKeys,
    /// What one host has done counts for all.
    SuccessAtTheFirstHost,
    /// Agents obey orders of rounds older than the newest they have obeyed.
    OrderOfRoundsNotCompared,
    /// `Installed` without one more look at every host.
    ConfirmSkipped,
    /// A cancel acts in `Installing` too.
    CancelWhileInstalling,
    /// An install that was accepted is taken for done.
    AcceptedTakenAsInstalled,
    /// A host that lost what it had staged is asked to install again, never to pull.
    LostHostIsNotPulledAgain,
    /// A host that lost the only copy of its local checkpoint keeps the round installing for ever.
    WaitsForWhatIsGone,
    /// What is chosen instead of a retired source is ordered in the attempt that was for the retired one.
    ResolvedAnewInTheSameAttempt,
    /// What a host has staged of a source that was retired meanwhile stays its own, while the others pull what is chosen instead.
    StagedOfRetiredStays,
    /// What a host finds missing in another's location was retired: no tombstone is looked for.
    MissingTakenAsRetired,
    /// Admission doesn't look whether the pipeline is fenced.
    FencedIsAdmitted,
    /// An install leaves older local checkpoints in place.
    OtherCheckpointsStay,
    /// Admission doesn't look for an active round.
    SecondRoundAdmitted,
    /// The taker lists what counts before its fence stands.
    TakerListsBeforeItsFence,
    /// A base is made of what was listed before its fence was seen.
    BaseFromOldListing,
    /// A fence is put over another one.
    UnconditionalFence,
    /// A base is put over another one.
    UnconditionalBase,
    /// A fence that exists is taken as somebody else's, without comparing bytes.
    ExistingFenceIsLost,
    /// A reader doesn't look whether a fence came in between.
    ReaderWithoutSecondLook,
    /// Whether a commit counts is asked of the newest base, not of exactly the next generation's.
    LaterBaseDecides,
    /// An activation pulls again and again what is damaged or gone.
    LostBaseIsPulledForEver,
    /// An activation that ends without its last pull hands the location over all the same.
    UnpulledActivationOwns,
    /// A base of which no commit is of the generation before names nothing, instead of what that one started from.
    EmptyGenerationEndsTheChain,
    /// A schedule tries again at once, however often its pushes have failed.
    ScheduleWithoutBackOff,
    /// What is the newest commit already is pushed again.
    NewestIsPushedAgain,
    /// What is re-read without being asked for is not charged to the daily budget.
    ReadingsAreNotCharged,
    /// A checkpoint that is marked damaged is latest like any other.
    MarkedIsLatest,
    /// A take-over that adopts a base which is marked damaged names it as the newest commit, so that nobody pushes those checkpoints again.
    MarkedIsAdopted,
    /// A resync takes the location over and learns no commit.
    ResyncLearnsNothing,
    /// Rounds and upkeep of a pipeline whose row another database wrote are claimed and written before a take-over has settled them.
    BehindIsDriven,
    /// Tombstones count whoever wrote them.
    TombstoneOfFencedOwnerCounts,
    /// The base of an active push doesn't keep a commit from being retired.
    BaseNotPinned,
    /// A push takes a base that was chosen before its admission.
    BaseChosenOutsideAdmission,
    /// Commits are marked by what was read before the row was locked.
    RetireWithoutTheLock,
    /// A tombstone whose PUT got no answer is taken for landed.
    SweepBeforeTombstoneLanded,
    /// A sweep goes by pins that were listed before the tombstone landed.
    PinsListedBeforeTombstone,
    /// A sweep doesn't look whether it is fenced.
    SweepWithoutReadingTheNextFence,
    /// A sweep looks whether it is fenced before it reads what live commits reach, and not after.
    SweepReadsTheNextFenceTooEarly,
    /// A collection of orphans doesn't look whether it is fenced.
    OrphansWithoutReadingTheNextFence,
    /// Orphans are told by what the database knew before keys were listed.
    OrphansByDatabaseBeforeListing,
    /// A refused listing is taken for an empty one.
    EmptyListingOnDenied,
    /// A sweep doesn't know that part manifests inherit others.
    InheritedManifestsNotFollowed,
    /// A commit whose part manifest is lost is taken for one that reaches nothing else.
    LostManifestReachesNothing,
}

impl Bug {
    /// Every one of them, for the test that shows how each is caught.
    pub const ALL: &'static [Self] = &[
        Self::AckWithoutFenceCheck,
        Self::FenceCheckBeforeCommit,
        Self::AbortOnlyInDatabase,
        Self::DeadlineInCommitting,
        Self::UnknownTakenAsFailed,
        Self::ExistsTakenAsFailed,
        Self::ExistsTakenAsMine,
        Self::FencedWithoutReadingTheBase,
        Self::UnconditionalCommitPut,
        Self::EffectsBeforeStored,
        Self::NoVersionInWhere,
        Self::NoTermInWhere,
        Self::NoGuardInWhere,
        Self::AttemptNotComparedInReports,
        Self::IncarnationNotCompared,
        Self::AttemptNotInKeys,
        Self::SuccessAtTheFirstHost,
        Self::OrderOfRoundsNotCompared,
        Self::ConfirmSkipped,
        Self::CancelWhileInstalling,
        Self::AcceptedTakenAsInstalled,
        Self::LostHostIsNotPulledAgain,
        Self::WaitsForWhatIsGone,
        Self::ResolvedAnewInTheSameAttempt,
        Self::StagedOfRetiredStays,
        Self::MissingTakenAsRetired,
        Self::FencedIsAdmitted,
        Self::OtherCheckpointsStay,
        Self::SecondRoundAdmitted,
        Self::TakerListsBeforeItsFence,
        Self::BaseFromOldListing,
        Self::UnconditionalFence,
        Self::UnconditionalBase,
        Self::ExistingFenceIsLost,
        Self::ReaderWithoutSecondLook,
        Self::LaterBaseDecides,
        Self::LostBaseIsPulledForEver,
        Self::UnpulledActivationOwns,
        Self::EmptyGenerationEndsTheChain,
        Self::ScheduleWithoutBackOff,
        Self::NewestIsPushedAgain,
        Self::ReadingsAreNotCharged,
        Self::MarkedIsLatest,
        Self::MarkedIsAdopted,
        Self::ResyncLearnsNothing,
        Self::BehindIsDriven,
        Self::TombstoneOfFencedOwnerCounts,
        Self::BaseNotPinned,
        Self::BaseChosenOutsideAdmission,
        Self::RetireWithoutTheLock,
        Self::SweepBeforeTombstoneLanded,
        Self::PinsListedBeforeTombstone,
        Self::SweepWithoutReadingTheNextFence,
        Self::SweepReadsTheNextFenceTooEarly,
        Self::OrphansWithoutReadingTheNextFence,
        Self::OrphansByDatabaseBeforeListing,
        Self::EmptyListingOnDenied,
        Self::InheritedManifestsNotFollowed,
        Self::LostManifestReachesNothing,
    ];
}

#[cfg(debug_assertions)]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with that bug.
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug for this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}

#[cfg(debug_assertions)]
pub use switch::{is, plant};

/// Never, in a build without debug assertions.
#[cfg(not(debug_assertions))]
pub const fn is(_: Bug) -> bool {
    false
}
