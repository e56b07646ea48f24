//! s37: an agent dies at a failpoint and is started again on the same disk, as a supervisor would: the round is retried and done, and nothing is left of the attempt.

use std::{collections::BTreeMap, fmt, fs, time::Instant};

use lockstep_client::v1::{self, RoundPhase, start_pull_request::Selector};
use lockstep_devkit::dbsp::{DbspDirectory, DbspOptions};
use lockstep_failpoint::{Point, Point::*};
use lockstep_integration_tests::{
    cluster::{BUCKET, Cluster, Options, PIPELINE},
    content::noise,
    host::Host,
    orders, wait,
};

use crate::{
    engine::{Checkpoints, Store},
    lane::{Lane, Outcome, everything, go_through},
    soundness::assert_sound,
};

/// What is under way when it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum During {
    Push,
    /// Of a file in several pieces, too.
    LargePush,
    /// Over local checkpoints of another history.
    Pull,
    /// Direct, without a coordinator.
    Sync,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) point: Point,
    /// At which time that the process comes there.
    nth: u64,
    during: During,
    store: Store,
    /// Where the next process dies, if it does.
    then: Option<Point>,
    /// It panics there and lives on.
    panics: bool,
}

impl Case {
    fn nobody_dies(&self) -> bool {
        self.point == StoreBeforeChange && self.nth > changes(self.store)
    }

    /// Where processes die in it.
    pub(crate) fn points(&self) -> impl Iterator<Item = Point> + use<> {
        std::iter::once(self.point).chain(self.then)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, nth, during, store, then, panics } = self;
        let panics = if *panics { "panic at " } else { "" };
        write!(f, "{panics}{point}@{nth} during {during:?} of {store:?}")?;
        then.map_or(Ok(()), |then| write!(f, ", then {then}"))
    }
}

const PUSH: &[(Point, u64)] = &[
    (MarkBeforeStored, 1),
    // The first one is the file with the address.
    (StateBeforeRename, 2),
    (StateRenamed, 2),
    (MarkStored, 1),
    (OrderAccepted, 1),
    (PushHeld, 1),
    (PushObjectSent, 1),
    (PushBeforeManifest, 1),
    (PushManifestSent, 1),
    (DigestsBeforeRename, 1),
    (DigestsSaved, 1),
    (TransferBeforeReport, 1),
    (TransferReported, 1),
];
const LARGE_PUSH: &[(Point, u64)] = &[
    (PushUploadBegun, 1),
    (PushPieceSent, 1),
    (PushPieceSent, 2),
    (PushBeforeComplete, 1),
    (PushObjectSent, 1),
    (PushObjectSent, 2),
];
const PULL: &[(Point, u64)] = &[
    (MarkBeforeStored, 1),
    (StateBeforeRename, 2),
    (StateRenamed, 2),
    (MarkStored, 1),
    (OrderAccepted, 1),
    (PullStagingCreated, 1),
    (PullFilePlaced, 1),
    (PullFilePlaced, 3),
    (PullBeforeSync, 1),
    (PullSynced, 1),
    (DigestsBeforeRename, 1),
    (DigestsSaved, 1),
    (TransferBeforeReport, 1),
    (TransferReported, 1),
    (InstallBegun, 1),
    (InstallPlaced, 1),
    (InstallBeforeReport, 1),
    (InstallReported, 1),
    (WordBeforeStored, 1),
    (WordStored, 1),
];
const SYNC: &[(Point, u64)] = &[
    (SyncFenceStored, 1),
    (ClaimBeforeFence, 1),
    (SyncCommitStored, 1),
    (SyncAfterPut, 1),
    (SyncFenceRead, 1),
    (SyncForgotten, 1),
];
/// The first process dies in a pull, the second one while it clears up after it.
const AT_THE_START: &[(Point, Point)] = &[
    (PullBeforeSync, StartMarksLoaded),
    (PullBeforeSync, StartBeforeStagingRemoved),
    (PullBeforeSync, StartCleared),
    (PullBeforeSync, StartListening),
    (StateBeforeRename, StartCleared),
    (InstallPlaced, StartMarksLoaded),
];

/// Renames, removals and new folders from the start of a process to the end of an install: exactly so many, so that none is left out.
const fn changes(store: Store) -> u64 {
    match store {
        Store::Directory => 10,
        Store::Feldera => 43,
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let of = |during, store, points: &'static [(Point, u64)]| {
        points.iter().map(move |&(point, nth)| Case { point, nth, during, store, then: None, panics: false })
    };
    let restarted = |store| {
        AT_THE_START.iter().map(move |&(point, then)| {
            let nth = if point == StateBeforeRename { 2 } else { 1 };
            Case { point, nth, during: During::Pull, store, then: Some(then), panics: false }
        })
    };
    let mut cases = Vec::new();
    cases.extend(of(During::Push, Store::Directory, PUSH));
    cases.extend(of(During::LargePush, Store::Directory, LARGE_PUSH));
    cases.extend(of(During::Pull, Store::Directory, PULL));
    cases.extend(restarted(Store::Directory));
    cases.extend(of(During::Push, Store::Feldera, PUSH));
    cases.extend(of(During::Pull, Store::Feldera, PULL));
    cases.extend(restarted(Store::Feldera));
    cases.extend(of(During::Sync, Store::Directory, SYNC));
    for store in [Store::Directory, Store::Feldera] {
        // One more than there are: nobody dies.
        let last = changes(store) + 1;
        let sampled =
            |nth: &u64| everything() || store == Store::Directory || nth.is_multiple_of(5) || *nth >= last - 1;
        let nths = (1..=last).filter(sampled);
        let change =
            |nth| Case { point: StoreBeforeChange, nth, during: During::Pull, store, then: None, panics: false };
        cases.extend(nths.map(change));
    }
    cases
}

/// Panics where an agent that lives on comes in a transfer.
pub(crate) fn panics() -> Vec<Case> {
    let in_a_transfer = |case: &Case| {
        case.then.is_none()
            && case.during != During::Sync
            && case.store == Store::Directory
            && case.point != StoreBeforeChange
    };
    cases().into_iter().filter(in_a_transfer).map(|case| Case { panics: true, ..case }).collect()
}

/// All ways in which the same transfer may lose its agent twice.
pub(crate) fn pairs() -> Vec<Case> {
    let cases: Vec<Case> = cases()
        .into_iter()
        .filter(|case| case.then.is_none() && case.during != During::Sync && !case.nobody_dies())
        .collect();
    let alike = |first: &Case, second: &Case| (first.during, first.store) == (second.during, second.store);
    let pair = |first: &Case, second: &Case| Case { then: Some(second.point), ..first.clone() };
    cases
        .iter()
        .flat_map(|first| cases.iter().filter(|second| alike(first, second)).map(|second| pair(first, second)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_an_agent_that_dies_at_a_failpoint_is_ordered_again_and_leaves_nothing_behind() {
    go_through::<Supervised>("s37", cases()).await;
}

/// One acknowledged checkpoint.
#[derive(Clone, Debug)]
struct Acknowledged {
    step: u64,
    /// By host: its UUID there, and its files.
    hosts: Vec<(String, lockstep_integration_tests::host::State)>,
}

/// A coordinator, two hosts (one for direct syncs) and a supervisor; one pipeline that goes from case to case.
pub(crate) struct Supervised {
    cluster: Cluster,
    store: Store,
    solo: bool,
    /// Of a solo agent.
    pipeline_id: String,
    step: u64,
    acknowledged: Vec<Acknowledged>,
    /// Everything that was ever made on a host.
    known: Vec<Checkpoints>,
}

impl Lane for Supervised {
    type Case = Case;

    async fn open(case: &Case) -> Self {
        let solo = case.during == During::Sync;
        let options = Options {
            hosts: if solo { 0 } else { 2 },
            store: case.store.flag(),
            in_memory: true,
            create: !solo,
            transfer: Some(v1::TransferOptions {
                concurrency: 4,
                part_size: 5 << 20,
                memory: 16 << 20,
                bandwidth_limit: 0,
            }),
            lease: "600ms",
            renew_every: "150ms",
            ..Options::default()
        };
        let cluster = Cluster::with(options).await;
        let known = cluster.hosts.iter().map(|_| Checkpoints::new()).collect();
        let (store, pipeline_id) = (case.store, uuid::Uuid::new_v4().to_string());
        Self { cluster, store, solo, pipeline_id, step: 0, acknowledged: Vec::new(), known }
    }

    fn fits(&self, case: &Case) -> bool {
        let is_first_claim = matches!(case.point, SyncFenceStored | ClaimBeforeFence);
        self.store == case.store && self.solo == (case.during == During::Sync) && !is_first_claim
    }

    async fn run(&mut self, case: &Case) -> Outcome {
        match case.during {
            During::Sync => self.sync(case).await,
            During::Push | During::LargePush | During::Pull => {
                let outcome = if case.during == During::Pull { self.pull(case).await } else { self.push(case).await };
                assert_sound(&self.cluster).await;
                outcome
            }
        }
    }
}

/// What a supervisor has seen.
struct Watch {
    deaths: u32,
    /// For the processes to come, the next one first.
    plans: Vec<String>,
    died: Option<Instant>,
}

impl Supervised {
    /// Every host loses what its engine has and makes checkpoints of a new step; the agents live on.
    fn new_history(&mut self, large: bool) -> Acknowledged {
        self.step += 10;
        let step = self.step;
        let mut hosts = Vec::new();
        for host in &self.cluster.hosts {
            let id = make(self.store, host, step, large);
            let found = self.store.checkpoints(host);
            hosts.push((id.clone(), found[&id].clone()));
            self.known[host.idx as usize].extend(found);
        }
        Acknowledged { step, hosts }
    }

    /// Starts host 0's agent; one that dies before it listens is started again with the next plan.
    async fn start(&mut self, watch: &mut Watch) {
        loop {
            let plan = watch.plans.pop().unwrap_or_default();
            self.cluster.arm(&plan);
            let (identity, flags) = match self.solo {
                true => (vec!["--solo".to_owned()], vec!["--pipeline".to_owned(), self.pipeline_id.clone()]),
                false => (self.cluster.identity(0), Vec::new()),
            };
            let started = self.cluster.try_start_agent_as(0, &identity, &flags, "agent-0-secret").await;
            self.cluster.arm("");
            if started {
                return;
            }
            self.died(watch);
        }
    }

    /// S12: whatever the engine of the dead agent's host would take for a checkpoint is one, whole.
    fn died(&self, watch: &mut Watch) {
        watch.deaths += 1;
        watch.died.get_or_insert_with(Instant::now);
        for (id, state) in self.store.checkpoints(&self.cluster.hosts[0]) {
            assert_eq!(self.known[0].get(&id), Some(&state), "checkpoint {id} is torn");
        }
    }

    async fn begin(&mut self, case: &Case) -> Watch {
        let action = if case.panics { "panic" } else { "kill" };
        let first = format!("{}={action}@{}", case.point, case.nth);
        let plans = case.then.iter().map(|then| format!("{then}=kill")).chain([first]).collect();
        let mut watch = Watch { deaths: 0, plans, died: None };
        self.cluster.kill_agent(0);
        self.start(&mut watch).await;
        watch
    }

    /// Waits for the end of a round whose agent dies and is started again.
    async fn supervise(&mut self, case: &Case, mut watch: Watch, round: &v1::Round) -> (v1::Round, Outcome) {
        if case.panics {
            return self.panic(case, round).await;
        }
        let client = self.cluster.client.clone();
        let wait = client.wait_round(&round.id);
        tokio::pin!(wait);
        let ended = loop {
            tokio::select! {
                ended = &mut wait => break ended.unwrap(),
                () = self.cluster.agent_killed(0) => {
                    self.died(&mut watch);
                    self.start(&mut watch).await;
                }
            }
        };
        let recovery = watch.died.map_or_else(Default::default, |died| died.elapsed());
        if watch.deaths == 0 && case.nobody_dies() {
            self.cluster.kill_agent(0);
            self.start(&mut watch).await;
        } else if watch.deaths == 0 {
            // It had nothing more to say in this round.
            self.cluster.agent_killed(0).await;
            self.died(&mut watch);
            self.start(&mut watch).await;
        }
        if case.then.is_some() {
            // It may still come to where it is to die: not in what follows.
            watch.plans.clear();
            self.cluster.kill_agent(0);
            self.start(&mut watch).await;
        }
        let (attempt, deaths) = (ended.participants[0].attempt, watch.deaths);
        assert_eq!(deaths == 0, case.nobody_dies(), "the changes of an install are counted wrong");
        if watch.plans.is_empty() && case.then.is_some_and(|then| then.name().starts_with("start.")) {
            assert_eq!(deaths, 2, "the second process dies, too");
        }
        let end = format!("{:?}, {deaths} deaths, attempt {attempt}", ended.phase());
        (ended, Outcome { end, recovery })
    }

    /// The agent panics, lives on, and is ordered again.
    async fn panic(&mut self, case: &Case, round: &v1::Round) -> (v1::Round, Outcome) {
        let began = Instant::now();
        let ended = self.cluster.client.wait_round(&round.id).await.unwrap();
        let recovery = began.elapsed();
        wait::until("it comes to where it panics", || {
            let came = self.cluster.agent_log(0).contains(&format!("failpoint {} reached", case.point));
            async move { if came { Ok(()) } else { Err("not yet") } }
        })
        .await;
        self.cluster.kill_agent(0);
        self.cluster.start_agent(0).await;
        let end = format!("{:?}, attempt {}", ended.phase(), ended.participants[0].attempt);
        (ended, Outcome { end, recovery })
    }

    async fn push(&mut self, case: &Case) -> Outcome {
        let made = self.new_history(case.during == During::LargePush);
        let watch = self.begin(case).await;
        let round = self.cluster.start_push().await;
        let (round, outcome) = self.supervise(case, watch, &round).await;
        assert_eq!((round.phase(), round.step), (RoundPhase::Committed, Some(made.step)), "{:?}", round.problem);
        // A process that had reported may have been believed.
        assert!(
            round.participants[0].attempt > 1 || case.panics || case.point == TransferReported,
            "{:?}",
            round.participants
        );
        assert_eq!(round.participants[1].attempt, 1, "the other host was not disturbed");
        for host in &self.cluster.hosts {
            assert!(host.leftovers().is_empty(), "host {}: {:?}", host.idx, host.leftovers());
            host.without_drafts().await;
        }
        self.acknowledged.push(made.clone());
        self.new_history(false);
        let round = self.cluster.pull(of_step(made.step)).await;
        self.assert_installed(&round, &made).await;
        self.next_push_succeeds_at_once().await;
        outcome
    }

    async fn pull(&mut self, case: &Case) -> Outcome {
        if self.acknowledged.is_empty() {
            self.next_push_succeeds_at_once().await;
        }
        let wanted = self.acknowledged.last().unwrap().clone();
        self.new_history(false);
        let watch = self.begin(case).await;
        let round = self.cluster.client.start_pull(of_step(wanted.step)).await.unwrap();
        let (round, outcome) = self.supervise(case, watch, &round).await;
        self.assert_installed(&round, &wanted).await;
        // The first changes come before any order, and words after the round's end.
        let beside_the_round = matches!(case.point, StoreBeforeChange | WordBeforeStored | WordStored);
        assert!(round.participants[0].attempt > 1 || case.panics || beside_the_round, "{:?}", round.participants);
        self.next_push_succeeds_at_once().await;
        outcome
    }

    /// The commit that was begun is the one that stands in the end, and no other one of this step.
    async fn sync(&mut self, case: &Case) -> Outcome {
        let made = self.new_history(false);
        let mut watch = self.begin(case).await;
        let request = v1::SyncRequest { location: Some(self.cluster.location(PIPELINE)) };
        let mut agent = orders::agent(&self.cluster.agents[0].address).await;
        agent.sync(request.clone()).await.expect_err("it died before it could answer");
        self.cluster.agent_killed(0).await;
        self.died(&mut watch);
        self.start(&mut watch).await;
        let mut agent = orders::agent(&self.cluster.agents[0].address).await;
        let synced = agent.sync(request.clone()).await.unwrap().into_inner();
        let recovery = watch.died.unwrap().elapsed();
        let commit = synced.commit.unwrap();
        assert_eq!(synced.done.unwrap().step, made.step);
        self.acknowledged.push(made);
        let commits = self.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/commits/")).unwrap();
        assert_eq!((commits.len(), commit.seq), (self.acknowledged.len(), self.acknowledged.len() as u64));
        let again = agent.sync(request).await.unwrap().into_inner();
        assert_eq!(again.commit.unwrap(), commit);
        assert!(self.cluster.hosts[0].leftovers().is_empty(), "{:?}", self.cluster.hosts[0].leftovers());
        self.cluster.hosts[0].without_drafts().await;
        Outcome { end: format!("commit {}-{}", commit.generation, commit.seq), recovery }
    }

    async fn assert_installed(&self, round: &v1::Round, wanted: &Acknowledged) {
        assert_eq!(round.phase(), RoundPhase::Installed, "{:?}", round.problem);
        // Before the disks are emptied: what is told later has nothing to speak of, and describes an agent whose changes are counted.
        wait::until("every host is told", || async {
            let ready = self.cluster.client.get_pipeline(PIPELINE).await.unwrap().ready.ok_or("no word")?;
            if ready.not_told.is_empty() { Ok(()) } else { Err("not yet") }
        })
        .await;
        for (host, (id, state)) in self.cluster.hosts.iter().zip(&wanted.hosts) {
            self.store.assert_alone(host, id, state);
        }
    }

    /// L2.
    async fn next_push_succeeds_at_once(&mut self) {
        let made = self.new_history(false);
        let round = self.cluster.pushed().await;
        assert_eq!(round.step, Some(made.step));
        assert!(round.participants.iter().all(|participant| participant.attempt == 1), "{:?}", round.participants);
        self.acknowledged.push(made);
    }
}

/// Without the local source: it comes from the location.
fn of_step(step: u64) -> v1::StartPullRequest {
    v1::StartPullRequest { standby: Some(true), selector: Some(Selector::Step(step)), ..Cluster::pull_request() }
}

/// Empties the engine's directory and makes a checkpoint of this step, for Feldera on top of two older ones; its UUID.
fn make(store: Store, host: &Host, step: u64, large: bool) -> String {
    match store {
        Store::Directory => {
            let _ = fs::remove_dir_all(host.dir.join("checkpoints"));
            let names = ["a", "b c/d", "b c/e", "empty"];
            let length = |name: &str| if name == "empty" { 0 } else { 3000 };
            let mut files: BTreeMap<&str, Vec<u8>> =
                names.iter().map(|&name| (name, noise(step, &format!("{} {name}", host.idx), length(name)))).collect();
            if large {
                files.insert("large", noise(step, &format!("{} large", host.idx), 6 << 20));
            }
            let files: Vec<(&str, &[u8])> = files.iter().map(|(&name, bytes)| (name, bytes.as_slice())).collect();
            host.checkpoint(step, &files).to_string()
        }
        Store::Feldera => {
            for entry in fs::read_dir(&host.dir).unwrap().flatten().filter(|entry| entry.file_name() != "coordinator") {
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
            let seed = step * 1000 + u64::from(host.idx);
            let mut engine = DbspDirectory::create(&host.dir, DbspOptions { seed, ..DbspOptions::default() }).unwrap();
            engine.checkpoint(step - 2, 3, 0).unwrap();
            fs::create_dir(host.dir.join("steps.bin")).unwrap();
            engine.checkpoint(step - 1, 2, 1).unwrap();
            engine.checkpoint(step, 1, 2).unwrap().to_string()
        }
    }
}
