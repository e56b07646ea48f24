//! Seeds of the dispatch simulation: all of them hold the invariants, and a seed is one history.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{log, number_of, story};

/// Seeds of one run of the suite.
const SEEDS: u64 = 200;

/// Plays a seed with its log.
fn replay(seed: u64) -> (Result<story::Told, String>, String) {
    log::collect(|| story::play(seed))
}

/// Shows where two logs part.
pub(crate) fn assert_same(seed: u64, first: &str, second: &str) {
    let differ = first.lines().zip(second.lines()).position(|(a, b)| a != b);
    let differ = differ.unwrap_or_else(|| first.lines().count().min(second.lines().count()));
    let around = |log: &str| log.lines().skip(differ.saturating_sub(3)).take(6).collect::<Vec<_>>().join("\n");
    assert!(first == second, "seed {seed}, line {differ}:\n{}\n---\n{}", around(first), around(second));
}

#[test]
fn dispatch_is_replayed_byte_for_byte_by_its_seed() {
    for seed in 0..6 {
        let (first, second) = (replay(seed), replay(seed));
        assert_same(seed, &first.1, &second.1);
        assert_eq!(first.0, second.0, "seed {seed}");
        let lines = first.1.lines().count();
        assert!(lines > 50, "the log of seed {seed} has {lines} lines");
    }
}

#[test]
fn dispatch_holds_the_invariants_whatever_fails() {
    if let Some(seed) = number_of("LOCKSTEP_SEED") {
        let (told, log) = replay(seed);
        println!("{log}");
        println!("{:#?}", told.unwrap_or_else(|violation| panic!("seed {seed}: {violation}")));
        return;
    }
    let seeds = number_of("LOCKSTEP_SEEDS").unwrap_or(SEEDS);
    let begun = Instant::now();
    let (mut faults, mut rounds) = (BTreeMap::<String, (u64, u64)>::new(), BTreeMap::<String, u64>::new());
    let mut recoveries = Vec::new();
    let mut took = Duration::ZERO;
    for seed in 0..seeds {
        let told = story::play(seed).unwrap_or_else(|violation| {
            let (_, log) = replay(seed);
            let tail = log.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
            panic!("{tail}\nseed {seed}: {violation}\nLOCKSTEP_SEED={seed} replays it")
        });
        for (fault, count) in told.faults {
            let (seeds, total) = faults.entry(fault).or_default();
            *seeds += 1;
            *total += count;
        }
        told.rounds.into_iter().for_each(|(round, count)| *rounds.entry(round).or_default() += count);
        recoveries.push(told.recovery);
        took += told.took;
    }
    recoveries.sort_unstable();
    let at = |share: usize| recoveries[(recoveries.len() - 1) * share / 100];
    println!("{seeds} seeds in {:.1} s, {} virtual hours", begun.elapsed().as_secs_f64(), took.as_secs() / 3600);
    println!("recovery p50 {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    println!("faults (seeds, times): {faults:#?}\nrounds: {rounds:#?}");
    // Histories that never meet a fault or an outcome would prove nothing about it.
    for (fault, (met, _)) in faults.iter().filter(|(fault, _)| *fault != "stranded pull superseded") {
        assert!(*met * 20 >= seeds, "{fault} is met by {met} of {seeds} seeds only");
    }
    for outcome in ["push committed", "push CANCELLED", "pull installed", "pull SUPERSEDED"] {
        assert!(rounds.contains_key(outcome), "no {outcome}: {rounds:?}");
    }
}
