//! An agent that follows a script: it writes real part manifests into the bucket in memory, or misbehaves as it was told.

mod parts;
mod script;
mod service;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use lockstep_bucket::MemoryBuckets;
use lockstep_proto::v1::{self, agent_server::AgentServer};
use lockstep_protocol::problem::Reason;
use lockstep_rpc::{GrpcServer, ServerOptions};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::rig::uuid;
pub(crate) use parts::Behind;
use script::{Held, Scripted, State, Transfer, failed};

/// What an agent does with the next order of a new attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Play {
    /// What it should.
    Well,
    /// `TRANSFER_IN_PROGRESS` this many times first.
    BusyFor(u32),
    /// It moves until [`Agent::release`] or [`Agent::fail`].
    Hold,
    /// It runs and never moves.
    Stand,
    /// It accepts the order and is another process right after.
    Restart,
    /// It reports a part that is of another step in S3.
    Lie,
    /// It reports a sound part that inherits a manifest which the base does not reach.
    Stray,
    /// It fails for this reason.
    Fail(Reason),
    /// It forgets the order once.
    Forget,
}

/// What it was told that its engine may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    pub(crate) round: String,
    pub(crate) round_no: u64,
    pub(crate) term: u64,
    pub(crate) step: u64,
    pub(crate) fresh: bool,
    pub(crate) role: v1::Role,
}

/// Ends with the value.
pub(crate) struct Agent {
    pub(crate) address: String,
    scripted: Scripted,
    _stop: DropGuard,
}

pub(crate) fn local(step: u64) -> v1::LocalCheckpoint {
    v1::LocalCheckpoint {
        uuid: uuid(),
        step,
        fingerprint: "18446744073709551615".to_owned(),
        bytes: 5,
        files: 1,
        processed_records: Some(10),
        created_at: None,
    }
}

impl Agent {
    pub(crate) async fn start(host_idx: u32, n_hosts: u32, steps: &[u64], buckets: &MemoryBuckets) -> Self {
        Self::with_files(host_idx, n_hosts, steps, 1, Behind::Memory(buckets.clone())).await
    }

    /// One that reuses what its part of the base has.
    pub(crate) async fn with_files(host_idx: u32, n_hosts: u32, steps: &[u64], files: u32, behind: Behind) -> Self {
        let state = State {
            incarnation: uuid(),
            checkpoints: steps.iter().map(|step| local(*step)).collect(),
            plays: VecDeque::new(),
            busy: 0,
            transfers: HashMap::new(),
            held: None,
            moved: 0,
            staged: None,
            calls: Vec::new(),
            term: 0,
            told: Vec::new(),
            deaf: false,
        };
        let scripted = Scripted {
            host_idx,
            n_hosts,
            files,
            behind,
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(()),
        };
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = GrpcServer::new(ServerOptions::default()).add_service(AgentServer::new(scripted.clone()));
        let stopped = stop.clone();
        tokio::spawn(async move { server.serve(listener, stopped.cancelled_owned()).await.unwrap() });
        Self { address, scripted, _stop: stop.drop_guard() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.scripted.lock()
    }

    /// For the next attempts, one each; afterwards it plays well.
    pub(crate) fn plays(&self, plays: impl IntoIterator<Item = Play>) {
        self.state().plays.extend(plays);
    }

    /// What was held ends well.
    pub(crate) fn release(&self) {
        let held = self.state().held.take();
        match held {
            Some(Held::Push(order)) => {
                let done = self.scripted.write_part(&order, order.step, false);
                self.end(order.header, Transfer::Pushed(done));
            }
            Some(Held::Pull(order)) => {
                let done = self.state().stage(&order);
                self.end(order.header, Transfer::Pulled(done));
            }
            None => self.end(None, Transfer::Running),
        }
    }

    /// What was held fails for this reason.
    pub(crate) fn fail(&self, reason: Reason) {
        let header = match self.state().held.take() {
            Some(Held::Push(order)) => order.header,
            Some(Held::Pull(order)) => order.header,
            None => None,
        };
        self.end(header, failed(reason));
    }

    fn end(&self, header: Option<v1::OrderHeader>, how: Transfer) {
        if let Some(header) = header {
            self.state().transfers.insert((header.round, header.attempt), how);
        }
        self.scripted.changed.send_replace(());
    }

    /// Another process on the same disk: what was staged is gone.
    pub(crate) fn restart(&self) {
        self.scripted.restart(&mut self.state());
    }

    pub(crate) fn wipe(&self) {
        let mut state = self.state();
        state.checkpoints.clear();
        state.staged = None;
    }

    pub(crate) fn steps(&self) -> Vec<u64> {
        self.state().checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
    }

    pub(crate) fn calls(&self, name: &str) -> Vec<u32> {
        self.state().calls.iter().filter(|(call, _)| *call == name).map(|(_, attempt)| *attempt).collect()
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        self.state().told.clone()
    }

    /// Whether words find nobody there.
    pub(crate) fn deaf(&self, deaf: bool) {
        self.state().deaf = deaf;
    }

    /// Until the newest word that it was told is like this.
    pub(crate) async fn until_told(&self, like: impl Fn(&Told) -> bool) -> Told {
        let mut changed = self.scripted.changed.subscribe();
        loop {
            if let Some(told) = self.told().pop().filter(&like) {
                return told;
            }
            changed.changed().await.unwrap();
        }
    }

    pub(crate) fn term(&self) -> u64 {
        self.state().term
    }

    /// Until it was called so.
    pub(crate) async fn called(&self, name: &str) {
        self.called_in(name, 1).await;
    }

    /// Until it was called so in this attempt or a later one.
    pub(crate) async fn called_in(&self, name: &str, attempt: u32) {
        let mut changed = self.scripted.changed.subscribe();
        while !self.calls(name).iter().any(|called| *called >= attempt) {
            changed.changed().await.unwrap();
        }
    }
}
