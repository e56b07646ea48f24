//! Breadth-first exploration of a bounded world, on all cores. Breadth-first, because its traces are the shortest there are.
//!
//! States are told apart by 64 bits of a hash: among 20 million states two different ones are taken for one with a chance of about 1 in 100,000.

use std::{
    collections::HashMap,
    fmt::{Debug, Write as _},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use lockstep_protocol::planted::{self, Bug};

/// A bounded system: its states, what may happen in each, and what must hold.
pub trait World: Clone + Hash + Send + Sync {
    /// Something that may happen.
    type Action: Clone + Debug + Send + Sync;

    /// Everything that may happen now, in a fixed order.
    fn actions(&self) -> Vec<Self::Action>;
    /// What follows.
    fn after(&self, action: &Self::Action) -> Self;
    /// Safety: an error names the invariant and says what is wrong. Checked in every state.
    fn check(&self) -> Result<(), String>;
    /// Liveness: from every reachable state some state with this must be reachable.
    fn is_goal(&self) -> bool;
    /// One line for a trace.
    fn describe(&self) -> String;
}

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads.
    pub threads: usize,
    /// More states than this: the result is [`Outcome::TooLarge`].
    pub max_states: u32,
    /// Whether to check that the goal stays reachable; costs memory for every transition.
    pub liveness: bool,
    /// With which bug.
    pub planted: Option<Bug>,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 2, max_states: 50_000_000, liveness: true, planted: None }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Every reachable state was seen and all is well.
    Closed,
    /// A state breaks an invariant: which, and the shortest way there.
    Violation {
        /// As [`World::check`] said it.
        what: String,
        /// One line a step.
        trace: String,
    },
    /// From this state the goal can't be reached any more: the shortest way there.
    Stuck {
        /// One line a step.
        trace: String,
    },
    /// The bound was met first: nothing is proven.
    TooLarge,
}

/// An exploration.
#[derive(Clone, Debug)]
pub struct Report {
    /// What came of it.
    pub outcome: Outcome,
    /// States seen.
    pub states: u64,
    /// Transitions taken, those to known states included.
    pub transitions: u64,
    /// Steps to the farthest state.
    pub depth: u32,
    /// How long it took.
    pub took: Duration,
}

const SHARDS: usize = 256;
const ROOT: u32 = u32::MAX;

/// How a state was found first.
#[derive(Clone, Copy)]
struct Origin {
    parent: u32,
    action: u16,
}

struct Found<W> {
    index: u32,
    state: W,
}

struct Seen {
    shards: Vec<Mutex<HashMap<u64, u32>>>,
    count: AtomicU32,
}

impl Seen {
    fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), count: AtomicU32::new(0) }
    }

    /// The state's number, and whether it is new.
    fn enter<W: Hash>(&self, state: &W) -> (u32, bool) {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let hash = hasher.finish();
        let shard = usize::try_from(hash % SHARDS as u64).unwrap_or_default();
        let mut shard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&known) = shard.get(&hash) {
            return (known, false);
        }
        let index = self.count.fetch_add(1, Ordering::Relaxed);
        shard.insert(hash, index);
        (index, true)
    }
}

/// What one thread found in one level.
struct Harvest<W> {
    next: Vec<Found<W>>,
    origins: Vec<(u32, Origin)>,
    edges: Vec<(u32, u32)>,
    goals: Vec<u32>,
    transitions: u64,
    violation: Option<(u32, String)>,
}

/// Explores every state that can be reached from `start`.
pub fn explore<W: World>(start: &W, options: &Options) -> Report {
    let began = Instant::now();
    planted::plant(options.planted);
    let report = search(start, options, began);
    planted::plant(None);
    report
}

fn search<W: World>(start: &W, options: &Options, began: Instant) -> Report {
    let seen = Seen::new();
    let mut origins = Vec::new();
    let mut edges = Vec::new();
    let mut goals = Vec::new();
    let (index, _) = seen.enter(start);
    origins.push(Origin { parent: ROOT, action: 0 });
    goals.extend(start.is_goal().then_some(index));
    let mut level = vec![Found { index, state: start.clone() }];
    let (mut depth, mut transitions) = (0, 0);
    let report =
        |outcome, depth, transitions, states| Report { outcome, states, transitions, depth, took: began.elapsed() };
    if let Err(what) = start.check() {
        return report(Outcome::Violation { what, trace: trace(start, &origins, index) }, 0, 0, 1);
    }
    while !level.is_empty() {
        let share = level.len().div_ceil(options.threads.max(1));
        let harvests: Vec<Harvest<W>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                level.chunks(share).map(|chunk| scope.spawn(|| expand(chunk, &seen, options))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        let expected = level.chunks(share).len();
        assert_eq!(harvests.len(), expected, "a thread of the exploration panicked");
        level = Vec::new();
        let mut violation: Option<(u32, String)> = None;
        origins.resize(
            usize::try_from(seen.count.load(Ordering::Relaxed)).unwrap_or_default(),
            Origin { parent: ROOT, action: 0 },
        );
        for harvest in harvests {
            level.extend(harvest.next);
            for (index, origin) in harvest.origins {
                origins[index as usize] = origin;
            }
            edges.extend(harvest.edges);
            goals.extend(harvest.goals);
            transitions += harvest.transitions;
            violation = violation.or(harvest.violation);
        }
        let states = u64::from(seen.count.load(Ordering::Relaxed));
        if let Some((index, what)) = violation {
            return report(
                Outcome::Violation { what, trace: trace(start, &origins, index) },
                depth + 1,
                transitions,
                states,
            );
        }
        if states > u64::from(options.max_states) {
            return report(Outcome::TooLarge, depth, transitions, states);
        }
        depth += u32::from(!level.is_empty());
    }
    let states = u64::from(seen.count.load(Ordering::Relaxed));
    let outcome = match options.liveness.then(|| first_stuck(origins.len(), &edges, &goals)).flatten() {
        Some(index) => Outcome::Stuck { trace: trace(start, &origins, index) },
        None => Outcome::Closed,
    };
    report(outcome, depth, transitions, states)
}

fn expand<W: World>(level: &[Found<W>], seen: &Seen, options: &Options) -> Harvest<W> {
    planted::plant(options.planted);
    let mut harvest = Harvest {
        next: Vec::new(),
        origins: Vec::new(),
        edges: Vec::new(),
        goals: Vec::new(),
        transitions: 0,
        violation: None,
    };
    for Found { index: parent, state } in level {
        for (number, action) in state.actions().iter().enumerate() {
            let next = state.after(action);
            harvest.transitions += 1;
            let (index, new) = seen.enter(&next);
            if options.liveness && index != *parent {
                harvest.edges.push((*parent, index));
            }
            if !new {
                continue;
            }
            harvest
                .origins
                .push((index, Origin { parent: *parent, action: u16::try_from(number).unwrap_or(u16::MAX) }));
            if let Err(what) = next.check() {
                harvest.violation.get_or_insert((index, what));
            }
            if next.is_goal() {
                harvest.goals.push(index);
            }
            harvest.next.push(Found { index, state: next });
        }
    }
    harvest
}

/// The earliest found state from which no goal can be reached: everything that leads to a goal is marked backwards.
fn first_stuck(states: usize, edges: &[(u32, u32)], goals: &[u32]) -> Option<u32> {
    let mut starts = vec![0_usize; states + 1];
    for &(_, to) in edges {
        starts[to as usize + 1] += 1;
    }
    for index in 0..states {
        starts[index + 1] += starts[index];
    }
    let mut fill = starts.clone();
    let mut sources = vec![0_u32; edges.len()];
    for &(from, to) in edges {
        sources[fill[to as usize]] = from;
        fill[to as usize] += 1;
    }
    let mut leads = vec![false; states];
    let mut open: Vec<u32> = goals.to_vec();
    for &goal in goals {
        leads[goal as usize] = true;
    }
    while let Some(state) = open.pop() {
        for &from in &sources[starts[state as usize]..starts[state as usize + 1]] {
            if !leads[from as usize] {
                leads[from as usize] = true;
                open.push(from);
            }
        }
    }
    leads.iter().position(|leads| !leads).and_then(|index| u32::try_from(index).ok())
}

fn trace<W: World>(start: &W, origins: &[Origin], to: u32) -> String {
    let mut steps = Vec::new();
    let mut at = to;
    while let Some(&Origin { parent, action }) = origins.get(at as usize).filter(|origin| origin.parent != ROOT) {
        steps.push(action);
        at = parent;
    }
    let mut state = start.clone();
    let mut text = format!("      {}\n", state.describe());
    for (number, action) in (1..).zip(steps.into_iter().rev()) {
        let Some(action) = state.actions().get(usize::from(action)).cloned() else { break };
        state = state.after(&action);
        // Writing to a string can't fail.
        let _ = writeln!(text, "{number:4}. {action:?}\n      {}", state.describe());
    }
    text
}
