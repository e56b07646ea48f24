//! Against a generated directory whose engine makes and collects checkpoints as fast as it can.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lockstep_devkit::dbsp::{DbspDirectory, DbspOptions};

use super::*;
use crate::store::feldera::StateWait;

/// Holds whatever is listed until the engine has made `rounds` checkpoints. Returns how many holds stood and how many came too late.
fn hold_while_collecting(options: DbspOptions, rounds: u64) -> (u32, u32) {
    let site = Site::empty();
    // Time enough for a folder that is just being deleted to be gone; it does not pass.
    let store = FelderaStore::open(site.root()).unwrap().with_state_wait(StateWait::new(
        Duration::from_secs(3600),
        Duration::from_secs(1),
        |_| std::thread::yield_now(),
    ));
    let mut engine = DbspDirectory::create(site.root(), options.clone()).unwrap();
    engine.checkpoint(1, 12, 0).unwrap();
    let done = AtomicBool::new(false);
    let (mut stood, mut late) = (0, 0);
    std::thread::scope(|scope| {
        let engine_thread = scope.spawn(|| {
            for step in 2..rounds {
                engine.checkpoint(step, 4, 3).unwrap();
                engine.collect(1).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) && !engine_thread.is_finished() {
            let listed = store.list().unwrap();
            for checkpoint in &listed {
                let held = match store.hold(checkpoint.id) {
                    Ok(held) => held,
                    Err(problem) => {
                        assert_eq!(problem.reason, Reason::CheckpointNotFound, "{problem}");
                        late += 1;
                        continue;
                    }
                };
                stood += 1;
                let inside = held.files().iter().filter(|file| file.path.as_str().contains('/')).count();
                assert_eq!(
                    inside,
                    options.state_files + 2 + usize::from(options.controller),
                    "a part of a checkpoint was held"
                );
                for file in held.files() {
                    assert_eq!(held.open(&file.path).unwrap().metadata().unwrap().len(), file.size);
                }
            }
        }
    });
    (stood, late)
}

#[test]
fn a_hold_against_the_engines_clean_up_is_whole_or_not_found() {
    for bare_dependencies in [false, true] {
        for controller in [true, false] {
            let options = DbspOptions { bare_dependencies, controller, ..DbspOptions::default() };
            let (stood, late) = hold_while_collecting(options, 80);
            println!("bare {bare_dependencies}, controller {controller}: {stood} holds stood, {late} came too late");
            assert!(stood > 0);
        }
    }
}

#[test]
fn a_generated_directory_restores_to_what_it_was() {
    let source = Site::empty();
    let mut engine = DbspDirectory::create(source.root(), DbspOptions { seed: 7, ..DbspOptions::default() }).unwrap();
    for step in 1..=3 {
        engine.checkpoint(step, 5, 2).unwrap();
    }
    engine.collect(1).unwrap();
    let newest = source.store.list().unwrap().pop().unwrap();
    assert_eq!(newest.step.get(), 3);
    let site = Site::empty();
    let staged = site.stage(&*source.store.hold(newest.id).unwrap());
    site.store.install(&staged).unwrap();
    assert_eq!(site.content(), source.content());
}
