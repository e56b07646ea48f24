//! Structure-aware fuzzing of everything that is parsed from bytes of strangers: documents in S3, keys, paths, specs. Stable Rust, no sanitizer, a seed and a time.
//!
//! `LOCKSTEP_FUZZ_SECONDS` (1 unless told) is the time for each target, `LOCKSTEP_FUZZ_SEED` the first seed. A failure names its seed and input; found ones
//! stand in `found`.
#![expect(clippy::unwrap_used, reason = "tests: a failed expectation is a failed test")]

mod found;
mod growth;
mod mutate;
#[path = "../protocol/sample.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod sample;
mod targets;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use mutate::Dice;
use targets::{TARGETS, Target};

/// No input of these sizes may take longer, however it is made; most take microseconds.
const LONGEST: Duration = Duration::from_secs(2);

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Tries one input: no panic, no hang, and what is parsed is written and parsed as the same. True: it parsed.
fn try_one(target: &Target, seed: u64, input: &[u8]) -> bool {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    let shown = || String::from_utf8_lossy(&input[..input.len().min(2_000)]).into_owned();
    let parsed = match outcome {
        Ok(Ok(parsed)) => parsed,
        Ok(Err(why)) => panic!("{}, seed {seed}: {why}: {}", target.name, shown()),
        Err(_) => panic!("{}, seed {seed}: panicked on: {}", target.name, shown()),
    };
    let took = began.elapsed();
    assert!(took < LONGEST, "{}, seed {seed}: {took:?} for {} bytes: {}", target.name, input.len(), shown());
    parsed
}

fn fuzz(target: &Target) {
    let budget = Duration::from_secs(setting("LOCKSTEP_FUZZ_SECONDS", 1));
    let began = Instant::now();
    let good = (target.good)();
    for input in &good {
        assert!(try_one(target, 0, input), "{}: a good input is refused", target.name);
    }
    let (mut tried, mut parsed) = (0_u64, 0_u64);
    let mut seed = setting("LOCKSTEP_FUZZ_SEED", 1);
    while began.elapsed() < budget {
        let mut dice = Dice::new(seed);
        let input = mutate::mutated(&mut dice, &good);
        parsed += u64::from(try_one(target, seed, &input));
        tried += 1;
        seed += 1;
    }
    println!("{}: {tried} inputs, {parsed} of them parsed", target.name);
    // Were nothing or everything refused, nothing would have been tried.
    assert!(parsed > 0 && parsed < tried, "{}: {parsed} of {tried} inputs parsed", target.name);
}

#[test]
fn what_strangers_write_neither_panics_nor_hangs_nor_changes_when_written_again() {
    std::thread::scope(|scope| {
        for half in TARGETS.chunks(TARGETS.len().div_ceil(2)) {
            scope.spawn(move || half.iter().for_each(fuzz));
        }
    });
}
