//! A system in which everything happened that an audit looks at: full and delta parts, an abort that won its key, a failed and a cancelled push, orphans of a
//! dead agent, a pull onto lost disks, requests that were sent twice.

use std::{path::Path, time::Instant};

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    auditor::{Evidence, collect, witness::Witness},
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key},
    content::{link, noise, put},
    servers::Account,
    wait,
};
use uuid::Uuid;

/// Enough for parts that are deltas.
const FILES: usize = 80;

pub(crate) struct Sound {
    pub(crate) cluster: Cluster,
    witness: Witness,
}

impl Sound {
    pub(crate) async fn make() -> Self {
        let cluster = Cluster::with(Options { in_memory: true, ..Options::default() }).await;
        let mut sound = Self { cluster, witness: Witness::default() };
        sound.checkpoint(10, None);
        sound.push(RoundPhase::Committed).await;
        sound.checkpoint(20, Some(10));
        sound.push_of_a_killed_agent().await;
        sound.checkpoint(30, Some(20));
        sound.abort_that_wins().await;
        sound.push(RoundPhase::Committed).await;
        sound.push_of_nothing().await;
        sound.cancel_while_transferring().await;
        sound.pull().await;
        sound
    }

    pub(crate) async fn collect(&self) -> Evidence {
        let secret = format!("{COORDINATOR_KEY}-secret");
        let sources = collect::Sources {
            endpoint: &self.cluster.endpoint(),
            account: Account { key: COORDINATOR_KEY, secret: &secret },
            bucket: BUCKET,
            journal_root: &self.cluster.s3_root(),
            database: self.cluster.database.url(),
        };
        collect::collect(sources, self.witness.history()).await
    }

    /// A checkpoint on every host, most of it linked to an older one.
    fn checkpoint(&self, step: u64, older: Option<u64>) {
        for host in &self.cluster.hosts {
            let known = self.witness.history().made;
            let before = known.iter().find(|(_, made)| made.host_idx == host.idx && Some(made.step) == older);
            let before = before.map(|(id, _)| host.dir.join("checkpoints").join(id.to_string()));
            let id = host.checkpoint_filled(step, |folder| fill(folder, host.idx, step, before.as_deref()));
            self.witness.made(host, id.uuid(), step);
        }
    }

    async fn start(&self) -> v1::Round {
        let request = Uuid::new_v4();
        let push = v1::StartPushRequest {
            pipeline: PIPELINE.to_owned(),
            request_id: request.to_string(),
            ..v1::StartPushRequest::default()
        };
        let round = self.cluster.client.start_push(push.clone()).await.unwrap();
        self.witness.admitted(request, &round);
        // The same once more, as after a lost answer.
        self.witness.admitted(request, &self.cluster.client.start_push(push).await.unwrap());
        round
    }

    async fn ended(&self, round: &v1::Round, phase: RoundPhase) {
        let round = self.cluster.client.wait_round(&round.id).await.unwrap();
        assert_eq!(round.phase(), phase, "{:?}", round.problem);
        self.witness.shown(&round);
        let asked = Instant::now();
        let latest = self.cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap();
        self.witness.latest(asked, &latest);
    }

    async fn push(&self, phase: RoundPhase) {
        let round = self.start().await;
        self.ended(&round, phase).await;
    }

    /// What it had sent until then nobody will ever use.
    async fn push_of_a_killed_agent(&mut self) {
        let hang = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).key_contains("part.json");
        let hang = self.cluster.s3.faults().add(hang);
        let round = self.start().await;
        wait::until("a part is about to be written", || async {
            if self.cluster.s3.faults().hits(hang) > 0 { Ok(()) } else { Err("not yet") }
        })
        .await;
        self.cluster.kill_agent(1);
        self.cluster.s3.faults().remove(hang);
        self.cluster.start_agent(1).await;
        self.ended(&round, RoundPhase::Committed).await;
    }

    /// The commit is refused until somebody cancels.
    async fn abort_that_wins(&self) {
        let error = FaultRule::new(FaultAction::InternalError).access_key(COORDINATOR_KEY).operation("PutObject");
        let error = self.cluster.s3.faults().add(error.key_contains("/commits/"));
        let round = self.start().await;
        wait::until("the commit's outcome is unknown", || async {
            if self.cluster.s3.faults().hits(error) > 0 { Ok(()) } else { Err("not yet") }
        })
        .await;
        self.cluster.client.cancel_round(&round.id, "a test").await.unwrap();
        self.cluster.s3.faults().remove(error);
        self.ended(&round, RoundPhase::Cancelled).await;
    }

    /// No host has this step.
    async fn push_of_nothing(&self) {
        let push = v1::StartPushRequest {
            pipeline: PIPELINE.to_owned(),
            selector: Some(v1::start_push_request::Selector::Step(99)),
            ..v1::StartPushRequest::default()
        };
        // Refused at once, or admitted and failed.
        if let Ok(round) = self.cluster.client.start_push(push).await {
            self.ended(&round, RoundPhase::Failed).await;
        }
    }

    async fn cancel_while_transferring(&self) {
        self.checkpoint(40, Some(30));
        let hang = FaultRule::new(FaultAction::Hang).access_key(agent_key(0)).operation("PutObject");
        let hang = self.cluster.s3.faults().add(hang);
        let round = self.start().await;
        self.cluster.round_when(&round.id, "it transfers", |round| round.phase() == RoundPhase::Transferring).await;
        self.cluster.client.cancel_round(&round.id, "a test").await.unwrap();
        self.ended(&round, RoundPhase::Cancelled).await;
        self.cluster.s3.faults().remove(hang);
    }

    async fn pull(&mut self) {
        for idx in 0..self.cluster.hosts.len() {
            self.cluster.lose_disk(idx).await;
        }
        let round = self.cluster.pulled().await;
        self.witness.installed(&round, &self.cluster.hosts);
        self.witness.shown(&round);
    }
}

fn fill(folder: &Path, host: u32, step: u64, before: Option<&Path>) {
    for n in 0..FILES {
        let name = format!("files/{n}");
        match before {
            // A tenth changes from step to step.
            Some(before) if n % 10 != 0 => link(&before.join(&name), folder, &name),
            _ => put(folder, &name, &noise(step, &format!("{host} {n}"), 100 + n * 10)),
        }
    }
    put(folder, "empty", b"");
}
