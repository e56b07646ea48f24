//! Hints that something changed, so that waiters look sooner. Polling is the truth: a hint may be missing, late or for nothing.
//!
//! Inside a process every change is told at once. Other replicas hear by NOTIFY only of what they may be waiting for: admissions, cancels,
//! ends, pipelines. Those are collected and sent apart from the transactions they tell of, since NOTIFY serialises commits.

use std::{sync::Arc, time::Duration};

use lockstep_protocol::id::{PipelineId, RoundId};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::transactions::Transactions;

pub(super) const CHANNEL: &str = "lockstep_changes";

/// Hints that wait to be read by one subscriber; one that lags is told to look at everything.
const BUFFER: usize = 1024;

/// Hints that wait to be sent to other replicas; more are dropped.
const OUTBOX: usize = 4096;

/// Wait before LISTEN is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// What may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// A round, its participants or its cancel request.
    Round(RoundId),
    /// A pipeline, or its rounds as a list.
    Pipeline(PipelineId),
    /// Anything: hints were lost.
    Anything,
}

impl Change {
    fn payload(self) -> Option<String> {
        match self {
            Self::Round(id) => Some(format!("r{id}")),
            Self::Pipeline(id) => Some(format!("p{id}")),
            Self::Anything => None,
        }
    }

    pub(super) fn parse(payload: &str) -> Self {
        let round = payload.strip_prefix('r').and_then(|id| id.parse().ok()).map(Self::Round);
        let pipeline = payload.strip_prefix('p').and_then(|id| id.parse().ok()).map(Self::Pipeline);
        round.or(pipeline).unwrap_or(Self::Anything)
    }
}

/// A subscription to hints. Take it before looking, so that what changes in between is not missed.
#[derive(Debug)]
pub struct Changes {
    receiver: broadcast::Receiver<Change>,
}

impl Changes {
    /// The next hint. Never ends while the store lives; afterwards it never returns.
    pub async fn next(&mut self) -> Change {
        match self.receiver.recv().await {
            Ok(change) => change,
            Err(broadcast::error::RecvError::Lagged(_)) => Change::Anything,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Who else is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    Here,
    Everywhere,
}

#[derive(Debug)]
pub(super) struct Hints {
    local: broadcast::Sender<Change>,
    outbox: mpsc::Sender<String>,
    _stop: DropGuard,
}

impl Hints {
    /// Starts sending and listening; both end when the value is dropped.
    pub(super) fn start(database: &Arc<dyn Transactions>) -> Self {
        let (local, _) = broadcast::channel(BUFFER);
        let (outbox, waiting) = mpsc::channel(OUTBOX);
        let stop = CancellationToken::new();
        tokio::spawn(send(Arc::clone(database), waiting));
        // Stopped in the middle it leaves nothing behind: the connection is its own, and LISTEN writes nothing.
        let listening = listen(Arc::clone(database), local.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(listening));
        Self { local, outbox, _stop: stop.drop_guard() }
    }

    pub(super) fn subscribe(&self) -> Changes {
        Changes { receiver: self.local.subscribe() }
    }

    pub(super) fn tell(&self, change: Change, reach: Reach) {
        // Nobody listening, or a full outbox: a hint is not owed.
        let _ = self.local.send(change);
        if reach == Reach::Everywhere
            && let Some(payload) = change.payload()
        {
            let _ = self.outbox.try_send(payload);
        }
    }
}

/// Sends what has gathered while the last batch was under way. Ends with the last sender.
async fn send(database: Arc<dyn Transactions>, mut waiting: mpsc::Receiver<String>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, OUTBOX).await > 0 {
        batch.sort_unstable();
        batch.dedup();
        if let Err(error) = database.notify(std::mem::take(&mut batch)).await {
            tracing::debug!(%error, "changes were not announced to other replicas; they find them by polling");
        }
    }
}

async fn listen(database: Arc<dyn Transactions>, local: broadcast::Sender<Change>) {
    loop {
        if let Err(error) = database.follow(local.clone()).await {
            tracing::debug!(%error, "not listening for changes of other replicas; polling finds them");
        }
        let _ = local.send(Change::Anything);
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_survives_its_payload_and_nonsense_means_anything() {
        let id = uuid::Uuid::from_u128(7);
        for change in [Change::Round(RoundId::new(id)), Change::Pipeline(PipelineId::new(id))] {
            assert_eq!(Change::parse(&change.payload().unwrap()), change);
        }
        for nonsense in ["", "r", "rx", "q7"] {
            assert_eq!(Change::parse(nonsense), Change::Anything);
        }
    }
}
