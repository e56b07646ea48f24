//! What a round may be told, small enough to be part of a state; as the production event it stands for.

use lockstep_protocol::{
    fence::Successor,
    location::Location,
    problem::{Problem, Reason},
    round::{DecisionKnown, Event, FoundHost, HostReport, Resolved, Source},
};

use super::cast::{self, Cast, MOST_HOSTS, Wrote};

/// What is known of a decision key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Known {
    Commit,
    Abort,
    Other,
    Unknown,
}

/// What is known of generation g+1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Next {
    Absent,
    FenceOnly,
    /// Its base names this round's commit, or none.
    Base(Option<u8>),
}

impl Next {
    pub(super) fn successor(self) -> Successor {
        match self {
            Self::Absent => Successor::Absent,
            Self::FenceOnly => Successor::FenceOnly,
            Self::Base(newest) => cast::base(newest),
        }
    }
}

/// By host; none: no answer.
pub(super) type Processes = [Option<u8>; MOST_HOSTS];

/// One event. Hosts, attempts, processes and steps as in [`Cast`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Told {
    Planned { processes: Processes, step: u8 },
    Refused(Refusal),
    Part { host: u8, attempt: u8, process: u8, wrote: Wrote },
    Staged { host: u8, attempt: u8, process: u8 },
    Installed { host: u8, attempt: u8, process: u8 },
    HostFailed { host: u8, attempt: u8, why: Trouble },
    HostReady { host: u8, attempt: u8, process: u8 },
    SourceRetired { host: u8, attempt: u8, step: u8 },
    PartsChecked,
    Settled { known: Known, next: Option<Next> },
    Resolved { source: From, step: u8, processes: Processes },
    Confirmed { processes: Processes },
    Cancel,
    Superseded { by: u8 },
    Deadline,
}

/// Why planning was given up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Refusal {
    Fenced,
    TakeOver,
}

/// Where a pull comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum From {
    /// The hosts' own disks, no commit of the same cut is known.
    Local,
    /// The hosts' own disks, and a commit of the same cut is known.
    LocalAndCommit,
    /// The location.
    Location,
}

/// Why an attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Trouble {
    Unreachable,
    Restarted,
    Stopped,
    NotFound,
    Stale,
}

impl Trouble {
    /// What a refused order means to whoever follows the attempt.
    pub(super) const fn of(reason: Reason) -> Self {
        match reason {
            Reason::IncarnationMismatch => Self::Restarted,
            Reason::CheckpointNotFound => Self::NotFound,
            _ => Self::Stale,
        }
    }

    fn problem(self) -> Problem {
        let reason = match self {
            Self::Unreachable => Reason::AgentUnreachable,
            Self::Restarted => Reason::AgentRestarted,
            Self::Stopped => Reason::Cancelled,
            Self::NotFound => Reason::CheckpointNotFound,
            Self::Stale => Reason::StaleTerm,
        };
        Problem::new(reason, "")
    }
}

impl Told {
    pub(super) fn event(self, cast: &Cast) -> Event {
        match self {
            Self::Planned { processes, step } => Event::Planned {
                hosts: found(&processes, Some(step)),
                step: cast::step(step),
                fingerprint: None,
                parent: None,
            },
            Self::Refused(refusal) => Event::Refused(Problem::new(
                match refusal {
                    Refusal::Fenced => Reason::Fenced,
                    Refusal::TakeOver => Reason::TakeOverInProgress,
                },
                "",
            )),
            Self::Part { host, attempt, process, wrote } => {
                let part = cast.part(wrote);
                done(host, attempt, process, HostReport::Part { part, step: cast::step(wrote.step), fingerprint: None })
            }
            Self::Staged { host, attempt, process } => done(host, attempt, process, HostReport::Staged),
            Self::Installed { host, attempt, process } => done(host, attempt, process, HostReport::Installed),
            Self::HostFailed { host, attempt, why } => Event::HostFailed {
                host_idx: host.into(),
                attempt: cast::attempt_no(attempt),
                problem: why.problem(),
                jitter: 0,
            },
            Self::SourceRetired { host, attempt, step } => Event::SourceRetired {
                host_idx: host.into(),
                attempt: cast::attempt_no(attempt),
                commit: cast::commit_ref(step),
                problem: Problem::new(Reason::CheckpointNotFound, ""),
            },
            Self::HostReady { host, attempt, process } => Event::HostReady {
                host_idx: host.into(),
                attempt: cast::attempt_no(attempt),
                incarnation: cast::incarnation(host, process),
            },
            Self::PartsChecked => Event::PartsChecked { writer: "model".to_owned(), trace_id: None },
            Self::Settled { known, next } => Event::Settled {
                decision: match known {
                    Known::Commit => DecisionKnown::CommitStands,
                    Known::Abort => DecisionKnown::AbortStands,
                    Known::Other => DecisionKnown::OtherRound(cast::round_id(u8::MAX)),
                    Known::Unknown => DecisionKnown::Unknown(Problem::new(Reason::StoreUnavailable, "")),
                },
                successor: next.map(Next::successor),
                jitter: 0,
            },
            Self::Resolved { source, step, processes } => Event::Resolved {
                resolved: resolved(source, step, cast.own_location()),
                hosts: found(&processes, Some(step)),
                discard: false,
            },
            Self::Confirmed { processes } => Event::Confirmed {
                incarnations: hosts(cast)
                    .map(|host| processes[usize::from(host)].map(|process| cast::incarnation(host, process)))
                    .collect(),
                jitter: 0,
            },
            Self::Cancel => Event::CancelRequested(cast::cancel_request()),
            Self::Superseded { by } => Event::Superseded { by: cast::round_id(by) },
            Self::Deadline => Event::Tick,
        }
    }
}

fn hosts(cast: &Cast) -> impl Iterator<Item = u8> {
    0..cast.hosts
}

fn done(host: u8, attempt: u8, process: u8, report: HostReport) -> Event {
    Event::HostDone {
        host_idx: host.into(),
        attempt: cast::attempt_no(attempt),
        incarnation: cast::incarnation(host, process),
        report,
    }
}

fn found(processes: &Processes, step: Option<u8>) -> Vec<FoundHost> {
    (0..)
        .zip(processes)
        .filter_map(|(host, process)| {
            Some(FoundHost {
                incarnation: cast::incarnation(host, (*process)?),
                local_checkpoint: step.map(|step| cast::local(host, step)),
            })
        })
        .collect()
}

fn resolved(source: From, step: u8, own: &Location) -> Resolved {
    let commit = (source != From::Local).then(|| cast::commit_ref(step));
    Resolved {
        source: if source == From::Location { Source::Location } else { Source::Local },
        location: commit.map(|_| own.clone()),
        commit,
        step: Some(cast::step(step)),
        fingerprint: None,
        processed_records: None,
        parts: Vec::new(),
    }
}
