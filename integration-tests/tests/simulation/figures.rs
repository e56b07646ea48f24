//! Many seeds of a simulation: what they met and what they came to.

use std::{
    collections::BTreeMap,
    num::NonZero,
    thread,
    time::{Duration, Instant},
};

use crate::{log, number_of, planted::plant_what_is_asked_for, told::Told};

/// Plays a seed; an error is what was violated.
pub(crate) type Play = fn(u64) -> Result<Told, String>;

/// Lines of its log that a seed is shown with when it violates something.
const TAIL: usize = 60;

/// Sums over seeds.
#[derive(Default)]
pub(crate) struct Figures {
    seeds: u64,
    /// In how many seeds a fault was met, and how often in all of them.
    faults: BTreeMap<String, (u64, u64)>,
    pub(crate) rounds: BTreeMap<String, u64>,
    recoveries: Vec<Duration>,
    virtual_time: Duration,
    took: Duration,
}

/// One seed with its log, if one is asked for: `LOCKSTEP_SEED`, with a bug if `LOCKSTEP_BUG` names one.
pub(crate) fn replayed(play: Play) -> bool {
    let Some(seed) = number_of("LOCKSTEP_SEED") else { return false };
    plant_what_is_asked_for();
    let (told, log) = log::collect(|| play(seed));
    println!("{log}");
    println!("{:#?}", told.unwrap_or_else(|violation| panic!("seed {seed}: {violation}")));
    true
}

/// On every core: seeds share nothing, so how many threads there are changes no history. A thread stops where it finds a violation.
fn played(seeds: u64, play: Play) -> BTreeMap<u64, Result<Told, String>> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = |first: usize| {
        let mut outcomes = Vec::new();
        for seed in (0..seeds).skip(first).step_by(threads) {
            outcomes.push((seed, play(seed)));
            if matches!(outcomes.last(), Some((_, Err(_)))) {
                break;
            }
        }
        outcomes
    };
    thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|first| scope.spawn(move || share(first))).collect();
        shares.into_iter().flat_map(|share| share.join().unwrap()).collect()
    })
}

impl Figures {
    /// Panics with the end of its log where a seed violates something.
    pub(crate) fn of(seeds: u64, play: Play) -> Self {
        let begun = Instant::now();
        let mut figures = Self { seeds, ..Self::default() };
        for (seed, outcome) in played(seeds, play) {
            match outcome {
                Ok(told) => figures.add(told),
                Err(violation) => {
                    let (_, log) = log::collect(|| play(seed));
                    let lines: Vec<_> = log.lines().collect();
                    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
                    panic!("{tail}\nseed {seed}: {violation}\nLOCKSTEP_SEED={seed} replays it")
                }
            }
        }
        figures.recoveries.sort_unstable();
        figures.took = begun.elapsed();
        figures
    }

    fn add(&mut self, told: Told) {
        for (fault, count) in told.faults {
            let (seeds, times) = self.faults.entry(fault).or_default();
            *seeds += 1;
            *times += count;
        }
        told.rounds.into_iter().for_each(|(round, count)| *self.rounds.entry(round).or_default() += count);
        self.recoveries.push(told.recovery);
        self.virtual_time += told.took;
    }

    pub(crate) fn print(&self) {
        let at = |share: usize| self.recoveries.get((self.recoveries.len().saturating_sub(1)) * share / 100);
        let hours = self.virtual_time.as_secs_f64() / 3600.0;
        println!("{} seeds in {:.1} s: {hours:.1} virtual hours", self.seeds, self.took.as_secs_f64());
        println!(
            "from the last fault until every round was terminal: p50 {:?}, p99 {:?}, longest {:?}",
            at(50),
            at(99),
            at(100)
        );
        println!("| fault | seeds | times |\n|---|---|---|");
        for (fault, (met, times)) in &self.faults {
            println!("| {fault} | {met} | {times} |");
        }
        println!("| rounds | |\n|---|---|");
        self.rounds.iter().for_each(|(round, count)| println!("| {round} | {count} |"));
    }

    /// Histories that never meet a fault would prove nothing about it: each is met by one in so many of the seeds.
    pub(crate) fn assert_met(&self, faults: &[&str], one_in: u64) {
        for fault in faults {
            let (met, _) = self.faults.get(*fault).copied().unwrap_or_default();
            assert!(met > 0 && met * one_in >= self.seeds, "{fault} is met by {met} of {} seeds only", self.seeds);
        }
    }

    pub(crate) fn assert_outcomes(&self, rounds: &[&str]) {
        for round in rounds {
            assert!(self.rounds.contains_key(*round), "no round came to {round}: {:?}", self.rounds);
        }
    }
}
