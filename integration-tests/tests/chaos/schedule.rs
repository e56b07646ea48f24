//! What a seed says: which faults, on whom, when and for how long.

use std::time::Duration;

use lockstep_integration_tests::{
    own_postgres::Stop,
    proxy::{Stall, TrapAction},
};
use rand::{Rng, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// A connection with a proxy in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Coordinators to their database.
    Postgres,
    /// Everybody to the store.
    S3,
    /// Coordinators to this agent.
    Agent(usize),
    /// Clients to this coordinator.
    Coordinator(usize),
}

/// What the S3 server itself does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum S3Fault {
    /// 503, nothing was done.
    SlowDown,
    /// 500, and it was done.
    ErrorAfterWrite,
    /// The connection is reset instead of an answer, and it was done.
    LostAnswer,
    /// The connection is reset in the middle of the request's body.
    ResetDuringBody,
    /// The connection is closed in the middle of the answer's body.
    Truncated,
    /// Bodies move slowly.
    SlowBody,
    /// Written long after its client gave up.
    LateWrite,
}

impl S3Fault {
    const ALL: [Self; 7] = [
        Self::SlowDown,
        Self::ErrorAfterWrite,
        Self::LostAnswer,
        Self::ResetDuringBody,
        Self::Truncated,
        Self::SlowBody,
        Self::LateWrite,
    ];
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// kill -9 while it drives a round in this phase, started again after this.
    KillCoordinator { which: usize, during: &'static str, down: Duration },
    /// Both at once, while either does.
    KillBothCoordinators { during: &'static str, down: Duration },
    /// kill -9 while a round is in this phase, started again after this.
    KillAgent { which: usize, during: &'static str, down: Duration },
    /// SIGSTOP while it drives a round in this phase, for longer than a lease.
    StopCoordinator { which: usize, during: &'static str, lasts: Duration },
    /// SIGSTOP while a round is in this phase, now and then for longer than an agent may be silent.
    StopAgent { which: usize, during: &'static str, lasts: Duration },
    /// Open connections are reset, this share of them.
    Cut { route: Route, share: f64 },
    /// New connections are reset, open ones too.
    Refuse { route: Route, lasts: Duration },
    /// Nothing is forwarded.
    Stall { route: Route, stalls: Stall, lasts: Duration },
    /// Every piece is late.
    Delay { route: Route, delay: Duration, lasts: Duration },
    /// Stopped and started again after this.
    StopPostgres { how: Stop, down: Duration },
    /// Statements that run right now lose their backends, this many times.
    TerminateBackends { times: u32 },
    /// A COMMIT, or a statement that is one, is lost, its connection cut, or its answer lost.
    LoseCommit { carries: &'static str, action: TrapAction, times: u32 },
    /// Requests to the store.
    S3 { fault: S3Fault, times: u64, coordinators: bool },
    /// A host's disk is full for a while.
    FillDisk { lasts: Duration },
}

impl Fault {
    /// Name of its class, for the report.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::KillCoordinator { .. } => "kill -9 of a coordinator",
            Self::KillBothCoordinators { .. } => "kill -9 of both coordinators",
            Self::KillAgent { .. } => "kill -9 of an agent",
            Self::StopCoordinator { .. } => "coordinator stopped beyond its lease",
            Self::StopAgent { .. } => "agent stopped",
            Self::Cut { .. } => "connections cut",
            Self::Refuse { .. } => "connections refused",
            Self::Stall { .. } => "connections stalled",
            Self::Delay { .. } => "connections slow",
            Self::StopPostgres { how: Stop::Fast, .. } => "Postgres stopped (fast)",
            Self::StopPostgres { how: Stop::Immediate, .. } => "Postgres stopped (immediate)",
            Self::StopPostgres { how: Stop::Crash, .. } => "Postgres killed",
            Self::TerminateBackends { .. } => "backends terminated",
            Self::LoseCommit { .. } => "COMMIT of the database lost or unanswered",
            Self::S3 { fault: S3Fault::SlowDown, .. } => "503 bursts",
            Self::S3 { fault: S3Fault::ErrorAfterWrite | S3Fault::LostAnswer, .. } => "S3 answers lost",
            Self::S3 { fault: S3Fault::ResetDuringBody | S3Fault::Truncated, .. } => "S3 bodies cut",
            Self::S3 { fault: S3Fault::SlowBody, .. } => "S3 bodies slow",
            Self::S3 { fault: S3Fault::LateWrite, .. } => "S3 writes late",
            Self::FillDisk { .. } => "disk full",
        }
    }
}

/// A fault and when it comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Strike {
    /// After the one before began.
    pub(crate) after: Duration,
    pub(crate) fault: Fault,
}

/// Coordinators, agents.
pub(crate) const COORDINATORS: usize = 2;
pub(crate) const AGENTS: usize = 4;

/// What a lost COMMIT carries: a transaction's own word, or the phase that the statement stores.
const CARRIED: [&str; 5] = ["COMMIT", "committing", "committed", "transferring", "installed"];

fn millis(random: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..=to))
}

fn route(random: &mut StdRng) -> Route {
    match random.random_range(0..6) {
        0 | 1 => Route::Postgres,
        2 => Route::S3,
        3 | 4 => Route::Agent(random.random_range(0..AGENTS)),
        _ => Route::Coordinator(random.random_range(0..COORDINATORS)),
    }
}

/// Phases in which somebody dies.
const PHASES: [&str; 5] = ["planning", "transferring", "committing", "resolving", "installing"];

/// How many kinds `kind` knows.
const KINDS: usize = 16;

fn kind(random: &mut StdRng, kind: usize) -> Fault {
    let during = PHASES.choose(random).expect("some");
    match kind {
        0 => Fault::KillCoordinator {
            which: random.random_range(0..COORDINATORS),
            during,
            down: millis(random, 0, 4000),
        },
        1 => Fault::KillBothCoordinators { during, down: millis(random, 0, 2500) },
        2 | 3 => Fault::KillAgent { which: random.random_range(0..AGENTS), during, down: millis(random, 0, 3000) },
        4 => Fault::StopCoordinator {
            which: random.random_range(0..COORDINATORS),
            during,
            lasts: millis(random, 2000, 5000),
        },
        5 => Fault::StopAgent { which: random.random_range(0..AGENTS), during, lasts: millis(random, 1000, 7000) },
        6 => Fault::Cut { route: route(random), share: *[0.5, 1.0].choose(random).expect("two") },
        7 => Fault::Refuse { route: route(random), lasts: millis(random, 300, 3000) },
        8 => {
            let stalls = *[Stall::Requests, Stall::Answers, Stall::Everything].choose(random).expect("three");
            Fault::Stall { route: route(random), stalls, lasts: millis(random, 500, 6000) }
        }
        9 => Fault::Delay { route: route(random), delay: millis(random, 5, 150), lasts: millis(random, 1000, 4000) },
        10 => {
            let how = *[Stop::Fast, Stop::Immediate, Stop::Crash].choose(random).expect("three");
            Fault::StopPostgres { how, down: millis(random, 0, 4000) }
        }
        11 => Fault::TerminateBackends { times: random.random_range(1..=8) },
        12 => {
            let actions = [TrapAction::LoseRequest, TrapAction::CutAfterRequest, TrapAction::LoseAnswer];
            Fault::LoseCommit {
                carries: CARRIED.choose(random).expect("some"),
                action: *actions.choose(random).expect("three"),
                times: random.random_range(1..=4),
            }
        }
        13 | 14 => Fault::S3 {
            fault: *S3Fault::ALL.choose(random).expect("seven"),
            times: random.random_range(1..=12),
            coordinators: random.random_bool(0.5),
        },
        _ => Fault::FillDisk { lasts: millis(random, 500, 4000) },
    }
}

/// The faults of a run. Kinds are dealt like cards, so that a short run has many of them and a long one each about as often.
pub(crate) fn schedule(seed: u64, faults: usize) -> Vec<Strike> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut kinds = Vec::new();
    (0..faults)
        .map(|_| {
            if kinds.is_empty() {
                kinds = (0..KINDS).collect();
            }
            let next = kinds.swap_remove(random.random_range(0..kinds.len()));
            Strike { after: millis(&mut random, 1500, 5000), fault: kind(&mut random, next) }
        })
        .collect()
}

#[test]
fn a_seed_gives_the_same_faults_again_and_a_long_run_every_class() {
    assert_eq!(schedule(7, 200), schedule(7, 200));
    assert_ne!(schedule(7, 20), schedule(8, 20));
    assert_eq!(schedule(7, 200)[..20], schedule(7, 20));
    let classes: std::collections::BTreeSet<_> = schedule(7, 400).iter().map(|strike| strike.fault.class()).collect();
    assert_eq!(classes.len(), 20, "{classes:?}");
}
