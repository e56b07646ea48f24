//! Every place there is.

use std::fmt;

/// Which process comes to a place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Process {
    /// `lockstep-coordinator`.
    Coordinator,
    /// `lockstep-agent`, or an engine that embeds it.
    Agent,
}

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal of $process:ident;)+) => {
        /// A place in the code of a process.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        pub enum Point {
            $($(#[$doc])* $point,)+
        }

        impl Point {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$point,)+];

            /// As plans and documentation name it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }

            /// Who comes there.
            pub const fn process(self) -> Process {
                match self {
                    $(Self::$point => Process::$process,)+
                }
            }
        }
    };
}

points! {
    // ---- pipelines

    /// A pipeline's row and the bytes of its first fence are written, not committed.
    CreateBeforeCommit = "create.before_commit" of Coordinator;
    /// They are committed; nobody was told.
    CreateStored = "create.stored" of Coordinator;
    /// This replica has the claim of a location; nothing of it is done.
    ClaimTaken = "claim.taken" of Coordinator;
    /// The store was probed; `lockstep.json` and the fence are not written.
    ClaimBeforePut = "claim.before_put" of Coordinator;
    /// `lockstep.json` stands, the fence does not. Agents that sync directly come here too.
    ClaimBeforeFence = "claim.before_fence" of Coordinator;
    /// The fence's PUT has an outcome that is in no row.
    ClaimAfterPut = "claim.after_put" of Coordinator;
    /// The outcome is in the row; nobody was told.
    ClaimStored = "claim.stored" of Coordinator;

    // ---- take-overs of locations

    /// A take-over's row is written, not committed.
    TakeOverBeforeCommit = "take_over.before_commit" of Coordinator;
    /// It is committed; the caller has no answer.
    TakeOverStored = "take_over.stored" of Coordinator;
    /// This replica has the take-over, with a new term; nothing of it is done.
    TakeOverClaimed = "take_over.claimed" of Coordinator;
    /// The highest fence is known and has its base; the exact bytes of the next fence are decided, not stored.
    FencingBeforeStored = "fencing.before_stored" of Coordinator;
    /// They are stored; no PUT was sent.
    FencingStored = "fencing.stored" of Coordinator;
    /// The fence stands; that is in no row.
    BasingBeforeStored = "basing.before_stored" of Coordinator;
    /// It is in the row; the base is not begun.
    BasingStored = "basing.stored" of Coordinator;
    /// What a base shall name was listed; it is not written. Whoever finishes another one's base comes here too.
    BaseBeforePut = "base.before_put" of Coordinator;
    /// Its PUT was answered; what stands was not read.
    BaseAfterPut = "base.after_put" of Coordinator;
    /// The base that stands is known, not stored.
    AdoptingBeforeStored = "adopting.before_stored" of Coordinator;
    /// It is stored; the pipeline has its old generation.
    AdoptingStored = "adopting.stored" of Coordinator;
    /// What becomes of the open round is decided, in memory.
    AdoptedBeforeStored = "adopted.before_stored" of Coordinator;
    /// Open round, pipeline and take-over are written, not committed.
    AdoptedBeforeCommit = "adopted.before_commit" of Coordinator;
    /// They are committed; nobody was told.
    AdoptedStored = "adopted.stored" of Coordinator;

    // ---- activation: the pulls before the fence and after the base, and the hand-over

    /// A pull of an activation is admitted; what comes of it is not known.
    ActivationPullAdmitted = "activation.pull_admitted" of Coordinator;
    /// It has ended; that is in no row of the take-over.
    ActivationPulled = "activation.pulled" of Coordinator;
    /// The warm pull is done, in memory.
    WarmedBeforeStored = "warmed.before_stored" of Coordinator;
    /// It is in the row; nothing was put.
    WarmedStored = "warmed.stored" of Coordinator;
    /// The base stands; that the standby's row takes the generation is decided, not stored.
    PullingBeforeStored = "pulling.before_stored" of Coordinator;
    /// It has the generation and is a standby still; its hosts may lack the base.
    PullingStored = "pulling.stored" of Coordinator;
    /// Pipeline, word and take-over are written, not committed.
    HandedOverBeforeCommit = "handed_over.before_commit" of Coordinator;

    // ---- standbys

    /// This replica alone looks at a standby; nothing was asked.
    StandbyTaken = "standby.taken" of Coordinator;
    /// Location and hosts have answered.
    StandbySeen = "standby.seen" of Coordinator;
    /// The pull of what the hosts lack is admitted; the look's outcome is not stored.
    StandbyAdmitted = "standby.admitted" of Coordinator;
    /// It is.
    StandbyStored = "standby.stored" of Coordinator;

    // ---- admission and claim of rounds

    /// A round and its participants are written, not committed.
    AdmitBeforeCommit = "admit.before_commit" of Coordinator;
    /// They are committed; the caller has no answer.
    AdmitStored = "admit.stored" of Coordinator;
    /// This replica has a round, with a new term; nothing of it is done.
    RoundClaimed = "round.claimed" of Coordinator;

    // ---- planning

    /// Before anything is asked for a push.
    PlanBefore = "plan.before" of Coordinator;
    /// The cut is chosen, in memory.
    PlanChosen = "plan.chosen" of Coordinator;
    /// Before anything is asked for a pull.
    ResolveBefore = "resolve.before" of Coordinator;
    /// The source is chosen, in memory.
    ResolveChosen = "resolve.chosen" of Coordinator;

    // ---- what is stored of a round

    /// `Transferring` is decided, not stored: no order was sent.
    TransferringBeforeStored = "transferring.before_stored" of Coordinator;
    /// It is stored; no order was sent.
    TransferringStored = "transferring.stored" of Coordinator;
    /// Reports of hosts are known, not stored.
    ReportsBeforeStored = "reports.before_stored" of Coordinator;
    /// They are stored.
    ReportsStored = "reports.stored" of Coordinator;
    /// `Committing` with the exact bytes is decided, not stored.
    CommittingBeforeStored = "committing.before_stored" of Coordinator;
    /// The bytes are stored; no PUT was sent.
    CommittingStored = "committing.stored" of Coordinator;
    /// `Committed` is known, not stored.
    CommittedBeforeStored = "committed.before_stored" of Coordinator;
    /// It is stored; nobody was told.
    CommittedStored = "committed.stored" of Coordinator;
    /// `Installing` is decided, not stored: no install was ordered.
    InstallingBeforeStored = "installing.before_stored" of Coordinator;
    /// It is stored; no install was ordered.
    InstallingStored = "installing.stored" of Coordinator;
    /// `Installed` is known, not stored.
    InstalledBeforeStored = "installed.before_stored" of Coordinator;
    /// It is stored; nobody was told.
    InstalledStored = "installed.stored" of Coordinator;
    /// `Fresh` is known, not stored.
    FreshBeforeStored = "fresh.before_stored" of Coordinator;
    /// It is stored; nobody was told.
    FreshStored = "fresh.stored" of Coordinator;
    /// `Failed` or `Cancelled` is known, not stored.
    GivenUpBeforeStored = "given_up.before_stored" of Coordinator;
    /// It is stored; agents were not told to stop.
    GivenUpStored = "given_up.stored" of Coordinator;

    // ---- orders

    /// Before a host's transfer is ordered.
    OrderBeforeSent = "order.before_sent" of Coordinator;
    /// The agent has answered that it has the order.
    OrderAnswered = "order.answered" of Coordinator;
    /// A part or a staging is reported, in memory.
    OrderReported = "order.reported" of Coordinator;
    /// Before a host's install is ordered.
    InstallBeforeSent = "install.before_sent" of Coordinator;
    /// The agent has answered that it has installed.
    InstallAnswered = "install.answered" of Coordinator;
    /// Before all hosts are described once more.
    ConfirmBefore = "confirm.before" of Coordinator;
    /// All have answered.
    ConfirmAnswered = "confirm.answered" of Coordinator;

    // ---- what engines are told after a pull

    /// This replica has the word that is owed, with a new term; no host was told.
    ReadyClaimed = "ready.claimed" of Coordinator;
    /// Before one host is told.
    ReadyBeforeSent = "ready.before_sent" of Coordinator;
    /// It has answered.
    ReadyAnswered = "ready.answered" of Coordinator;
    /// Who has answered is stored.
    ReadyStored = "ready.stored" of Coordinator;

    // ---- the decision of a push

    /// Before part manifests are read.
    PartsBefore = "parts.before" of Coordinator;
    /// All are as they should be.
    PartsChecked = "parts.checked" of Coordinator;
    /// Before a PUT of the stored commit bytes.
    CommitBeforePut = "commit.before_put" of Coordinator;
    /// The PUT has an outcome, in memory; what follows the generation was not read.
    CommitAfterPut = "commit.after_put" of Coordinator;
    /// What follows the generation was read after it.
    CommitFenceRead = "commit.fence_read" of Coordinator;
    /// An abort record's exact bytes are decided, not stored.
    AbortBeforeStored = "abort.before_stored" of Coordinator;
    /// They are stored; no PUT was sent.
    AbortStored = "abort.stored" of Coordinator;
    /// Before a PUT of the stored abort bytes.
    AbortBeforePut = "abort.before_put" of Coordinator;
    /// The PUT has an outcome, in memory.
    AbortAfterPut = "abort.after_put" of Coordinator;
    /// What follows the generation was read after it.
    AbortFenceRead = "abort.fence_read" of Coordinator;

    // ---- after the end, and on SIGTERM

    /// `head.json` is not renewed.
    HeadBeforePut = "head.before_put" of Coordinator;
    /// It is.
    HeadAfterPut = "head.after_put" of Coordinator;
    /// Before a host of a round that was given up is told to stop.
    CancelBeforeSent = "cancel.before_sent" of Coordinator;
    /// It has answered.
    CancelAnswered = "cancel.answered" of Coordinator;
    /// This replica stops and is about to hand a round back.
    HandBackBefore = "hand_back.before" of Coordinator;
    /// The round is nobody's.
    HandBackStored = "hand_back.stored" of Coordinator;

    // ---- upkeep of a location

    /// A pin, a retirement or a collection is in its row; nobody drives it.
    UpkeepStored = "upkeep.stored" of Coordinator;
    /// This replica has it; nothing of it is done.
    UpkeepClaimed = "upkeep.claimed" of Coordinator;
    /// Before a PUT of a pin's stored bytes.
    PinBeforePut = "pin.before_put" of Coordinator;
    /// The pin stands; whether its checkpoint was retired meanwhile was not looked at.
    PinAfterPut = "pin.after_put" of Coordinator;
    /// One pin is taken away.
    UnpinDeleted = "unpin.deleted" of Coordinator;
    /// What may be retired is known, nothing is marked.
    RetireBeforeMark = "retire.before_mark" of Coordinator;
    /// It is marked, with the bytes of tombstones; no PUT was sent.
    RetireMarked = "retire.marked" of Coordinator;
    /// A tombstone's PUT has an outcome that is in no row.
    TombstoneAfterPut = "tombstone.after_put" of Coordinator;
    /// The row says that it stands.
    TombstoneStored = "tombstone.stored" of Coordinator;
    /// What is swept is known, nothing is deleted.
    SweepPlanned = "sweep.planned" of Coordinator;
    /// What nothing reaches is known, nothing is deleted.
    OrphansPlanned = "orphans.planned" of Coordinator;
    /// Before one object is deleted, whatever it is.
    DeleteBefore = "delete.before" of Coordinator;
    /// Every object of one stage is deleted, none of the next.
    StageDeleted = "delete.stage" of Coordinator;
    /// The outcome is known, not stored.
    UpkeepBeforeEnd = "upkeep.before_end" of Coordinator;
    /// It is stored; nobody was told.
    UpkeepEnded = "upkeep.ended" of Coordinator;

    // ---- verification

    /// A checkpoint was read for a caller; what was found is not kept.
    VerifyRead = "verify.read" of Coordinator;
    /// It is kept, and its mark owed; the caller has no answer.
    VerifyKept = "verify.kept" of Coordinator;
    /// This replica puts a mark that is owed; no PUT was sent.
    DamageTaken = "damage.taken" of Coordinator;
    /// Its PUT has an outcome that is in no row.
    DamageAfterPut = "damage.after_put" of Coordinator;
    /// The outcome is in the row; nobody was told.
    DamageStored = "damage.stored" of Coordinator;

    // ---- an agent's start

    /// The highest order of earlier processes was read.
    StartMarksLoaded = "start.marks_loaded" of Agent;
    /// Before one staging of an earlier process is removed.
    StartBeforeStagingRemoved = "start.before_staging_removed" of Agent;
    /// Nothing is left of earlier processes.
    StartCleared = "start.cleared" of Agent;
    /// Orders are taken from here on.
    StartListening = "start.listening" of Agent;

    // ---- orders

    /// An order passed all checks; its mark is not on the disk.
    MarkBeforeStored = "mark.before_stored" of Agent;
    /// A small file of the agent's own is written and synced beside the old one, not renamed.
    StateBeforeRename = "state.before_rename" of Agent;
    /// It is renamed, the folder not synced.
    StateRenamed = "state.renamed" of Agent;
    /// The order's mark is on the disk; nothing was begun.
    MarkStored = "mark.stored" of Agent;
    /// A transfer runs; the order has no answer.
    OrderAccepted = "order.accepted" of Agent;
    /// A transfer has ended, with its clean-up; no status says so.
    TransferBeforeReport = "transfer.before_report" of Agent;
    /// Statuses say so.
    TransferReported = "transfer.reported" of Agent;

    /// What the engine may do passed all checks; it is not on the disk.
    WordBeforeStored = "word.before_stored" of Agent;
    /// It is on the disk; nobody was told.
    WordStored = "word.stored" of Agent;

    // ---- push

    /// The local checkpoint's files are held against the engine's clean-up.
    PushHeld = "push.held" of Agent;
    /// A multipart upload is begun.
    PushUploadBegun = "push.upload_begun" of Agent;
    /// A piece of it is sent.
    PushPieceSent = "push.piece_sent" of Agent;
    /// All its pieces are there, the object is not.
    PushBeforeComplete = "push.before_complete" of Agent;
    /// An object stands.
    PushObjectSent = "push.object_sent" of Agent;
    /// Everything is sent but the part manifest.
    PushBeforeManifest = "push.before_manifest" of Agent;
    /// The part manifest stands.
    PushManifestSent = "push.manifest_sent" of Agent;
    /// The digest cache is written beside the old one, not renamed.
    DigestsBeforeRename = "digests.before_rename" of Agent;
    /// It is renamed.
    DigestsSaved = "digests.saved" of Agent;

    // ---- direct sync

    /// The bytes of a direct sync's fence are in the journal; no PUT was sent.
    SyncFenceStored = "sync.fence_stored" of Agent;
    /// The bytes of its commit are; no PUT was sent.
    SyncCommitStored = "sync.commit_stored" of Agent;
    /// The PUT has an outcome, in memory.
    SyncAfterPut = "sync.after_put" of Agent;
    /// The commit stands and counts; the journal still holds it.
    SyncFenceRead = "sync.fence_read" of Agent;
    /// The journal doesn't; the caller has no answer.
    SyncForgotten = "sync.forgotten" of Agent;

    // ---- pull

    /// The staging folder is there, empty.
    PullStagingCreated = "pull.staging_created" of Agent;
    /// A file is in staging, whole and verified.
    PullFilePlaced = "pull.file_placed" of Agent;
    /// All files are, not synced.
    PullBeforeSync = "pull.before_sync" of Agent;
    /// Files and folders are synced.
    PullSynced = "pull.synced" of Agent;

    // ---- install

    /// The engine is not running, nothing was changed.
    InstallBegun = "install.begun" of Agent;
    /// Before any rename, removal or new folder in the engine's directory; counts each of them.
    StoreBeforeChange = "store.before_change" of Agent;
    /// The checkpoint is in its place, the staging folder still there.
    InstallPlaced = "install.placed" of Agent;
    /// Everything is done; no status says so.
    InstallBeforeReport = "install.before_report" of Agent;
    /// Statuses say so.
    InstallReported = "install.reported" of Agent;
}

impl Point {
    /// The place that has this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_of_one_point() {
        for &point in Point::ALL {
            assert_eq!(Point::named(point.name()), Some(point));
        }
        assert_eq!(Point::named("nowhere"), None);
    }
}
