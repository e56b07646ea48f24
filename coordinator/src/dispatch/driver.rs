//! One round, driven: effects of the stored round, their events, [`decide`](lockstep_protocol::round::decide), one guarded write, and again.

use std::{sync::Arc, time::Duration};

use lockstep_protocol::{
    planted::{self, Bug},
    round::{Decision, Effect, Event, Phase, Round, effects, next_wake},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    drive::Drive,
    leases::Hold,
    milestone,
    unsaved::{Unsaved, decide_all},
    work::Work,
};
use crate::{
    plan::BackOff,
    store::{Applied, StoreError},
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

/// Drives a round until it is over, claimed by somebody else, or this replica stops.
pub(super) async fn drive(
    drive: &Arc<Drive>,
    mut round: Round,
    shutdown: &CancellationToken,
    hold: &mut Hold,
) -> Ended {
    let services = &drive.services;
    let lost = hold.lost.clone();
    let mut work = Work::new(Arc::clone(drive));
    let mut unsaved = Unsaved::new();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !round.phase.is_terminal() {
        let now = services.clock.now();
        let seen = unsaved.seen(&round);
        work.align(seen, effects(seen, now));
        // What is due by now has been started or stands in `decide`; only what is still to come wakes.
        let due = next_wake(seen).filter(|at| *at > now).map(|at| services.clock.instant_of(at));
        let wake = due.into_iter().chain(work.rested_at()).chain(unsaved.until()).min();
        let event = tokio::select! {
            biased;
            () = lost.cancelled() => return Ended::Lost,
            () = shutdown.cancelled() => return Ended::Shutdown,
            request = hold.cancel_requested() => Event::CancelRequested(request),
            event = work.next() => event,
            _ = beat.tick() => Event::Tick,
            () = woken(wake) => Event::Tick,
        };
        if event == Event::Tick {
            drive.save_progress(&round).await;
        }
        let now = services.clock.now();
        unsaved.add(&round, [event].into_iter().chain(work.ready()), now);
        let Some((decision, events)) = unsaved.take(&round, now) else { continue };
        // What only looks need not wait until the reason for it is stored.
        work.begin(&decision.next, effects(&decision.next, now).into_iter().filter(only_looks).collect());
        let version = round.version;
        match settle(drive, round, decision, &events, &lost, shutdown).await {
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

async fn woken(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// An effect that reads and changes nothing anywhere.
const fn only_looks(effect: &Effect) -> bool {
    matches!(effect, Effect::CheckParts | Effect::Confirm)
}

/// Stores what some events have come to, in one write. A write that finds the round moved, or whose outcome is unknown, is followed by a look: whatever
/// stands there is what the event is decided on next, and one that fits it no more changes nothing.
async fn settle(
    drive: &Arc<Drive>,
    mut round: Round,
    mut decision: Decision,
    events: &[Event],
    lost: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<Round, Ended> {
    let services = &drive.services;
    let mut back_off = BackOff::of_calls();
    loop {
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
            Ok(Applied::Moved) => {
                let found = reload(drive, &round, &mut back_off, lost, shutdown).await?;
                if found.version == round.version {
                    // Nobody has moved it: another database than this wrote its pipeline's row (R13), and a take-over settles it.
                    return Err(Ended::Lost);
                }
                round = found;
                decision = decide_all(&round, events, services.clock.now());
                continue;
            }
            Ok(Applied::SourceRetired(commit)) => {
                // Its tombstone lands, and the next look passes over it (R8).
                tracing::info!(commit.round = %commit.round, "the source was retired meanwhile, it is resolved anew");
                return Ok(round);
            }
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
        decision = decide_all(&round, events, services.clock.now());
    }
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
