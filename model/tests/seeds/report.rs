//! Many seeds, and what they came to.

use std::{
    collections::BTreeMap,
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lockstep_model::simulate::{self, Fault, Seed};
use lockstep_protocol::planted::{self, Bug};

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What many seeds came to.
#[derive(Default)]
pub(crate) struct Sweep {
    pub(crate) seeds: u64,
    pub(crate) violations: Vec<(u64, String)>,
    seeds_with: BTreeMap<Fault, u64>,
    rounds: BTreeMap<(&'static str, &'static str), u64>,
    from_unknown: u64,
    longest: (u64, u64),
    recoveries: Vec<u64>,
    pub(crate) took: Duration,
}

impl Sweep {
    fn add(&mut self, seed: Seed) {
        self.seeds += 1;
        for (fault, _) in seed.faults {
            *self.seeds_with.entry(fault).or_default() += 1;
        }
        for (kind, count) in seed.rounds {
            *self.rounds.entry(kind).or_default() += u64::from(count);
        }
        self.from_unknown += u64::from(seed.from_unknown);
        self.longest = self.longest.max((seed.longest, seed.seed));
        self.recoveries.push(seed.recovery);
        self.violations.extend(seed.violation.map(|what| (seed.seed, what)));
    }

    fn join(mut self, other: Self) -> Self {
        self.seeds += other.seeds;
        self.violations.extend(other.violations);
        for (fault, count) in other.seeds_with {
            *self.seeds_with.entry(fault).or_default() += count;
        }
        for (kind, count) in other.rounds {
            *self.rounds.entry(kind).or_default() += count;
        }
        self.from_unknown += other.from_unknown;
        self.longest = self.longest.max(other.longest);
        self.recoveries.extend(other.recoveries);
        self
    }

    /// Seeds in which a class of fault was met, in hundredths of all.
    pub(crate) fn share(&self, fault: Fault) -> f64 {
        100.0 * *self.seeds_with.get(&fault).unwrap_or(&0) as f64 / self.seeds as f64
    }

    pub(crate) fn print(&mut self) {
        let seconds = |micros: u64| micros as f64 / 1e6;
        println!("{} seeds in {:.1} s", self.seeds, self.took.as_secs_f64());
        println!("| fault | seeds with it |\n|---|---|");
        for &fault in Fault::ALL {
            println!("| {} | {:.1} % |", fault.as_str(), self.share(fault));
        }
        println!("| rounds | number |\n|---|---|");
        for ((kind, phase), count) in &self.rounds {
            println!("| {kind} {phase} | {count} |");
        }
        println!("| committed, resolved from unknown | {} |", self.from_unknown);
        self.recoveries.sort_unstable();
        let at =
            |hundredths: usize| self.recoveries.get(self.recoveries.len() * hundredths / 100).copied().unwrap_or(0);
        println!(
            "from the last fault to the end of the last round: p50 {:.1} s, p99 {:.1} s, most {:.1} s of virtual time",
            seconds(at(50)),
            seconds(at(99)),
            seconds(self.recoveries.last().copied().unwrap_or(0))
        );
        println!("longest round: {:.1} s of virtual time (seed {})", seconds(self.longest.0), self.longest.1);
    }
}

/// Runs seeds on all cores, with a bug or without; with one, only up to the first seed that finds it.
pub(crate) fn sweep(first: u64, count: u64, bug: Option<Bug>) -> Sweep {
    let began = Instant::now();
    let (next, until) = (AtomicU64::new(first), AtomicU64::new(first + count));
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let mut whole = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    planted::plant(bug);
                    let mut part = Sweep::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= until.load(Ordering::Relaxed) {
                            return part;
                        }
                        let done = simulate::run(seed, false).unwrap();
                        if bug.is_some() && done.violation.is_some() {
                            until.fetch_min(seed, Ordering::Relaxed);
                        }
                        part.add(done);
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).fold(Sweep::default(), Sweep::join)
    });
    whole.violations.sort_unstable();
    whole.took = began.elapsed();
    whole
}
