//! Who uses a pipeline: its manager, which makes engines checkpoint, pushes, cancels, loses disks and pulls; and readers who ask and watch all the while.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use lockstep_client::{ClientError, LockstepClient, RetryPolicy, Retryable, is_terminal, v1};
use lockstep_integration_tests::{host::Host, wait};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    sync::watch,
    task::block_in_place,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::{
    engine,
    world::{Member, World},
};

/// The longest that one call or one watch is waited for before the other coordinator is asked.
const CALL: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(100);

/// The manager of one pipeline.
pub(crate) struct Crew {
    world: Arc<World>,
    pub(crate) member: Member,
    clients: Vec<LockstepClient>,
    random: StdRng,
    /// Rises for ever, so that what was made last is also newest.
    step: u64,
    /// By host: what its engine has, the newest last.
    local: Vec<Vec<Uuid>>,
    /// Not all hosts have the same checkpoint: engines may not run before a pull is installed.
    torn: bool,
    committed: Vec<String>,
    current: watch::Sender<String>,
    /// Calls that were refused, by reason.
    pub(crate) refused: BTreeMap<String, u32>,
    /// Checkpoints that found no space.
    pub(crate) without_space: u32,
}

impl Crew {
    pub(crate) fn of(world: &Arc<World>, member: Member, seed: u64) -> Self {
        Self {
            world: Arc::clone(world),
            member,
            clients: world.clients(member.name),
            random: StdRng::seed_from_u64(seed ^ (member.first as u64 + 1)),
            step: 0,
            local: vec![Vec::new(); member.agents().len()],
            torn: false,
            committed: Vec::new(),
            current: watch::Sender::default(),
            refused: BTreeMap::new(),
            without_space: 0,
        }
    }

    /// Creates the pipeline and pushes once, while the weather is good.
    pub(crate) async fn start(world: &Arc<World>, member: Member, spec: v1::PipelineSpec, seed: u64) -> Self {
        let mut crew = Self::of(world, member, seed);
        crew.create(spec).await;
        assert!(crew.checkpoint(), "disks are empty");
        while crew.committed.is_empty() {
            crew.push(None, Duration::from_secs(30)).await;
        }
        crew
    }

    pub(crate) async fn create(&mut self, spec: v1::PipelineSpec) {
        let create = v1::CreatePipelineRequest {
            spec: Some(spec),
            request_id: self.new_id().to_string(),
            ..v1::CreatePipelineRequest::default()
        };
        while let Err(error) = self.clients[0].create_pipeline_with(create.clone()).await {
            assert_eq!(error.retryable(), Retryable::Yes, "{error}");
            sleep(PAUSE).await;
        }
    }

    fn new_id(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.random.random()).into_uuid()
    }

    fn hosts(&self) -> &[Host] {
        self.world.hosts_of(&self.member)
    }

    /// Which round is under way, for readers.
    pub(crate) fn rounds(&self) -> watch::Receiver<String> {
        self.current.subscribe()
    }

    /// Goes on until the world stops.
    pub(crate) async fn live(mut self) -> Self {
        while !self.world.is_stopping() {
            if self.torn || self.random.random_bool(0.2) {
                self.restore().await;
                continue;
            }
            if !self.checkpoint() {
                // Room is made by dropping what is old, or by whoever filled the disk.
                self.drop_old(1);
                sleep(PAUSE).await;
                continue;
            }
            let cancel = self.random.random_bool(0.15).then(|| Duration::from_millis(self.random.random_range(0..800)));
            let deadline = if self.random.random_bool(0.1) { 3 } else { 40 };
            self.push(cancel, Duration::from_secs(deadline)).await;
            self.drop_old(2);
        }
        self
    }

    /// A checkpoint on every host, if there is room.
    fn checkpoint(&mut self) -> bool {
        self.step += 1;
        for idx in 0..self.local.len() {
            let (id, before) = (self.new_id(), self.local[idx].last().copied());
            let make = || engine::make(&self.hosts()[idx], &self.world.witness, id, self.step, before);
            if let Err(problem) = block_in_place(make) {
                assert_eq!(problem.reason.as_str(), "NO_SPACE", "{problem}");
                self.without_space += 1;
                return false;
            }
            self.local[idx].push(id);
        }
        true
    }

    fn drop_old(&mut self, keep: usize) {
        for idx in 0..self.local.len() {
            let old = self.local[idx].len().saturating_sub(keep);
            self.local[idx].drain(..old);
            block_in_place(|| engine::drop_all_but(&self.hosts()[idx], &self.local[idx]));
        }
    }

    async fn push(&mut self, cancel: Option<Duration>, deadline: Duration) -> Option<v1::Round> {
        let request = self.new_id();
        let push = v1::StartPushRequest {
            pipeline: self.member.name.to_owned(),
            request_id: request.to_string(),
            deadline: Some(seconds(deadline)),
            ..v1::StartPushRequest::default()
        };
        let call = |client: LockstepClient| {
            let push = push.clone();
            async move { client.start_push(push).await }
        };
        let round = self.admitted(request, call).await?;
        if let Some(after) = cancel {
            let client = self.clients.choose(&mut self.random).expect("two").clone();
            let id = round.id.clone();
            tokio::spawn(async move {
                sleep(after).await;
                // Too late, unreachable: whatever it says, the round's end tells.
                let _ = timeout(CALL, client.cancel_round(id, "chaos")).await;
            });
        }
        let ended = self.ended(&round.id).await;
        if ended.phase() == v1::RoundPhase::Committed {
            self.committed.push(ended.id.clone());
        }
        Some(ended)
    }

    /// Loses some disks or none, and pulls until what is on them is whole again.
    async fn restore(&mut self) {
        let lost = match self.random.random_range(0..4) {
            0 => Vec::new(),
            1 => vec![self.random.random_range(0..self.local.len())],
            _ => (0..self.local.len()).collect(),
        };
        self.torn |= !lost.is_empty();
        for idx in lost {
            self.lose_disk(idx).await;
        }
        self.pull().await;
    }

    async fn lose_disk(&self, idx: usize) {
        let keeper = &self.world.agents[self.member.first + idx];
        let _held = keeper.hold().await;
        block_in_place(|| {
            keeper.kill();
            self.hosts()[idx].wipe();
        });
        keeper.revive();
    }

    async fn pull(&mut self) -> Option<v1::Round> {
        use v1::start_pull_request::Selector;
        let older = self.committed.choose(&mut self.random).cloned().map(Selector::Checkpoint);
        let request = self.new_id();
        let pull = v1::StartPullRequest {
            pipeline: self.member.name.to_owned(),
            standby: Some(false),
            fail_if_none: Some(true),
            selector: older.filter(|_| self.random.random_bool(0.3)),
            request_id: request.to_string(),
            deadline: Some(seconds(Duration::from_secs(40))),
            ..v1::StartPullRequest::default()
        };
        let call = |client: LockstepClient| {
            let pull = pull.clone();
            async move { client.start_pull(pull).await }
        };
        let round = self.admitted(request, call).await?;
        let ended = self.ended(&round.id).await;
        if ended.phase() == v1::RoundPhase::Installed {
            block_in_place(|| self.world.witness.installed(&ended, self.hosts()));
            self.local = self.hosts().iter().map(engine::checkpoints).collect();
            self.torn = false;
        }
        Some(ended)
    }

    /// Asks one coordinator after the other, always with the same request id, until one has answered.
    async fn admitted<F: Future<Output = Result<v1::Round, ClientError>>>(
        &mut self,
        request: Uuid,
        call: impl Fn(LockstepClient) -> F,
    ) -> Option<v1::Round> {
        loop {
            let client = self.clients.choose(&mut self.random).expect("two").clone();
            match timeout(CALL, call(client)).await {
                Ok(Ok(round)) => {
                    self.world.witness.admitted(request, &round);
                    self.world.witness.shown(&round);
                    self.current.send_replace(round.id.clone());
                    return Some(round);
                }
                Ok(Err(error)) if error.retryable() != Retryable::Yes || error.reason() == "ROUND_IN_PROGRESS" => {
                    *self.refused.entry(error.reason().to_owned()).or_default() += 1;
                    sleep(PAUSE).await;
                    return None;
                }
                Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Waits for the end of a round that was admitted: it has one.
    async fn ended(&mut self, round: &str) -> v1::Round {
        loop {
            let client = self.clients.choose(&mut self.random).expect("two").clone();
            match timeout(CALL, client.wait_round(round)).await {
                Ok(Ok(round)) => {
                    self.world.witness.shown(&round);
                    return round;
                }
                Ok(Err(error)) => {
                    assert_ne!(error.reason(), "ROUND_NOT_FOUND", "round {round} was admitted and is not known");
                    sleep(PAUSE).await;
                }
                Err(_) => {}
            }
        }
    }

    /// A standby becomes the writer, with exactly the newest checkpoint on its hosts.
    pub(crate) async fn activate(&mut self) {
        let request = v1::ActivateRequest {
            pipeline: self.member.name.to_owned(),
            request_id: self.new_id().to_string(),
            ..v1::ActivateRequest::default()
        };
        let clients = &self.clients;
        wait::until("the standby is active", || async {
            match clients[0].activate(request.clone()).await {
                Ok(_) => Ok(()),
                Err(error) if error.retryable() == Retryable::Yes => Err(error),
                Err(error) => panic!("an activation is refused: {error}"),
            }
        })
        .await;
        self.local = self.hosts().iter().map(engine::checkpoints).collect();
    }

    /// Its engines go on after everything that the primary's have done.
    pub(crate) fn goes_on_from(&mut self, primary: &Self) {
        self.step = primary.step;
    }

    /// Collects garbage, or says why that has not ended.
    pub(crate) async fn collect(&self) -> Result<(), String> {
        let request =
            v1::CollectGarbageRequest { pipeline: self.member.name.to_owned(), ..v1::CollectGarbageRequest::default() };
        let answer = self.clients[0].collect_garbage(request).await.map_err(|error| error.to_string())?;
        match answer.collection {
            Some(collection) if collection.phase == "done" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    /// L2: after the last fault everything works at the first try, through either coordinator.
    pub(crate) async fn works_again(&mut self) {
        let never = |client: &LockstepClient| client.with_retry(RetryPolicy::never());
        self.clients = self.world.clients(self.member.name).iter().map(never).collect();
        if self.torn {
            let pulled = self.pull().await;
            let phase = pulled.as_ref().map(v1::Round::phase);
            assert_eq!(phase, Some(v1::RoundPhase::Installed), "L2: {pulled:?}, refused: {:?}", self.refused);
        }
        self.drop_old(1);
        for client in self.clients.clone() {
            assert!(self.checkpoint(), "disks have room again");
            let push =
                v1::StartPushRequest { pipeline: self.member.name.to_owned(), ..v1::StartPushRequest::default() };
            let round = client.start_push(push).await.expect("L2: a push is admitted at the first try");
            let ended = self.ended(&round.id).await;
            assert_eq!(ended.phase(), v1::RoundPhase::Committed, "L2: {:?}", ended.problem);
        }
    }
}

fn seconds(duration: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: i64::try_from(duration.as_secs()).expect("short"), nanos: 0 }
}

/// Asks what the newest checkpoint is, and watches each round through whichever coordinator, until the world stops.
pub(crate) async fn read(world: Arc<World>, pipeline: &'static str, rounds: watch::Receiver<String>, seed: u64) {
    let clients = world.clients("reader");
    let mut random = StdRng::seed_from_u64(seed);
    while !world.is_stopping() {
        let client = clients.choose(&mut random).expect("two");
        let asked = Instant::now();
        if let Ok(Ok(latest)) = timeout(CALL, client.get_checkpoint(pipeline, "latest")).await {
            world.witness.latest(asked, &latest);
        }
        let round = rounds.borrow().clone();
        let client = clients.choose(&mut random).expect("two");
        let watching = async {
            let mut shown = client.watch_round(round);
            while let Some(Ok(round)) = shown.next().await {
                world.witness.shown(&round);
                if is_terminal(&round) {
                    break;
                }
            }
        };
        let _ = timeout(Duration::from_secs(2), watching).await;
        sleep(PAUSE).await;
    }
}
