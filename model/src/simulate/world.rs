//! Everything there is in one simulation, and how a request travels in it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_protocol::{
    host::Layout,
    id::{Fingerprint, LocalCheckpointId, PipelineName, Step},
    location::{Location, RawLocation},
    problem::Problem,
};
use rand::Rng;
use uuid::Uuid;

use super::{
    agent::Agent,
    audit::Audit,
    bucket::Bucket,
    database::Database,
    dice::Dice,
    fault::{Fault, Faults},
    timeline::{Instant, MILLISECOND, OUTSIDE, Process, SECOND, Timeline},
};

pub(super) type Sim = Rc<World>;

/// A pipeline with the database and the hosts that it lives on.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) database: RefCell<Database>,
    pub(super) agents: Vec<RefCell<Agent>>,
    pub(super) replicas: Vec<Process>,
}

/// What a local checkpoint holds, whatever became of the disks it lay on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LocalContent {
    pub(super) step: Step,
    pub(super) fingerprint: Option<Fingerprint>,
    /// By path.
    pub(super) files: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) timeline: Rc<Timeline>,
    rng: RefCell<Dice>,
    pub(super) faults: RefCell<Faults>,
    /// When the last thing that went wrong was over.
    pub(super) last_fault: Cell<Instant>,
    pub(super) bucket: RefCell<Bucket>,
    pub(super) location: Location,
    pub(super) sites: Vec<Site>,
    pub(super) contents: RefCell<BTreeMap<LocalCheckpointId, Rc<LocalContent>>>,
    pub(super) audit: RefCell<Audit>,
    log: Option<RefCell<Vec<String>>>,
    processes: Cell<u32>,
}

/// Virtual time begins here.
const BEGINNING: i64 = 1_700_000_000;

impl World {
    pub(super) fn new(seed: u64, logged: bool) -> Result<Sim, Problem> {
        let mut rng = Dice::new(seed);
        let faults = Faults::draw(&mut rng);
        let location = Location::try_from(RawLocation {
            bucket: "simulated".to_owned(),
            prefix: "pipeline".to_owned(),
            ..RawLocation::default()
        })?;
        let mut processes = 0;
        let mut process = || {
            processes += 1;
            Process(processes)
        };
        let layout = match rng.random_range(0..5) {
            0 => Layout::Solo,
            n => Layout::hosts(n)?,
        };
        let replicas = (0..rng.random_range(2..=3)).map(|_| process()).collect();
        let agents = layout
            .slots()
            .map(|slot| RefCell::new(Agent::new(0, slot, process(), Uuid::from_u128(rng.random()))))
            .collect();
        let name = PipelineName::new("simulated")?;
        let database = Database::new(Uuid::from_u128(rng.random()), name, layout, location.clone())?;
        let site = Site { database: RefCell::new(database), agents, replicas };
        Ok(Rc::new(Self {
            timeline: Rc::default(),
            rng: RefCell::new(rng),
            faults: RefCell::new(faults),
            last_fault: Cell::new(0),
            bucket: RefCell::default(),
            location,
            sites: vec![site],
            contents: RefCell::default(),
            audit: RefCell::default(),
            log: logged.then(RefCell::default),
            processes: Cell::new(processes),
        }))
    }

    pub(super) fn now(&self) -> Instant {
        self.timeline.now()
    }

    /// What the database's clock says.
    pub(super) fn clock(&self) -> DateTime<Utc> {
        time(self.now())
    }

    pub(super) fn uuid(&self) -> Uuid {
        Uuid::from_u128(self.rng.borrow_mut().random())
    }

    /// In `least..=most`.
    pub(super) fn random(&self, least: u64, most: u64) -> u64 {
        self.rng.borrow_mut().random_range(least..=most)
    }

    /// With a chance of `n` in 100.
    pub(super) fn chance(&self, n: u32) -> bool {
        self.rng.borrow_mut().random_ratio(n, 100)
    }

    /// For back-offs.
    pub(super) fn jitter(&self) -> u32 {
        self.rng.borrow_mut().random_range(0..=1000)
    }

    pub(super) fn happens(&self, fault: Fault) -> bool {
        let happens = self.faults.borrow_mut().happens(fault, &mut self.rng.borrow_mut());
        if happens {
            self.log(|| format!("fault: {}", fault.as_str()));
            self.wrong_until(self.now());
        }
        happens
    }

    /// Something goes wrong until then.
    pub(super) fn wrong_until(&self, until: Instant) {
        self.last_fault.set(self.last_fault.get().max(until));
    }

    pub(super) fn log(&self, line: impl FnOnce() -> String) {
        if let Some(log) = &self.log {
            let now = self.now();
            log.borrow_mut().push(format!("{:>4}.{:06} {}", now / SECOND, now % SECOND, line()));
        }
    }

    pub(super) fn take_log(&self) -> Vec<String> {
        self.log.as_ref().map(RefCell::take).unwrap_or_default()
    }

    pub(super) async fn sleep(&self, for_: u64) {
        self.timeline.sleep(for_).await;
    }

    pub(super) fn site(&self, index: usize) -> Option<&Site> {
        self.sites.get(index)
    }

    /// A process that wasn't there before.
    pub(super) fn new_process(&self) -> Process {
        self.processes.set(self.processes.get() + 1);
        Process(self.processes.get())
    }
}

/// As the database's clock shows it.
pub(super) fn time(at: Instant) -> DateTime<Utc> {
    let since = TimeDelta::microseconds(i64::try_from(at).unwrap_or(i64::MAX));
    DateTime::from_timestamp(BEGINNING, 0).and_then(|begin| begin.checked_add_signed(since)).unwrap_or_default()
}

/// What may become of a request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) lost: Fault,
    pub(super) answer_lost: Fault,
    pub(super) late: Fault,
    pub(super) twice: Option<Fault>,
    /// After which the sender gives up.
    pub(super) patience: u64,
    /// Longest time of one way, if all is well.
    pub(super) latency: u64,
}

/// Longest after which something that was given up may still happen.
const LATEST: u64 = 60 * SECOND;

/// Sends something that happens elsewhere, if it arrives; it doesn't go away with its sender. None: no answer came.
pub(super) async fn request<R: 'static>(sim: &Sim, way: Way, carry_out: impl Fn(&Sim) -> R + 'static) -> Option<R> {
    let carry_out = Rc::new(carry_out);
    if sim.happens(way.lost) {
        sim.sleep(way.patience).await;
        return None;
    }
    let later = |least: u64| {
        let (after, world, carry_out) = (sim.random(least, LATEST), Rc::clone(sim), Rc::clone(&carry_out));
        sim.wrong_until(sim.now() + after);
        sim.timeline.spawn(OUTSIDE, async move {
            world.sleep(after).await;
            carry_out(&world);
        });
    };
    if sim.happens(way.late) {
        later(10 * MILLISECOND);
        sim.sleep(way.patience).await;
        return None;
    }
    if way.twice.is_some_and(|twice| sim.happens(twice)) {
        later(1);
    }
    let answer = Rc::new(RefCell::new(None));
    let there = sim.random(100, way.latency);
    {
        let (world, answer, carry_out) = (Rc::clone(sim), Rc::clone(&answer), Rc::clone(&carry_out));
        sim.timeline.spawn(OUTSIDE, async move {
            world.sleep(there).await;
            *answer.borrow_mut() = Some(carry_out(&world));
        });
    }
    if sim.happens(way.answer_lost) {
        sim.sleep(way.patience).await;
        return None;
    }
    sim.sleep(there + sim.random(100, way.latency)).await;
    answer.take()
}
