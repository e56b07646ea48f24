//! What goes on: an engine that makes checkpoints, callers who want them pushed and pulled, processes and disks that go.

use std::{collections::BTreeMap, rc::Rc};

use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId, RequestId, RoundId, Step},
    problem::{Problem, Reason},
    round::{CancelRequest, Phase, PullRequest, Round, WantedCut},
    spec::PullSelector,
};

use super::{
    audit,
    database::{Ask, Request, transact},
    fault::Fault,
    replica,
    timeline::{Instant, MILLISECOND, OUTSIDE, Process, SECOND},
    world::{LocalContent, Sim},
};

/// Local checkpoints that an engine keeps.
const KEPT: usize = 3;

/// Every host that runs makes a checkpoint of this step; most files stay as they were.
pub(super) fn checkpoint(sim: &Sim, site: usize, step: Step) {
    let Some(site) = sim.site(site) else { return };
    for agent in &site.agents {
        let mut agent = agent.borrow_mut();
        if !agent.up {
            continue;
        }
        let before = agent.disk.checkpoints.last().and_then(|id| sim.contents.borrow().get(id).cloned());
        let mut files = before.map_or_else(BTreeMap::new, |before| before.files.clone());
        for name in ["a", "b/c", "b/d"] {
            if !files.contains_key(name) || sim.chance(40) {
                files.insert(name.to_owned(), sim.random(0, u64::MAX));
            }
        }
        let id = LocalCheckpointId::new(sim.uuid());
        sim.contents.borrow_mut().insert(id, Rc::new(LocalContent { step, fingerprint: Some(Fingerprint(7)), files }));
        agent.disk.checkpoints.push(id);
        let surplus = agent.disk.checkpoints.len().saturating_sub(KEPT);
        agent.disk.checkpoints.drain(..surplus);
    }
    sim.log(|| format!("engine: checkpoint of step {step}"));
}

/// Asks until there is an answer, with the same request id (S14).
pub(super) async fn ask(sim: &Sim, site: usize, ask: Ask, id: RequestId, deadline: u64) -> Result<Round, Problem> {
    loop {
        let request = Request { ask, id, round: RoundId::new(sim.uuid()), deadline };
        if let Ok(answer) = transact(sim, site, move |sim, database| database.admit(sim, &request)).await {
            return answer;
        }
        sim.sleep(sim.random(100 * MILLISECOND, SECOND)).await;
    }
}

fn phase(sim: &Sim, site: usize, round: RoundId) -> Option<Phase> {
    sim.site(site)?.database.borrow().rounds.get(&round).map(|row| row.round.phase)
}

/// Waits until a round is over or that much time has passed.
pub(super) async fn over(sim: &Sim, site: usize, round: RoundId, patience: u64) -> Option<Phase> {
    let until = sim.now() + patience;
    loop {
        let phase = phase(sim, site, round).filter(|phase| phase.is_terminal());
        if phase.is_some() || sim.now() >= until {
            return phase;
        }
        sim.sleep(200 * MILLISECOND).await;
    }
}

fn a_pull(sim: &Sim) -> Ask {
    Ask::Pull(PullRequest {
        selector: PullSelector::Latest,
        standby: sim.chance(50),
        fail_if_none: sim.chance(50),
        allow_fingerprint: false,
        discard_local: sim.chance(10),
    })
}

/// Pushes and pulls, one after the other, until faults are over.
pub(super) async fn caller(sim: Sim, site: usize) {
    let mut step = 0;
    while !sim.faults.borrow().over {
        sim.sleep(sim.random(100 * MILLISECOND, 5 * SECOND)).await;
        let wanted = if sim.chance(60) {
            if active_pull(&sim, site).is_none() {
                step += 1;
                if let Ok(step) = Step::new(step) {
                    checkpoint(&sim, site, step);
                }
            }
            Ask::Push(WantedCut::Newest)
        } else {
            a_pull(&sim)
        };
        let deadline = if sim.happens(Fault::ShortDeadline) {
            sim.random(SECOND, 8 * SECOND)
        } else {
            sim.random(60 * SECOND, 300 * SECOND)
        };
        let id = RequestId::new(sim.uuid());
        let Ok(round) = ask(&sim, site, wanted, id, deadline).await else { continue };
        meddle(&sim, site, &round, wanted, id);
        over(&sim, site, round.id, sim.random(SECOND, 60 * SECOND)).await;
    }
}

fn active_pull(sim: &Sim, site: usize) -> Option<RoundId> {
    let database = sim.site(site)?.database.borrow();
    let active = database.active()?;
    (!matches!(active.round.kind, lockstep_protocol::round::Kind::Push(_))).then_some(active.round.id)
}

/// Whatever callers do to a round that is under way.
fn meddle(sim: &Sim, site: usize, round: &Round, asked: Ask, id: RequestId) {
    let round = round.id;
    let later = |fault: Fault, within: u64| sim.happens(fault).then(|| sim.random(0, within));
    if let Some(after) = later(Fault::Cancel, 8 * SECOND) {
        let sim = Rc::clone(sim);
        sim.clone().timeline.spawn(OUTSIDE, async move {
            sim.sleep(after).await;
            let request = CancelRequest { by: "caller".to_owned(), cause: "changed their mind".to_owned() };
            let _ = transact(&sim, site, move |_, database| database.ask_to_cancel(round, request.clone())).await;
        });
    }
    if let Some(after) = later(Fault::RequestAgain, 8 * SECOND) {
        let sim = Rc::clone(sim);
        sim.clone().timeline.spawn(OUTSIDE, async move {
            sim.sleep(after).await;
            match ask(&sim, site, asked, id, 60 * SECOND).await {
                Ok(again) if again.id == round => {}
                other => audit::broken(&sim, "S14", || format!("the same request came to {:?}", other.map(|r| r.id))),
            }
            let other = Ask::Push(WantedCut::Local(LocalCheckpointId::new(sim.uuid())));
            match ask(&sim, site, other, id, 60 * SECOND).await {
                Err(problem) if problem.reason == Reason::RequestIdReused => {}
                other => audit::broken(&sim, "S14", || format!("other parameters came to {:?}", other.map(|r| r.id))),
            }
        });
    }
    if let Some(after) = later(Fault::RequestInBetween, 8 * SECOND) {
        let sim = Rc::clone(sim);
        sim.clone().timeline.spawn(OUTSIDE, async move {
            sim.sleep(after).await;
            let wanted = if sim.chance(50) { a_pull(&sim) } else { Ask::Push(WantedCut::Newest) };
            let _ = ask(&sim, site, wanted, RequestId::new(sim.uuid()), 60 * SECOND).await;
        });
    }
    if matches!(asked, Ask::Pull(_)) && sim.happens(Fault::Supersede) {
        let sim = Rc::clone(sim);
        sim.clone().timeline.spawn(OUTSIDE, async move {
            while phase(&sim, site, round).is_some_and(|phase| !phase.is_terminal() && phase != Phase::Installing) {
                sim.sleep(20 * MILLISECOND).await;
            }
            let _ = ask(&sim, site, a_pull(&sim), RequestId::new(sim.uuid()), 60 * SECOND).await;
        });
    }
}

/// Processes and disks go, and come back.
pub(super) async fn misfortune(sim: Sim, site: usize) {
    while !sim.faults.borrow().over {
        sim.sleep(sim.random(SECOND, 3 * SECOND)).await;
        let Some(here) = sim.site(site) else { return };
        for host in 0..here.agents.len() {
            if sim.happens(Fault::AgentRestart) {
                restart(&sim, site, host, sim.random(0, 2 * SECOND), false);
            }
            if sim.happens(Fault::AgentAway) {
                restart(&sim, site, host, sim.random(31 * SECOND, 60 * SECOND), false);
            }
            if sim.happens(Fault::DiskLost) {
                restart(&sim, site, host, sim.random(0, 10 * SECOND), true);
            }
            if sim.happens(Fault::HostCutOff)
                && let Some(agent) = here.agents.get(host)
            {
                let until = sim.now() + sim.random(SECOND, 45 * SECOND);
                sim.wrong_until(until);
                agent.borrow_mut().cut_off_until = until;
            }
        }
        for &process in &here.replicas {
            if sim.happens(Fault::ReplicaKilled) {
                kill(&sim, site, process);
            }
            if sim.happens(Fault::ReplicaPaused) {
                let until = sim.now() + sim.random(replica::LEASE, 3 * replica::LEASE);
                sim.wrong_until(until);
                sim.timeline.pause(process, until);
            }
        }
    }
}

fn restart(sim: &Sim, site: usize, host: usize, away: u64, disk_lost: bool) {
    let Some(agent) = sim.site(site).and_then(|site| site.agents.get(host)) else { return };
    let process = {
        let mut agent = agent.borrow_mut();
        if !agent.up {
            return;
        }
        audit::gone(sim, agent.incarnation);
        agent.stop();
        if disk_lost {
            agent.disk = super::agent::Disk::default();
        }
        agent.process
    };
    sim.timeline.kill(process);
    let back: Instant = sim.now() + away;
    sim.wrong_until(back);
    let world = Rc::clone(sim);
    sim.timeline.spawn(OUTSIDE, async move {
        world.sleep(away).await;
        let Some(agent) = world.site(site).and_then(|site| site.agents.get(host)) else { return };
        agent.borrow_mut().start(world.new_process(), world.uuid());
    });
}

fn kill(sim: &Sim, site: usize, process: Process) {
    sim.timeline.kill(process);
    let away = sim.random(0, 20 * SECOND);
    sim.wrong_until(sim.now() + away);
    let world = Rc::clone(sim);
    sim.timeline.spawn(OUTSIDE, async move {
        world.sleep(away).await;
        world.timeline.kill(process);
        replica::start(&world, site, process);
    });
}
