//! One coordinator process: it claims rounds, keeps its leases and drives what it holds, as the dispatcher does.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    id::{RoundId, Term},
    planted::{self, Bug},
    round::{Decision, Effect, Event, Round, check_cancellable, decide, effects, next_wake},
};

use super::{
    database::{self, Trouble, at, transact},
    effect::{self, Drive},
    fault::Fault,
    timeline::{Instant, MILLISECOND, Mailbox, Process, SECOND, TaskId},
    world::Sim,
};

pub(super) const LEASE: u64 = 10 * SECOND;
const RENEW: u64 = 3 * SECOND;
const POLL: u64 = SECOND;

/// An effect whose event changed nothing is not started again before this.
const REST: u64 = SECOND;

enum Message {
    Ended(Effect, Option<Event>),
    /// What was said before is said again, late.
    Again(Event),
    Lost,
    HandBack,
}

type Held = Rc<RefCell<BTreeMap<RoundId, (Term, Rc<Mailbox<Message>>)>>>;

/// Starts a process.
pub(super) fn start(sim: &Sim, site: usize, process: Process) {
    let held = Held::default();
    {
        let (sim, held) = (Rc::clone(sim), Rc::clone(&held));
        sim.clone().timeline.spawn(process, async move { claim(&sim, site, process, &held).await });
    }
    let (sim, held) = (Rc::clone(sim), held);
    sim.clone().timeline.spawn(process, async move { renew(&sim, site, &held).await });
}

async fn claim(sim: &Sim, site: usize, process: Process, held: &Held) {
    loop {
        sim.sleep(sim.random(POLL / 2, POLL)).await;
        if sim.happens(Fault::ReplicaReleases) {
            for (_, mailbox) in held.borrow().values() {
                mailbox.send(Message::HandBack);
            }
        }
        // What a claim whose answer was lost has claimed is claimed again when its lease is over.
        let Ok(rounds) = transact(sim, site, |sim, database| database.claim(sim, LEASE)).await else { continue };
        for round in rounds {
            let mailbox = Mailbox::new(&sim.timeline);
            let before = held.borrow_mut().insert(round.id, (round.term, Rc::clone(&mailbox)));
            if let Some((_, before)) = before {
                before.send(Message::Lost);
            }
            let (world, held) = (Rc::clone(sim), Rc::clone(held));
            sim.timeline.spawn(process, async move {
                let (id, term) = (round.id, round.term);
                Driver::new(&world, (site, process), term, mailbox).drive(round).await;
                // Unless it was claimed again meanwhile, by this very process.
                let mine = held.borrow().get(&id).is_some_and(|held| held.0 == term);
                if mine {
                    held.borrow_mut().remove(&id);
                }
            });
        }
    }
}

async fn renew(sim: &Sim, site: usize, held: &Held) {
    loop {
        sim.sleep(RENEW).await;
        let asked: Vec<(RoundId, Term)> = held.borrow().iter().map(|(id, (term, _))| (*id, *term)).collect();
        for (id, term) in asked {
            let kept = transact(sim, site, move |sim, database| database.renew(sim.now(), id, term, LEASE)).await;
            if kept == Ok(false)
                && let Some((_, mailbox)) = held.borrow().get(&id).filter(|held| held.0 == term)
            {
                mailbox.send(Message::Lost);
            }
        }
    }
}

struct Driver {
    sim: Sim,
    site: usize,
    process: Process,
    drive: Rc<Drive>,
    mailbox: Rc<Mailbox<Message>>,
    running: Vec<(Effect, TaskId)>,
    rests: Vec<(Effect, Instant)>,
    /// Of the claim.
    term: Term,
}

/// The round is not ours any more.
struct NotOurs;

impl Driver {
    fn new(sim: &Sim, (site, process): (usize, Process), term: Term, mailbox: Rc<Mailbox<Message>>) -> Self {
        let sim = Rc::clone(sim);
        Self { sim, site, process, drive: Drive::new(site), term, mailbox, running: Vec::new(), rests: Vec::new() }
    }

    async fn drive(mut self, mut round: Round) {
        let mut cancel_look = 0;
        while !round.phase.is_terminal() {
            self.align(&round);
            let now = self.sim.now();
            let due = next_wake(&round).map(at).filter(|at| *at > now);
            let wake = due.into_iter().chain(self.rests.iter().map(|(_, until)| *until)).chain([now + SECOND]).min();
            let first = self.mailbox.receive(wake.unwrap_or(now + SECOND)).await;
            let mut events = Vec::new();
            for message in first.into_iter().chain(self.mailbox.take_all()) {
                match message {
                    Message::Lost => return self.stop(),
                    Message::HandBack => {
                        let (id, term) = (round.id, round.term);
                        self.stop();
                        let _ = transact(&self.sim, self.site, move |_, database| database.release(id, term)).await;
                        return;
                    }
                    Message::Again(event) => events.push(event),
                    Message::Ended(effect, event) => {
                        self.running.retain(|(running, _)| *running != effect);
                        self.rests.push((effect, self.sim.now() + REST));
                        events.extend(event);
                    }
                }
            }
            events.push(Event::Tick);
            if cancel_look <= self.sim.now() {
                cancel_look = self.sim.now() + SECOND;
                events.splice(0..0, self.requested_cancel(&round).await);
            }
            let version = round.version;
            match self.store(round, &events).await {
                Ok(next) => round = next,
                Err(NotOurs) => return self.stop(),
            }
            if round.version != version {
                self.rests.clear();
            }
        }
        self.stop();
        effect::farewell(&self.sim, &self.drive, &round).await;
    }

    fn stop(&mut self) {
        for (_, task) in self.running.drain(..) {
            self.sim.timeline.abort(task);
        }
    }

    /// Starts what is wanted and doesn't run, stops what runs and isn't wanted.
    fn align(&mut self, round: &Round) {
        let now = self.sim.now();
        let wanted = effects(round, self.sim.clock());
        let sim = Rc::clone(&self.sim);
        self.running.retain(|(effect, task)| {
            let keep = wanted.contains(effect);
            if !keep {
                sim.timeline.abort(*task);
            }
            keep
        });
        self.rests.retain(|(effect, until)| *until > now && wanted.contains(effect));
        for effect in wanted {
            let busy = self.running.iter().any(|(running, _)| *running == effect)
                || self.rests.iter().any(|(resting, _)| *resting == effect);
            if busy {
                continue;
            }
            let (world, drive, mailbox) = (Rc::clone(&self.sim), Rc::clone(&self.drive), Rc::clone(&self.mailbox));
            let (round, wanted) = (round.clone(), effect.clone());
            let task = self.sim.timeline.spawn(self.process, async move {
                let event = effect::run(&world, &drive, &round, &wanted).await;
                mailbox.send(Message::Ended(wanted.clone(), event.clone()));
                if let Some(event) = event.filter(|_| world.happens(Fault::EffectAgain)) {
                    // Effects are carried out at least once: this one again, for the round as it was then.
                    world.sleep(world.random(0, 20 * SECOND)).await;
                    let again = effect::run(&world, &drive, &round, &wanted).await;
                    mailbox.send(Message::Again(again.unwrap_or(event)));
                }
            });
            self.running.push((effect, task));
        }
    }

    async fn requested_cancel(&self, round: &Round) -> Option<Event> {
        if round.cancel.is_some() || check_cancellable(round).is_err() {
            return None;
        }
        let id = round.id;
        let asked = transact(&self.sim, self.site, move |_, database| database.rounds.get(&id)?.cancel.clone());
        asked.await.ok().flatten().map(Event::CancelRequested)
    }

    /// Decides and stores. A write that finds the round moved, or whose outcome is unknown, is followed by a look at what stands there.
    async fn store(&mut self, mut round: Round, events: &[Event]) -> Result<Round, NotOurs> {
        loop {
            let decision = decide_all(&round, events, self.sim.clock());
            if !decision.changes(&round) {
                return Ok(round);
            }
            if planted::is(Bug::EffectsBeforeStored) {
                self.align(&decision.next);
            }
            match database::apply(&self.sim, self.site, self.term, &round, &decision).await {
                Ok(Some(next)) => return Ok(next),
                Ok(None) => {}
                Err(Trouble::Away | Trouble::Unknown) => {
                    self.sim.sleep(self.sim.random(100 * MILLISECOND, SECOND)).await
                }
            }
            round = self.reload(&round).await?;
        }
    }

    async fn reload(&self, known: &Round) -> Result<Round, NotOurs> {
        let id = known.id;
        loop {
            let found = transact(&self.sim, self.site, move |_, database| {
                database.rounds.get(&id).map(|row| row.round.clone())
            });
            match found.await {
                Ok(Some(found)) if found.term == known.term || planted::is(Bug::NoTermInWhere) => return Ok(found),
                Ok(_) => return Err(NotOurs),
                Err(_) => self.sim.sleep(self.sim.random(100 * MILLISECOND, SECOND)).await,
            }
        }
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
