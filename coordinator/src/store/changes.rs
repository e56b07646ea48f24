//! Hints that something changed, so that waiters look sooner. Polling is the truth: a hint may be missing, late or for nothing.
//!
//! Inside a process every change is told at once. Other replicas hear by NOTIFY only of what they may be waiting for: admissions, cancels,
//! ends, pipelines. Those are collected and sent apart from the transactions they tell of, since NOTIFY serialises commits.

use std::{sync::Arc, time::Duration};

use lockstep_protocol::id::{PipelineId, RoundId};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::transactions::Transactions;
use crate::chance;

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
    /// A round that goes on, or its participants.
    Round(RoundId),
    /// A round: it has ended.
    Ended(RoundId),
    /// Somebody asked to stop a round.
    Cancel(RoundId),
    /// Some round: nobody drives it.
    RoundWaits,
    /// The claim of some pipeline's location, a take-over or a piece of upkeep: nobody drives it.
    ClaimWaits,
    /// A pipeline, or its rounds as a list.
    Pipeline(PipelineId),
    /// Anything: hints were lost.
    Anything,
}

impl Change {
    fn payload(self) -> Option<String> {
        match self {
            Self::Round(id) => Some(format!("r{id}")),
            Self::Ended(id) => Some(format!("e{id}")),
            Self::Cancel(id) => Some(format!("x{id}")),
            Self::RoundWaits => Some("w".to_owned()),
            Self::ClaimWaits => Some("c".to_owned()),
            Self::Pipeline(id) => Some(format!("p{id}")),
            Self::Anything => None,
        }
    }

    pub(super) fn parse(payload: &str) -> Self {
        match payload {
            "w" => return Self::RoundWaits,
            "c" => return Self::ClaimWaits,
            _ => {}
        }
        let round = |kind: char| payload.strip_prefix(kind).and_then(|id| id.parse().ok());
        let pipeline = payload.strip_prefix('p').and_then(|id| id.parse().ok()).map(Self::Pipeline);
        let found = round('r').map(Self::Round).or_else(|| round('e').map(Self::Ended));
        found.or_else(|| round('x').map(Self::Cancel)).or(pipeline).unwrap_or(Self::Anything)
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
    origin: Origin,
    _stop: DropGuard,
}

/// Who tells. Postgres tells a replica its own hints too, and each would make it look once more for nothing.
#[derive(Clone, Debug)]
struct Origin(String);

impl Origin {
    fn sign(&self, payload: &str) -> String {
        format!("{payload}@{}", self.0)
    }

    /// What somebody else has told; none: it was ourselves.
    fn hear(&self, payload: &str) -> Option<Change> {
        match payload.split_once('@') {
            Some((_, origin)) if origin == self.0 => None,
            Some((payload, _)) => Some(Change::parse(payload)),
            // Not signed: of another version, or some were lost.
            None => Some(Change::parse(payload)),
        }
    }
}

impl Hints {
    /// Starts sending and listening; both end when the value is dropped.
    pub(super) fn start(database: &Arc<dyn Transactions>) -> Self {
        let (local, _) = broadcast::channel(BUFFER);
        let (outbox, waiting) = mpsc::channel(OUTBOX);
        let stop = CancellationToken::new();
        let origin = Origin(chance::id().simple().to_string());
        tokio::spawn(send(Arc::clone(database), waiting));
        // Stopped in the middle it leaves nothing behind: the connection is its own, and LISTEN writes nothing.
        let (heard, told) = broadcast::channel(BUFFER);
        let listening = listen(Arc::clone(database), heard);
        tokio::spawn(stop.clone().run_until_cancelled_owned(listening));
        tokio::spawn(stop.clone().run_until_cancelled_owned(pass_on(origin.clone(), told, local.clone())));
        Self { local, outbox, origin, _stop: stop.drop_guard() }
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
            let _ = self.outbox.try_send(self.origin.sign(&payload));
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

async fn listen(database: Arc<dyn Transactions>, heard: broadcast::Sender<String>) {
    loop {
        if let Err(error) = database.follow(heard.clone()).await {
            tracing::debug!(%error, "not listening for changes of other replicas; polling finds them");
        }
        let _ = heard.send(String::new());
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn pass_on(origin: Origin, mut told: broadcast::Receiver<String>, local: broadcast::Sender<Change>) {
    loop {
        let change = match told.recv().await {
            Ok(payload) => origin.hear(&payload),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Anything),
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if let Some(change) = change {
            let _ = local.send(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_survives_its_payload_and_nonsense_means_anything() {
        let id = uuid::Uuid::from_u128(7);
        let round = RoundId::new(id);
        for change in [
            Change::Round(round),
            Change::Ended(round),
            Change::Cancel(round),
            Change::Pipeline(PipelineId::new(id)),
            Change::RoundWaits,
            Change::ClaimWaits,
        ] {
            assert_eq!(Change::parse(&change.payload().unwrap()), change);
        }
        for nonsense in ["", "r", "rx", "q7", "w7"] {
            assert_eq!(Change::parse(nonsense), Change::Anything);
        }
    }

    #[test]
    fn what_a_replica_has_told_itself_says_nothing_new_to_it() {
        let (own, other) = (Origin("a".to_owned()), Origin("b".to_owned()));
        assert_eq!(own.hear(&own.sign("w")), None);
        assert_eq!(own.hear(&other.sign("w")), Some(Change::RoundWaits));
        assert_eq!(own.hear(""), Some(Change::Anything), "some were lost");
        assert_eq!(own.hear("w"), Some(Change::RoundWaits), "of a version that does not sign");
    }
}
