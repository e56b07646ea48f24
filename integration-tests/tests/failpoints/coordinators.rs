//! s36: a coordinator dies at a failpoint, a second replica is there, and the round ends as the protocol says.
//!
//! The second replica is stopped (SIGSTOP) while the first one works, so that it is the first one that comes to the place, and goes on at its death.

use std::{collections::BTreeMap, fmt, fs, time::Instant};

use lockstep_client::{
    ClientError, LockstepClient,
    v1::{self, RoundPhase, start_pull_request::Selector},
};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_failpoint::{Point, Point::*};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key, client_of},
    host::State,
    process::Process,
    wait,
};

use crate::{
    lane::{Lane, Outcome, go_through},
    soundness::assert_sound,
};

/// What is under way when it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum During {
    /// A pipeline is created.
    Create,
    Push,
    /// From the location, over local checkpoints of another history.
    Pull,
    /// A pull of what is nowhere, where that is allowed.
    Fresh,
    /// A push that is cancelled while hosts upload.
    Cancel,
    /// A push that is cancelled while its commit PUT hangs: nothing stands yet.
    Abort,
    /// As before, but the commit stands: only its answer is missing.
    LateAbort,
    /// SIGTERM while hosts upload.
    HandBack,
    /// The pipeline takes its own location over, while hosts upload.
    TakeOver,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) point: Point,
    during: During,
    /// Where the second one dies, if it does.
    pub(crate) then: Option<Point>,
    /// It panics there and does not die: there is no second one.
    pub(crate) panics: bool,
    /// Phases in which the round may end.
    pub(crate) ends: &'static [RoundPhase],
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let panics = if self.panics { "panic at " } else { "" };
        write!(f, "{panics}{} during {:?}", self.point, self.during)?;
        self.then.map_or(Ok(()), |then| write!(f, ", then {then}"))
    }
}

const COMMITTED: &[RoundPhase] = &[RoundPhase::Committed];
const INSTALLED: &[RoundPhase] = &[RoundPhase::Installed];
const FRESH: &[RoundPhase] = &[RoundPhase::Fresh];
const FAILED: &[RoundPhase] = &[RoundPhase::Failed];
const CANCELLED: &[RoundPhase] = &[RoundPhase::Cancelled];
/// Whoever wins the key has decided, and both try.
const EITHER: &[RoundPhase] = &[RoundPhase::Committed, RoundPhase::Cancelled];

/// Where, and how a round ends that loses its coordinator there.
const TABLE: &[(During, &[RoundPhase], &[Point])] = &[
    (
        During::Create,
        &[],
        &[CreateBeforeCommit, CreateStored, ClaimTaken, ClaimBeforePut, ClaimBeforeFence, ClaimAfterPut, ClaimStored],
    ),
    (
        During::Push,
        COMMITTED,
        &[
            AdmitBeforeCommit,
            AdmitStored,
            RoundClaimed,
            PlanBefore,
            PlanChosen,
            TransferringBeforeStored,
            TransferringStored,
            OrderBeforeSent,
            OrderAnswered,
            OrderReported,
            ReportsBeforeStored,
            ReportsStored,
            PartsBefore,
            PartsChecked,
            CommittingBeforeStored,
            CommittingStored,
            CommitBeforePut,
            CommitAfterPut,
            CommitFenceRead,
            CommittedBeforeStored,
            CommittedStored,
            HeadBeforePut,
            HeadAfterPut,
        ],
    ),
    (
        During::Pull,
        INSTALLED,
        &[
            AdmitBeforeCommit,
            AdmitStored,
            RoundClaimed,
            ResolveBefore,
            ResolveChosen,
            TransferringBeforeStored,
            TransferringStored,
            OrderBeforeSent,
            OrderAnswered,
            OrderReported,
            ReportsBeforeStored,
            ReportsStored,
            InstallingBeforeStored,
            InstallingStored,
            InstallBeforeSent,
            InstallAnswered,
            ConfirmBefore,
            ConfirmAnswered,
            InstalledBeforeStored,
            InstalledStored,
            ReadyClaimed,
            ReadyBeforeSent,
            ReadyAnswered,
            ReadyStored,
        ],
    ),
    (During::Fresh, FRESH, &[FreshBeforeStored, FreshStored]),
    (During::Cancel, CANCELLED, &[GivenUpBeforeStored, GivenUpStored, CancelBeforeSent, CancelAnswered]),
    (During::Abort, EITHER, &[AbortBeforeStored]),
    (
        During::Abort,
        CANCELLED,
        &[AbortStored, AbortBeforePut, AbortAfterPut, AbortFenceRead, GivenUpBeforeStored, GivenUpStored],
    ),
    (
        During::LateAbort,
        COMMITTED,
        &[AbortBeforeStored, AbortStored, AbortBeforePut, AbortAfterPut, AbortFenceRead, CommittedBeforeStored],
    ),
    (During::HandBack, COMMITTED, &[HandBackBefore, HandBackStored]),
    (
        During::TakeOver,
        FAILED,
        &[
            TakeOverBeforeCommit,
            TakeOverStored,
            TakeOverClaimed,
            FencingBeforeStored,
            FencingStored,
            BasingBeforeStored,
            BasingStored,
            BaseBeforePut,
            BaseAfterPut,
            AdoptingBeforeStored,
            AdoptingStored,
            AdoptedBeforeStored,
            AdoptedBeforeCommit,
            AdoptedStored,
        ],
    ),
];

pub(crate) fn cases() -> Vec<Case> {
    let of = |&(during, ends, points): &(During, &'static [RoundPhase], &'static [Point])| {
        points.iter().map(move |&point| Case { point, during, then: None, panics: false, ends })
    };
    TABLE.iter().flat_map(of).collect()
}

/// Panics where a coordinator that lives on comes by itself.
pub(crate) fn panics() -> Vec<Case> {
    let by_itself = |case: &Case| matches!(case.during, During::Push | During::Pull | During::Fresh | During::TakeOver);
    cases().into_iter().filter(by_itself).map(|case| Case { panics: true, ..case }).collect()
}

/// All ways in which the same round may lose two coordinators one after the other.
pub(crate) fn pairs() -> Vec<Case> {
    let cases = cases();
    let pair = |first: &Case, second: &Case| Case { then: Some(second.point), ..first.clone() };
    let alike = |first: &Case, second: &Case| first.during == second.during && first.during != During::Create;
    cases
        .iter()
        .flat_map(|first| cases.iter().filter(|second| alike(first, second)).map(|second| pair(first, second)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s36_a_coordinator_that_dies_at_a_failpoint_leaves_a_round_that_the_other_one_ends() {
    go_through::<Replicas>("s36", cases()).await;
}

/// Two replicas over one database, two hosts, one pipeline that goes from case to case.
pub(crate) struct Replicas {
    pub(crate) cluster: Cluster,
    step: u64,
    /// Every acknowledged step, and what each host had.
    acknowledged: BTreeMap<u64, Vec<State>>,
}

impl Lane for Replicas {
    type Case = Case;

    async fn open(case: &Case) -> Self {
        let options = Options {
            hosts: 2,
            in_memory: true,
            create: case.during != During::Create,
            lease: "600ms",
            renew_every: "150ms",
            ..Options::default()
        };
        Self { cluster: Cluster::with(options).await, step: 0, acknowledged: BTreeMap::new() }
    }

    fn fits(&self, case: &Case) -> bool {
        // A location is claimed once.
        case.during != During::Create
    }

    async fn run(&mut self, case: &Case) -> Outcome {
        let outcome = match case.during {
            During::Create => self.create(case).await,
            During::Push => self.push(case).await,
            During::Pull => self.pull(case).await,
            During::Fresh => self.fresh(case).await,
            During::Cancel => self.cancel(case).await,
            During::Abort => self.abort(case, FaultAction::Hang).await,
            During::LateAbort => self.abort(case, FaultAction::HangAfterWrite).await,
            During::HandBack => self.hand_back(case).await,
            During::TakeOver => self.take_over(case).await,
        };
        assert_sound(&self.cluster).await;
        self.acknowledged_steps_can_be_pulled().await;
        self.next_push_succeeds_at_once().await;
        outcome
    }
}

type Answer = Result<v1::Round, ClientError>;

/// What is asked of whichever replica is there.
enum Ask {
    Push(v1::StartPushRequest),
    Pull(v1::StartPullRequest),
}

impl Ask {
    async fn at(&self, client: &LockstepClient) -> Answer {
        match self {
            Self::Push(request) => client.start_push(request.clone()).await,
            Self::Pull(request) => client.start_pull(request.clone()).await,
        }
    }
}

/// The replica that is to die.
pub(crate) struct Victim {
    pub(crate) process: Process,
    pub(crate) client: LockstepClient,
}

impl Replicas {
    pub(crate) fn checkpoint(&mut self) -> (u64, Vec<State>) {
        self.step += 1;
        let content = format!("{} of step {}", "x".repeat(5000), self.step);
        let of = |host: &lockstep_integration_tests::host::Host| {
            let files = [
                ("a", format!("{content} {}", host.idx)),
                ("folder/b", format!("b {}", self.step)),
                ("empty", String::new()),
            ];
            let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_bytes())).collect();
            host.state_of(host.checkpoint(self.step, &files))
        };
        (self.step, self.cluster.hosts.iter().map(of).collect())
    }

    /// The only replica panics, and drives the round again.
    async fn panic(&mut self, case: &Case, ask: &Ask) -> (v1::Round, Outcome) {
        let said = format!("failpoint {} reached", case.point);
        let before = self.cluster.coordinator_log().matches(&said).count();
        self.restart_survivor(&format!("{}=panic", case.point)).await;
        let (client, began) = (patient(&self.cluster), Instant::now());
        let round = wait::until("it is admitted", || ask.at(&client)).await;
        let round = client.wait_round(&round.id).await.unwrap();
        let recovery = began.elapsed();
        assert!(case.ends.contains(&round.phase()), "{round:?}");
        wait::until("it comes to where it panics", || {
            let times = self.cluster.coordinator_log().matches(&said).count();
            async move { if times > before { Ok(()) } else { Err("not yet") } }
        })
        .await;
        let end = format!("{:?}, term {}", round.phase(), round.term);
        (round, Outcome { end, recovery })
    }

    pub(crate) async fn restart_survivor(&mut self, plan: &str) {
        self.cluster.stop_coordinator();
        self.cluster.arm(plan);
        self.cluster.start_coordinator().await;
        self.cluster.arm("");
    }

    /// Starts the one that is to die; the other one stops, and will not be in its way.
    pub(crate) async fn victim(&mut self, plan: &str) -> Victim {
        self.cluster.arm(plan);
        let secret = format!("{COORDINATOR_KEY}-secret");
        let (process, address) = self.cluster.another_coordinator("victim", "127.0.0.1:0", &secret).await;
        self.cluster.arm("");
        self.cluster.pause_coordinator(true);
        Victim { process, client: client_of(&format!("http://{address}")) }
    }

    /// Asks the one that is to die, lets `meanwhile` happen, and waits for the death and for what the other one makes of the round.
    async fn strike(
        &mut self,
        case: &Case,
        ask: &Ask,
        meanwhile: impl AsyncFnOnce(&Cluster, &Victim, &Answer),
    ) -> (v1::Round, Outcome) {
        if case.panics {
            return self.panic(case, ask).await;
        }
        if let Some(then) = case.then {
            self.restart_survivor(&format!("{then}=kill")).await;
        }
        let mut victim = self.victim(&format!("{}=kill", case.point)).await;
        let asked = ask.at(&victim.client).await;
        meanwhile(&self.cluster, &victim, &asked).await;
        victim.process.killed().await;
        let died = Instant::now();
        self.cluster.pause_coordinator(false);
        let client = patient(&self.cluster);
        let ended = async {
            let round = match asked {
                Ok(round) => round,
                // Nobody knows what became of an admission without an answer: the same request again tells.
                Err(_) => wait::until("it is admitted", || ask.at(&client)).await,
            };
            client.wait_round(&round.id).await.unwrap()
        };
        tokio::pin!(ended);
        let mut died_twice = false;
        let round = loop {
            tokio::select! {
                round = &mut ended => break round,
                () = self.cluster.coordinator_killed(), if case.then.is_some() && !died_twice => {
                    died_twice = true;
                    self.cluster.start_coordinator().await;
                }
            }
        };
        let recovery = died.elapsed();
        if case.then.is_some() && !died_twice {
            // It may still come to where it is to die.
            self.restart_survivor("").await;
        }
        assert!(case.ends.contains(&round.phase()), "{round:?}");
        let twice = if died_twice { ", both died" } else { "" };
        let end = format!("{:?}, term {}{twice}", round.phase(), round.term);
        (round, Outcome { end, recovery })
    }

    fn push_request() -> Ask {
        let request_id = uuid::Uuid::new_v4().to_string();
        Ask::Push(v1::StartPushRequest { pipeline: PIPELINE.to_owned(), request_id, ..v1::StartPushRequest::default() })
    }

    fn pull_request(request: v1::StartPullRequest) -> Ask {
        Ask::Pull(v1::StartPullRequest { request_id: uuid::Uuid::new_v4().to_string(), ..request })
    }

    async fn push(&mut self, case: &Case) -> Outcome {
        let (step, states) = self.checkpoint();
        let (round, outcome) = self.strike(case, &Self::push_request(), async |_, _, _| {}).await;
        assert_eq!(round.step, Some(step));
        self.acknowledged.insert(step, states);
        outcome
    }

    async fn pull(&mut self, case: &Case) -> Outcome {
        self.next_push_succeeds_at_once().await;
        let (&step, states) = self.acknowledged.last_key_value().unwrap();
        let states = states.clone();
        self.lose_checkpoints();
        self.checkpoint();
        let ask = Self::pull_request(Self::of_step(step));
        let (_, outcome) = self.strike(case, &ask, async |_, _, _| {}).await;
        self.assert_installed(&states);
        outcome
    }

    async fn fresh(&mut self, case: &Case) -> Outcome {
        self.lose_checkpoints();
        let selector = Some(Selector::Checkpoint(uuid::Uuid::new_v4().to_string()));
        let ask =
            Self::pull_request(v1::StartPullRequest { selector, fail_if_none: Some(false), ..Cluster::pull_request() });
        self.strike(case, &ask, async |_, _, _| {}).await.1
    }

    async fn cancel(&mut self, case: &Case) -> Outcome {
        self.checkpoint();
        let fault = self.hold_up_host_1();
        let outcome = self
            .strike(case, &Self::push_request(), async |cluster, victim, asked| {
                let id = &asked.as_ref().unwrap().id;
                transferring(&victim.client, id).await;
                // It may die before it can answer.
                let _ = victim.client.cancel_round(id, "test").await;
                let _ = cluster;
            })
            .await
            .1;
        self.cluster.s3.faults().remove(fault);
        outcome
    }

    async fn abort(&mut self, case: &Case, action: FaultAction) -> Outcome {
        let (step, states) = self.checkpoint();
        let rule =
            FaultRule::new(action).access_key(COORDINATOR_KEY).operation("PutObject").key_contains("/commits/").nth(1);
        let fault = self.cluster.s3.faults().add(rule);
        let (round, outcome) = self
            .strike(case, &Self::push_request(), async |cluster, victim, asked| {
                wait::until("the commit PUT hangs", || async {
                    if cluster.s3.faults().hits(fault) > 0 { Ok(()) } else { Err("not yet") }
                })
                .await;
                let _ = victim.client.cancel_round(&asked.as_ref().unwrap().id, "test").await;
            })
            .await;
        self.cluster.s3.faults().remove(fault);
        if round.phase() == RoundPhase::Committed {
            self.acknowledged.insert(step, states);
        }
        outcome
    }

    async fn hand_back(&mut self, case: &Case) -> Outcome {
        let (step, states) = self.checkpoint();
        let fault = self.hold_up_host_1();
        let (_, outcome) = self
            .strike(case, &Self::push_request(), async |cluster, victim, asked| {
                transferring(&victim.client, &asked.as_ref().unwrap().id).await;
                victim.process.ask_to_stop();
                cluster.s3.faults().remove(fault);
            })
            .await;
        self.acknowledged.insert(step, states);
        outcome
    }

    async fn create(&mut self, case: &Case) -> Outcome {
        let mut victim = self.victim(&format!("{}=kill", case.point)).await;
        let request = v1::CreatePipelineRequest {
            spec: Some(self.cluster.spec(PIPELINE)),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..v1::CreatePipelineRequest::default()
        };
        let asked = victim.client.create_pipeline_with(request.clone()).await;
        victim.process.killed().await;
        let died = Instant::now();
        self.cluster.pause_coordinator(false);
        let pipeline = match asked {
            Ok(pipeline) => pipeline,
            Err(_) => self.cluster.client.create_pipeline_with(request).await.unwrap(),
        };
        let owned = wait::until("the location is owned", || async {
            let pipeline = self.cluster.client.get_pipeline(&pipeline.id).await.map_err(|error| error.to_string())?;
            if pipeline.generation == 1 { Ok(pipeline) } else { Err(format!("{pipeline:?}")) }
        })
        .await;
        let keys = self.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/fences/")).unwrap();
        assert_eq!(keys, [format!("{PIPELINE}/fences/{:020}.json", 1)]);
        let fence = self.cluster.s3.admin().read(BUCKET, &keys[0]).unwrap();
        assert!(String::from_utf8_lossy(&fence).contains(&owned.id), "the fence is this pipeline's");
        Outcome { end: "owned, generation 1".to_owned(), recovery: died.elapsed() }
    }

    pub(crate) fn hold_up_host_1(&self) -> u64 {
        self.cluster.s3.faults().add(FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject"))
    }

    fn of_step(step: u64) -> v1::StartPullRequest {
        // Without the local source: it comes from the location.
        v1::StartPullRequest { standby: Some(true), selector: Some(Selector::Step(step)), ..Cluster::pull_request() }
    }

    /// Local checkpoints vanish; the agents live on.
    fn lose_checkpoints(&self) {
        for host in &self.cluster.hosts {
            let _ = fs::remove_dir_all(host.dir.join("checkpoints"));
        }
    }

    /// The checkpoint and nothing else, on every host.
    fn assert_installed(&self, states: &[State]) {
        for (host, state) in self.cluster.hosts.iter().zip(states) {
            assert_eq!(&host.state(), state, "host {}", host.idx);
            assert!(host.leftovers().is_empty(), "host {}: {:?}", host.idx, host.leftovers());
        }
    }

    async fn acknowledged_steps_can_be_pulled(&mut self) {
        // The newest two: what a death could have hurt.
        let newest: Vec<_> =
            self.acknowledged.iter().rev().take(2).map(|(step, states)| (*step, states.clone())).collect();
        for (step, states) in newest {
            self.lose_checkpoints();
            let round = self.cluster.pull(Self::of_step(step)).await;
            assert_eq!(round.phase(), RoundPhase::Installed, "step {step}: {:?}", round.problem);
            self.assert_installed(&states);
        }
    }

    /// L2.
    async fn next_push_succeeds_at_once(&mut self) {
        let (step, states) = self.checkpoint();
        let round = self.cluster.pushed().await;
        assert_eq!(round.step, Some(step));
        assert!(round.participants.iter().all(|participant| participant.attempt == 1), "{:?}", round.participants);
        self.acknowledged.insert(step, states);
    }
}

/// Goes on asking while the coordinator is away.
pub(crate) fn patient(cluster: &Cluster) -> LockstepClient {
    LockstepClient::builder(cluster.coordinator_url())
        .actor("failpoints")
        .reconnect_for(wait::PATIENCE)
        .connect()
        .expect("a good address")
}

pub(crate) async fn transferring(client: &LockstepClient, round: &str) {
    wait::until("hosts upload", || async {
        let round = client.get_round(round).await.map_err(|error| error.to_string())?;
        if round.phase() == RoundPhase::Transferring { Ok(()) } else { Err(format!("{:?}", round.phase())) }
    })
    .await;
}
