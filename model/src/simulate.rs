//! Seeded simulation of whole pipelines: the *production* decisions of `lockstep-protocol`, a fake database and a fake S3, hosts and replicas, in virtual time
//! and with faults of every class. One seed, one run: the same seed takes the same steps.
//!
//! - `timeline`: virtual time and tasks; `world`: what there is; `fault`: what goes wrong
//! - `bucket`, `database`, `agent`: the fakes, which lose, delay and repeat
//! - `replica`, `effect`, `plan`, `parts`, `settle`, `reader`, `transfer`: what coordinators and agents do between two decisions
//! - `life`: callers, engines, misfortune; `audit`: the invariants S1 to S15 after every change

mod agent;
mod audit;
mod bucket;
mod database;
mod dice;
mod effect;
mod fault;
mod life;
mod parts;
mod plan;
mod reader;
mod replica;
mod settle;
mod timeline;
mod transfer;
mod world;

use std::{collections::BTreeMap, rc::Rc};

use lockstep_protocol::{
    fence::{Fence, Writer},
    id::{DatabaseId, Generation, RequestId, Step},
    key::Key,
    problem::Problem,
    round::{Kind, Phase, PullRequest, Round, Source, WantedCut},
    spec::PullSelector,
};

use self::{
    database::Ask,
    timeline::{OUTSIDE, SECOND},
    world::{Sim, Site, World},
};

pub use self::fault::Fault;

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Which.
    pub seed: u64,
    /// The first invariant that was broken, with its number.
    pub violation: Option<String>,
    /// How often each class of fault was met.
    pub faults: BTreeMap<Fault, u32>,
    /// Rounds by kind and the phase they ended in.
    pub rounds: BTreeMap<(&'static str, &'static str), u32>,
    /// Commits that were acknowledged after their outcome had been unknown.
    pub from_unknown: u32,
    /// Longest time from a round's admission to its end, in microseconds of virtual time.
    pub longest: u64,
    /// From the last fault to the end of the last round, in microseconds of virtual time.
    pub recovery: u64,
    /// If it was asked for.
    pub log: Vec<String>,
}

/// L1.
const RECOVERY: u64 = 60 * SECOND;

/// Runs one seed to its end, or to the first violation.
pub fn run(seed: u64, logged: bool) -> Result<Seed, Problem> {
    let sim = World::new(seed, logged)?;
    claim(&sim);
    for site in 0..sim.sites.len() {
        live(&sim, site);
    }
    let faults_end = sim.random(40 * SECOND, 120 * SECOND);
    run_until(&sim, faults_end);
    sim.faults.borrow_mut().over = true;
    sim.log(|| "faults are over".to_owned());
    let quiet = sim.last_fault.get().max(faults_end);
    run_until(&sim, quiet + RECOVERY);
    if sim.audit.borrow().violation.is_none() {
        recovered(&sim);
        succeed(&sim);
    }
    let report = report(&sim, seed, quiet);
    sim.timeline.clear();
    Ok(report)
}

/// The location is owned before anything begins.
fn claim(sim: &Sim) {
    let Some(site) = sim.site(0) else { return };
    let database = site.database.borrow();
    let fence = Fence {
        generation: Generation::FIRST,
        pipeline: database.pipeline,
        pipeline_name: database.name.clone(),
        writer: Writer::Database {
            database: DatabaseId::new(sim.uuid()),
            system_identifier: "1".to_owned(),
            timeline: 1,
        },
        take_over: sim.uuid(),
        created_at: sim.clock(),
        released: false,
    };
    let key = Key::Fence(Generation::FIRST).to_string();
    sim.bucket.borrow_mut().objects.insert(key, fence.encode().into());
}

fn live(sim: &Sim, site: usize) {
    let Some(here) = sim.site(site) else { return };
    for &process in &here.replicas {
        replica::start(sim, site, process);
    }
    sim.timeline.spawn(OUTSIDE, life::caller(Rc::clone(sim), site));
    sim.timeline.spawn(OUTSIDE, life::misfortune(Rc::clone(sim), site));
}

fn run_until(sim: &Sim, until: u64) {
    sim.timeline.run(until, || sim.audit.borrow().violation.is_some());
}

/// L1: every round is terminal.
fn recovered(sim: &Sim) {
    for site in &sim.sites {
        let stuck = site.database.borrow().active().map(|row| row.round.clone());
        if let Some(round) = stuck.filter(|round| !waits_for_what_is_gone(site, round)) {
            audit::broken(sim, "L1", || format!("round {} is still {}", round.round_no, round.phase));
        }
    }
}

/// A pull of local checkpoints that were never pushed, one of which was lost with its disk after all hosts had been found to have theirs: from `Installing`
/// only forward, and there is no way forward. It remains until a newer pull supersedes it.
fn waits_for_what_is_gone(site: &Site, round: &Round) -> bool {
    let Kind::Pull(pull) = &round.kind else { return false };
    let only_local =
        pull.resolved.as_ref().is_some_and(|resolved| resolved.source == Source::Local && resolved.commit.is_none());
    round.phase == Phase::Installing
        && only_local
        && round.participants.iter().zip(&site.agents).any(|(participant, agent)| {
            participant.local_checkpoint.is_some_and(|checkpoint| !agent.borrow().holds(checkpoint))
        })
}

/// L2: a new push succeeds at the first try, and what it pushed can be pulled.
fn succeed(sim: &Sim) {
    const STEP: u64 = 1_000_000;
    for site in 0..sim.sites.len() {
        let world = Rc::clone(sim);
        sim.timeline.spawn(OUTSIDE, async move {
            if let Ok(step) = Step::new(STEP) {
                life::checkpoint(&world, site, step);
            }
            let pull = PullRequest {
                selector: PullSelector::Latest,
                standby: true,
                fail_if_none: true,
                allow_fingerprint: false,
                discard_local: false,
            };
            if world.site(site).is_some_and(|here| here.database.borrow().active().is_some()) {
                let id = RequestId::new(world.uuid());
                if let Ok(round) = life::ask(&world, site, Ask::Pull(pull), id, 60 * SECOND).await {
                    life::over(&world, site, round.id, 60 * SECOND).await;
                }
                if let Ok(step) = Step::new(STEP + 1) {
                    life::checkpoint(&world, site, step);
                }
            }
            for (ask, good) in [(Ask::Push(WantedCut::Newest), Phase::Committed), (Ask::Pull(pull), Phase::Installed)] {
                let id = RequestId::new(world.uuid());
                let asked = life::ask(&world, site, ask, id, 60 * SECOND).await;
                let ended = match &asked {
                    Ok(round) => life::over(&world, site, round.id, 60 * SECOND).await,
                    Err(_) => None,
                };
                if ended != Some(good) {
                    audit::broken(&world, "L2", || {
                        format!("{ask:?} came to {ended:?}: {:?}", asked.map(|r| r.round_no))
                    });
                }
            }
        });
    }
    run_until(sim, sim.now() + 3 * RECOVERY);
}

fn report(sim: &Sim, seed: u64, quiet: u64) -> Seed {
    let mut rounds = BTreeMap::new();
    let (mut longest, mut last) = (0, 0);
    for site in &sim.sites {
        for row in site.database.borrow().rounds.values() {
            let kind = if matches!(row.round.kind, Kind::Push(_)) { "push" } else { "pull" };
            *rounds.entry((kind, row.round.phase.as_str())).or_insert(0) += 1;
            let ended = row.ended.unwrap_or_else(|| sim.now());
            longest = longest.max(ended.saturating_sub(row.admitted));
            if row.admitted <= quiet {
                last = last.max(ended);
            }
        }
    }
    let met = sim.faults.borrow().met.clone();
    let audit = sim.audit.borrow();
    Seed {
        seed,
        violation: audit.violation.clone(),
        faults: Fault::ALL.iter().copied().zip(met).filter(|(_, met)| *met > 0).collect(),
        rounds,
        from_unknown: audit.resolved_from_unknown,
        longest,
        recovery: last.saturating_sub(quiet),
        log: sim.take_log(),
    }
}
