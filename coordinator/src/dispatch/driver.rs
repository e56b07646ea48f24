//! One round, driven: effects of the stored round, their events, [`decide`], one guarded write, and again.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    planted::{self, Bug},
    round::{Decision, Event, Phase, Round, check_cancellable, decide, effects, next_wake},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{drive::Drive, milestone, work::Work};
use crate::{
    plan::BackOff,
    store::{Applied, Change, StoreError},
};

/// How driving a round ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The round is over.
    Terminal(Box<Round>),
    /// This replica stops; the round is still its own.
    Shutdown,
    /// Somebody else has claimed the round.
    Lost,
}

/// How often deadline, retries and progress are looked after when nothing else happens.
const BEAT: Duration = Duration::from_secs(1);

/// Hints about this round come with each write, our own included; requests to cancel are looked for at most this often because of them.
const CANCEL_LOOK: Duration = Duration::from_millis(300);

/// Drives a round until it is over, claimed by somebody else, or this replica stops.
pub(super) async fn drive(
    drive: &Arc<Drive>,
    mut round: Round,
    shutdown: &CancellationToken,
    lost: &CancellationToken,
) -> Ended {
    let services = &drive.services;
    let mut work = Work::new(Arc::clone(drive));
    let mut changes = services.store.changes();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cancel_look = Instant::now();
    while !round.phase.is_terminal() {
        let now = services.clock.now();
        work.align(&round, effects(&round, now));
        // What is due by now has been started or stands in `decide`; only what is still to come wakes.
        let due = next_wake(&round).filter(|at| *at > now).map(|at| services.clock.instant_of(at));
        let wake = due.into_iter().chain(work.rested_at()).chain([cancel_look]).min().unwrap_or(cancel_look);
        let event = tokio::select! {
            biased;
            () = lost.cancelled() => return Ended::Lost,
            () = shutdown.cancelled() => return Ended::Shutdown,
            event = work.next() => event,
            change = changes.next() => {
                if matches!(change, Change::Round(id) if id == round.id) || change == Change::Anything {
                    cancel_look = cancel_look.min(Instant::now() + CANCEL_LOOK);
                }
                continue;
            }
            _ = beat.tick() => Event::Tick,
            () = sleep_until(wake) => Event::Tick,
        };
        if event == Event::Tick {
            drive.save_progress(&round).await;
        }
        let mut events = vec![event];
        events.extend(work.ready());
        if cancel_look <= Instant::now() {
            cancel_look = Instant::now() + services.options.renew_every;
            events.splice(0..0, requested_cancel(drive, &round).await);
        }
        let version = round.version;
        match settle(drive, round, &events, lost, shutdown).await {
            Ok(next) => round = next,
            Err(ended) => return ended,
        }
        if round.version != version {
            work.wake();
        }
    }
    drive.observe_end(&round);
    Ended::Terminal(Box::new(round))
}

/// Decides events in their order and stores what they change in one write. A write that finds the round moved, or whose outcome is unknown, is followed by a look: whatever
/// stands there is what the event is decided on next, and one that fits it no more changes nothing.
async fn settle(
    drive: &Arc<Drive>,
    mut round: Round,
    events: &[Event],
    lost: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<Round, Ended> {
    let services = &drive.services;
    let mut back_off = BackOff::of_calls();
    loop {
        let decision = decide_all(&round, events, services.clock.now());
        if !decision.changes(&round) {
            return Ok(round);
        }
        if decision.next.phase != round.phase {
            // What people see of a phase afterwards is the last there was.
            drive.save_progress(&round).await;
        }
        if planted::is(Bug::EffectsBeforeStored) && decision.next.phase == Phase::Committing {
            for effect in effects(&decision.next, services.clock.now()) {
                let (drive, next) = (Arc::clone(drive), Arc::new(decision.next.clone()));
                Box::pin(super::effects::run(drive, next, effect)).await;
            }
        }
        let milestone = milestone::of(&round, &decision.next);
        milestone::before_stored(milestone);
        match services.store.apply(&round, &decision, &drive.caller()).await {
            Ok(Applied::Stored(next)) => {
                milestone::stored(milestone);
                for transition in &decision.transitions {
                    tracing::info!(
                        host.idx = transition.host_idx,
                        from = transition.from,
                        to = transition.to,
                        "{}",
                        transition.cause
                    );
                }
                return Ok(next);
            }
            Ok(Applied::Moved) => {}
            Err(error) => {
                let outcome = match &error {
                    StoreError::Unavailable(_) => "unavailable",
                    StoreError::UnknownOutcome(_) => "unknown",
                    StoreError::Problem(_) => "refused",
                };
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, outcome, "a decision was not stored: {}", problem.message);
                pause(&mut back_off, lost, shutdown).await?;
            }
        }
        round = reload(drive, &round, &mut back_off, lost, shutdown).await?;
    }
}

fn decide_all(round: &Round, events: &[Event], now: DateTime<Utc>) -> Decision {
    let unchanged = Decision { next: round.clone(), transitions: Vec::new(), fence_pipeline: false };
    events.iter().fold(unchanged, |so_far, event| {
        let decision = decide(&so_far.next, event, now);
        Decision {
            next: decision.next,
            transitions: [so_far.transitions, decision.transitions].concat(),
            fence_pipeline: so_far.fence_pipeline || decision.fence_pipeline,
        }
    })
}

/// The round as it stands, if it is still ours. A terminal one is ours to say good-bye to, whoever ended it.
async fn reload(
    drive: &Drive,
    known: &Round,
    back_off: &mut BackOff,
    lost: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<Round, Ended> {
    loop {
        match drive.services.store.get_round(known.id).await {
            Ok(record) if record.round.term != known.term => return Err(Ended::Lost),
            Ok(record) => return Ok(record.round),
            Err(error) => {
                let problem = error.problem();
                tracing::warn!(reason = %problem.reason, "the round was not read again: {}", problem.message);
                pause(back_off, lost, shutdown).await?;
            }
        }
    }
}

/// No call to the store is under way here, so that nothing is half done.
async fn pause(back_off: &mut BackOff, lost: &CancellationToken, shutdown: &CancellationToken) -> Result<(), Ended> {
    tokio::select! {
        biased;
        () = lost.cancelled() => Err(Ended::Lost),
        () = shutdown.cancelled() => Err(Ended::Shutdown),
        () = back_off.pause() => Ok(()),
    }
}

async fn requested_cancel(drive: &Drive, round: &Round) -> Option<Event> {
    if round.cancel.is_some() || check_cancellable(round).is_err() {
        return None;
    }
    match drive.services.store.pending_cancel(round.id).await {
        Ok(request) => request.map(Event::CancelRequested),
        Err(error) => {
            let problem = error.problem();
            tracing::debug!(reason = %problem.reason, "whether to cancel is not known: {}", problem.message);
            None
        }
    }
}
