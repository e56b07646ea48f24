//! The effects of one round that are under way.
//!
//! Each runs in a task of its own and is told apart by (effect, host, attempt): what is wanted already runs on, what is not wanted any more is
//! stopped. An effect may be dropped at any point: it talks to agents and bucket only, where every step is idempotent and none rests on its answer
//! (the decision's bytes are stored before they are PUT).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lockstep_protocol::round::{Effect, Event, Round};
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{drive::Drive, effects};

/// An effect whose event changed nothing is wanted again at once; this keeps it from spinning.
const REST: Duration = Duration::from_secs(1);

/// See the module's documentation. Dropping it stops everything.
#[derive(Debug)]
pub(super) struct Work {
    drive: Arc<Drive>,
    tasks: JoinSet<Option<Event>>,
    running: BTreeMap<Effect, (Id, CancellationToken)>,
    rests: BTreeMap<Effect, Instant>,
}

impl Work {
    pub(super) fn new(drive: Arc<Drive>) -> Self {
        Self { drive, tasks: JoinSet::new(), running: BTreeMap::new(), rests: BTreeMap::new() }
    }

    /// Starts what is wanted and doesn't run, stops what runs and isn't wanted.
    pub(super) fn align(&mut self, round: &Round, wanted: Vec<Effect>) {
        let now = Instant::now();
        self.running.retain(|effect, (_, stop)| {
            let keep = wanted.contains(effect);
            if !keep {
                stop.cancel();
            }
            keep
        });
        self.rests.retain(|effect, until| *until > now && wanted.contains(effect));
        self.begin(round, wanted);
    }

    /// Starts what is wanted and neither runs nor rests.
    pub(super) fn begin(&mut self, round: &Round, wanted: Vec<Effect>) {
        let new: Vec<Effect> = wanted
            .into_iter()
            .filter(|effect| !self.running.contains_key(effect) && !self.rests.contains_key(effect))
            .collect();
        if new.is_empty() {
            return;
        }
        let round = Arc::new(round.clone());
        for effect in new {
            let stop = CancellationToken::new();
            let (drive, round, stopped, name) =
                (Arc::clone(&self.drive), Arc::clone(&round), stop.clone(), effects::name(&effect));
            let span = tracing::info_span!("effect", otel.name = name, host.idx = effects::host_idx(&effect));
            let run = effect.clone();
            let task = self.tasks.spawn(
                async move { stopped.run_until_cancelled_owned(effects::run(drive, round, run)).await.flatten() }
                    .instrument(span),
            );
            self.running.insert(effect, (task.id(), stop));
        }
    }

    /// When an effect that rests may start again.
    pub(super) fn rested_at(&self) -> Option<Instant> {
        self.rests.values().min().copied()
    }

    /// The next event of an effect that is still wanted. Never returns while nothing runs.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let Some(ended) = self.tasks.join_next_with_id().await else {
                return std::future::pending().await;
            };
            if let Some(event) = self.event_of(ended) {
                return event;
            }
        }
    }

    /// The events of all effects that have ended by now: hosts that end together are stored together.
    pub(super) fn ready(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            events.extend(self.event_of(ended));
        }
        events
    }

    /// None: it was stopped. It may still have had an event, which speaks of a state that is over.
    fn event_of(&mut self, ended: Result<(Id, Option<Event>), JoinError>) -> Option<Event> {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let effect = self.running.iter().find(|(_, (running, _))| *running == id).map(|(effect, _)| effect.clone())?;
        self.running.remove(&effect);
        self.rests.insert(effect.clone(), Instant::now() + REST);
        match ended {
            Ok((_, Some(event))) => return Some(event),
            Ok((_, None)) => {}
            Err(error) => {
                tracing::error!(effect = effects::name(&effect), %error, "an effect ended early, it starts again")
            }
        }
        Some(Event::Tick)
    }

    /// The last event moved the round: whatever is wanted now is wanted afresh.
    pub(super) fn wake(&mut self) {
        self.rests.clear();
    }
}
