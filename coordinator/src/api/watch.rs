//! Waiting for rows to change. Hints make it quick, polling makes it sure.

use std::time::Duration;

use lockstep_proto::v1;
use lockstep_protocol::{
    id::{PipelineId, RoundId},
    problem::{Problem, Reason},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;

use super::{Api, Messages, request::required};
use crate::{
    convert::{self, status::status},
    store::{Change, Changes, PipelineRow, RoundRecord},
};

/// Rows are looked at this often without any hint: how late a change made by another replica is seen if its hint was lost.
const POLL: Duration = Duration::from_secs(1);

/// How often a watch looks for progress, of which there are no hints, while there is some; and while there is none, at the seldomest.
const PROGRESS: Duration = Duration::from_millis(500);
const NO_PROGRESS: Duration = Duration::from_secs(4);

/// Changes on the way that come closer together than this share one look; the end is told at once.
const GAP: Duration = Duration::from_millis(250);

/// Messages of a watch that wait for a slow reader; beyond it, states are left out.
const BUFFER: usize = 4;

/// Each look that finds nothing new doubles the wait for the next one, so that many watches of rounds that wait cost little.
struct Pace(Duration);

impl Pace {
    fn after_look(&mut self, anything_new: bool) -> Duration {
        self.0 = if anything_new { PROGRESS } else { (self.0 * 2).min(NO_PROGRESS) };
        self.0
    }
}

/// Looks again when something said to have changed concerns `wanted`, which is returned, at the latest after `poll`.
async fn woken(changes: &mut Changes, wanted: impl Fn(Change) -> bool, poll: Duration) -> Option<Change> {
    let until = Instant::now() + poll;
    loop {
        match tokio::time::timeout_at(until, changes.next()).await {
            Ok(change) if !wanted(change) => {}
            woke => return woke.ok(),
        }
    }
}

fn concerns_round(id: RoundId) -> impl Fn(Change) -> bool {
    move |change| [Change::Round(id), Change::Ended(id), Change::Cancel(id), Change::Anything].contains(&change)
}

fn ends(id: RoundId) -> impl Fn(Change) -> bool {
    move |change| change == Change::Ended(id)
}

/// What a waiting call is told when its replica stops.
pub(super) fn stopping() -> Problem {
    Problem::new(Reason::DatabaseUnavailable, "this coordinator is stopping; the same call to another replica goes on")
}

impl Api {
    /// The round once `enough`, or as it is after `wait`.
    pub(super) async fn round_when(
        &self,
        id: RoundId,
        wait: Duration,
        enough: impl Fn(&RoundRecord) -> bool,
    ) -> Result<RoundRecord, Problem> {
        let until = Instant::now() + wait;
        let mut changes = self.store.changes();
        loop {
            let record = self.store.get_round(id).await?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stopping.is_cancelled() || enough(&record) {
                return Ok(record);
            }
            let woken = woken(&mut changes, concerns_round(id), left.min(POLL));
            // Dropped at worst while it waits for a hint; no effect is under way in it.
            self.stopping.run_until_cancelled(woken).await;
        }
    }

    /// The pipeline's row once `enough`, or as it is after `wait`.
    pub(super) async fn pipeline_when(
        &self,
        id: PipelineId,
        wait: Duration,
        enough: impl Fn(&PipelineRow) -> bool,
    ) -> Result<PipelineRow, Problem> {
        let until = Instant::now() + wait;
        let mut changes = self.store.changes();
        let concerns = move |change| change == Change::Pipeline(id) || change == Change::Anything;
        loop {
            let row = self.store.get_pipeline(&id.into()).await?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stopping.is_cancelled() || enough(&row) {
                return Ok(row);
            }
            self.stopping.run_until_cancelled(woken(&mut changes, concerns, left.min(POLL))).await;
        }
    }

    /// Dropped at worst while it waits for a hint.
    pub(super) async fn sleep_until_change(
        &self,
        changes: &mut Changes,
        concerns: impl Fn(Change) -> bool,
        at_most: Duration,
    ) {
        self.stopping.run_until_cancelled(woken(changes, concerns, at_most.min(POLL))).await;
    }

    pub(super) async fn do_watch_round(&self, request: &v1::WatchRoundRequest) -> Result<Messages<v1::Round>, Problem> {
        let id: RoundId = required("round", &request.round)?;
        // Before the first look, so that nothing is missed in between.
        let changes = self.store.changes();
        // An unknown round is the answer of the call, not of its stream.
        let first = self.store.get_round(id).await?;
        let (sender, receiver) = mpsc::channel(BUFFER);
        let api = self.clone();
        let watching = async move { api.follow(id, first, changes, sender).await };
        tokio::spawn(watching.in_current_span());
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    /// Sends the round whenever it looks different, until it is terminal or nobody listens.
    async fn follow(
        &self,
        id: RoundId,
        first: RoundRecord,
        mut changes: Changes,
        sender: mpsc::Sender<Result<v1::Round, tonic::Status>>,
    ) {
        let mut record = first;
        let mut sent: Option<v1::Round> = None;
        let mut failing_since: Option<Instant> = None;
        let mut pace = Pace(PROGRESS);
        loop {
            let looked = Instant::now();
            let message = convert::round::round(&record);
            let news = sent.as_ref() != Some(&message);
            let poll = pace.after_look(news);
            if news {
                if sender.send(Ok(message.clone())).await.is_err() {
                    return;
                }
                sent = Some(message);
            }
            if record.round.phase.is_terminal() {
                return;
            }
            loop {
                let next = async {
                    let woke = woken(&mut changes, concerns_round(id), poll).await;
                    if woke != Some(Change::Ended(id)) {
                        let gap = (looked + GAP).saturating_duration_since(Instant::now());
                        woken(&mut changes, ends(id), gap).await;
                    }
                };
                // Only waiting is given up here; what asks the database is never dropped half way.
                tokio::select! {
                    () = sender.closed() => return,
                    () = self.stopping.cancelled() => {
                        let _ = sender.send(Err(status(stopping()))).await;
                        return;
                    }
                    () = next => {}
                }
                match self.store.get_round(id).await {
                    Ok(found) => {
                        record = found;
                        failing_since = None;
                        break;
                    }
                    Err(error) => {
                        // A watch outlives a short failure of the database; its reader would only come back at once.
                        let since = *failing_since.get_or_insert_with(Instant::now);
                        let problem = error.into_problem();
                        let passing = problem.reason == Reason::DatabaseUnavailable;
                        if !passing || since.elapsed() > Duration::from_secs(10) {
                            let _ = sender.send(Err(status(problem))).await;
                            return;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NO_PROGRESS, PROGRESS, Pace};

    #[test]
    fn a_watch_looks_less_and_less_often_while_nothing_is_new_and_often_again_when_something_is() {
        let mut pace = Pace(PROGRESS);
        assert_eq!(pace.after_look(true), PROGRESS);
        let idle: Vec<_> = (0..5).map(|_| pace.after_look(false)).collect();
        assert_eq!(idle, [PROGRESS * 2, PROGRESS * 4, NO_PROGRESS, NO_PROGRESS, NO_PROGRESS]);
        assert_eq!(pace.after_look(true), PROGRESS);
    }
}
