//! A coordinator dies while a standby follows or is activated: another replica ends what it had begun.
//!
//! The standby's own time never comes; it is told to look, by the one that is to die while the other one is stopped (SIGSTOP).

use std::{
    fmt,
    time::{Duration, Instant},
};

use lockstep_client::v1::{self, RoundPhase};
use lockstep_failpoint::{Point, Point::*};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, client_of},
    host::State,
    wait,
};

use crate::lane::{Lane, Outcome, go_through};

/// The standby's pipeline.
const HEIR: &str = "heir";

/// What is under way when it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum During {
    /// A standby looks at its location, which holds something new.
    Follow,
    /// A standby is made the owner.
    Activate,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) point: Point,
    during: During,
    /// At which time that it comes there: both pulls of an activation pass the same places.
    nth: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} during {:?}", self.point, self.nth, self.during)
    }
}

const FOLLOW: &[Point] = &[StandbyTaken, StandbySeen, StandbyAdmitted, StandbyStored];

const ACTIVATE: &[(Point, u32)] = &[
    (TakeOverStored, 1),
    (ActivationPullAdmitted, 1),
    (ActivationPulled, 1),
    (WarmedBeforeStored, 1),
    (WarmedStored, 1),
    (FencingStored, 1),
    (BasingStored, 1),
    (AdoptingStored, 1),
    (PullingBeforeStored, 1),
    (AdoptedBeforeCommit, 1),
    (PullingStored, 1),
    (ActivationPullAdmitted, 2),
    (ActivationPulled, 2),
    (AdoptedBeforeStored, 1),
    (HandedOverBeforeCommit, 1),
    (AdoptedStored, 1),
];

pub(crate) fn cases() -> Vec<Case> {
    let follow = FOLLOW.iter().map(|&point| Case { point, during: During::Follow, nth: 1 });
    let activate = ACTIVATE.iter().map(|&(point, nth)| Case { point, during: During::Activate, nth });
    follow.chain(activate).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s36_a_coordinator_that_dies_while_a_standby_follows_or_is_activated_leaves_what_the_other_one_ends() {
    go_through::<Standbys>("s36 standby", cases()).await;
}

/// An owner, alive, and a standby on its location with hosts and a database of its own, which two replicas share.
struct Standbys {
    owner: Cluster,
    heir: Cluster,
    step: u64,
}

impl Lane for Standbys {
    type Case = Case;

    async fn open(_: &Case) -> Self {
        let options = Options {
            hosts: 2,
            in_memory: true,
            lease: "600ms",
            renew_every: "150ms",
            unreachable_after: "1s",
            ..Options::default()
        };
        let owner = Cluster::with(options.clone()).await;
        let mut lane = Self { heir: Cluster::with(Options { create: false, ..options }).await, owner, step: 0 };
        lane.pushed().await;
        for idx in 0..lane.heir.hosts.len() {
            lane.heir.kill_agent(idx);
            let mut flags = vec!["--pipeline".to_owned(), HEIR.to_owned()];
            let allowed = format!("s3://{BUCKET}/{PIPELINE}?endpoint={}&path_style=true", lane.owner.endpoint());
            flags.extend(["--allow-location".to_owned(), allowed]);
            let identity = lane.heir.identity(idx);
            lane.heir.start_agent_as(idx, &identity, &flags, &format!("agent-{idx}-secret")).await;
        }
        let spec = v1::PipelineSpec {
            initial: v1::Initial::Standby.into(),
            location: Some(lane.owner.location(PIPELINE)),
            pull_interval: Some(prost_types::Duration { seconds: 24 * 3600, nanos: 0 }),
            ..lane.heir.spec(HEIR)
        };
        lane.heir.client.create_pipeline(spec).await.unwrap();
        lane.holds_the_newest().await;
        lane
    }

    fn fits(&self, case: &Case) -> bool {
        // A standby is activated once.
        case.during == During::Follow
    }

    async fn run(&mut self, case: &Case) -> Outcome {
        let expected = self.pushed().await;
        let recovery = match case.during {
            During::Follow => self.follow(case).await,
            During::Activate => self.activate(case).await,
        };
        let states: Vec<State> = self.heir.hosts.iter().map(|host| host.state()).collect();
        assert!(states == expected, "every host of the heir has the newest checkpoint and nothing else");
        for host in &self.heir.hosts {
            assert!(host.leftovers().is_empty(), "host {}: {:?}", host.idx, host.leftovers());
        }
        let end = match case.during {
            During::Follow => format!("holds step {}", self.step),
            During::Activate => {
                self.the_heir_alone_writes().await;
                "active, generation 2".to_owned()
            }
        };
        Outcome { end, recovery }
    }
}

impl Standbys {
    /// A new step of the owner; its files on every host.
    async fn pushed(&mut self) -> Vec<State> {
        self.step += 10;
        let make = |host: &lockstep_integration_tests::host::Host| {
            let text = format!("host {} at step {}", host.idx, self.step);
            host.state_of(host.checkpoint(self.step, &[("state.bin", text.as_bytes())]))
        };
        let states = self.owner.hosts.iter().map(make).collect();
        self.owner.pushed().await;
        states
    }

    async fn holds_the_newest(&self) {
        wait::until("the standby holds the newest step", || async {
            let pipeline = self.heir.client.get_pipeline(HEIR).await.map_err(|error| error.to_string())?;
            let standby = pipeline.standby.expect("it is a standby");
            if standby.held.as_ref().is_some_and(|held| held.step == self.step) {
                Ok(())
            } else {
                Err(format!("{standby:?}"))
            }
        })
        .await;
    }

    /// Every round of the heir.
    async fn rounds(&self) -> Vec<v1::Round> {
        let filter = v1::ListRoundsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
        self.heir.client.list_rounds(filter, 1000).await.unwrap()
    }

    /// The one that is to die; the other one stops, and will not be in its way.
    async fn victim(
        &mut self,
        case: &Case,
    ) -> (lockstep_integration_tests::process::Process, lockstep_client::LockstepClient) {
        self.heir.arm(format!("{}=kill@{}", case.point, case.nth));
        let secret = format!("{COORDINATOR_KEY}-secret");
        let (process, address) = self.heir.another_coordinator("victim", "127.0.0.1:0", &secret).await;
        self.heir.arm("");
        self.heir.pause_coordinator(true);
        (process, client_of(&format!("http://{address}")))
    }

    async fn follow(&mut self, case: &Case) -> Duration {
        let (mut process, client) = self.victim(case).await;
        // It may die before it can answer.
        let _ = client.start_standby(HEIR, "").await;
        process.killed().await;
        let died = Instant::now();
        self.heir.pause_coordinator(false);
        self.holds_the_newest().await;
        let recovery = died.elapsed();
        let of_step: Vec<_> = self.rounds().await.into_iter().filter(|round| round.step == Some(self.step)).collect();
        assert_eq!(of_step.len(), 1, "pulled once: {of_step:?}");
        assert_eq!(of_step[0].phase(), RoundPhase::Installed, "{of_step:?}");
        recovery
    }

    async fn activate(&mut self, case: &Case) -> Duration {
        let request = v1::ActivateRequest {
            pipeline: HEIR.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            ..v1::ActivateRequest::default()
        };
        let (mut process, client) = self.victim(case).await;
        let _ = client.activate(request.clone()).await;
        process.killed().await;
        let died = Instant::now();
        self.heir.pause_coordinator(false);
        let done = wait::until("the standby is activated", || self.heir.client.activate(request.clone())).await;
        assert_eq!((done.generation, done.previous_owner_name.as_str()), (2, PIPELINE));
        wait::until("it is handed over", || async {
            let pipeline = self.heir.client.get_pipeline(HEIR).await.map_err(|error| error.to_string())?;
            if pipeline.standby.is_none() { Ok(()) } else { Err(format!("{pipeline:?}")) }
        })
        .await;
        died.elapsed()
    }

    /// One fence, one base, one activation in the trail; what the old owner pushes is refused, what the heir pushes counts.
    async fn the_heir_alone_writes(&mut self) {
        let fences = self.owner.s3.admin().keys(BUCKET, &format!("{PIPELINE}/fences/")).unwrap();
        assert_eq!(fences.len(), 3, "two fences and a base: {fences:?}");
        let filter = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
        let trail = self.heir.client.list_audit_events(filter, 1000).await.unwrap();
        let phases: Vec<&str> = trail
            .iter()
            .filter(|event| event.action.contains("take_over"))
            .map(|event| event.to_phase.as_str())
            .collect();
        assert_eq!(phases, ["warming", "preparing", "fencing", "basing", "adopting", "pulling", "done"]);
        let (old, new) = (self.step + 1, self.step + 2);
        for (cluster, step) in [(&self.owner, old), (&self.heir, new)] {
            for host in &cluster.hosts {
                host.checkpoint(step, &[("state.bin", format!("host {} at {step}", host.idx).as_bytes())]);
            }
        }
        let refused = self.owner.push().await;
        assert_eq!(refused.problem.map(|problem| problem.reason).as_deref(), Some("FENCED"));
        let push = v1::StartPushRequest { pipeline: HEIR.to_owned(), ..Default::default() };
        let push = self.heir.client.start_push(push).await.unwrap();
        let push = self.heir.client.wait_round(&push.id).await.unwrap();
        assert_eq!((push.phase(), push.generation, push.seq), (RoundPhase::Committed, 2, 1), "{:?}", push.problem);
        let pulls = self.rounds().await;
        assert!(pulls.iter().all(lockstep_client::is_terminal), "each round has an end: {pulls:?}");
    }
}
