//! Each change of the directory is the last before the process dies, one after the other.

use super::*;
use crate::store::durable::crash;

/// Lets `act` die before its first, second, ... change, looks at what is left, and repeats the call as the next process would.
fn at_every_change(
    make: impl Fn() -> (Site, StagedCheckpoint),
    act: impl Fn(&Site, &StagedCheckpoint) -> Result<(), Problem>,
    inspect: impl Fn(&Site, u32),
    wanted: &BTreeMap<String, Vec<u8>>,
) -> u32 {
    for changes in 0.. {
        let (mut site, staged) = make();
        // Another test of this process starts a child now and then, which for an instant, until its exec, shares the lock that is open here.
        let forking = |outcome: &Result<(), _>| matches!(outcome, Err(Problem { reason: Reason::EngineRunning, .. }));
        let died = loop {
            crash::after(changes);
            let died = act(&site, &staged);
            crash::never();
            if !forking(&died) {
                break died;
            }
        };
        if died.is_ok() {
            assert_eq!(&site.content(), wanted);
            return changes;
        }
        refused(died, Reason::LocalIo);
        site.store = FelderaStore::open(site.root()).unwrap();
        inspect(&site, changes);
        let again = std::iter::repeat_with(|| act(&site, &staged)).find(|outcome| !forking(outcome));
        again.unwrap().unwrap_or_else(|problem| panic!("after a crash at change {changes}: {problem}"));
        assert_eq!(names(&site.content()), names(wanted), "after a crash at change {changes}");
        assert_eq!(&site.content(), wanted, "after a crash at change {changes}");
        assert!(!site.at("coordinator/lockstep/installing").exists());
    }
    unreachable!("the loop ends with a call that does not die")
}

/// The catalog never names what isn't there, and never names nothing while there is something.
fn assert_consistent(site: &Site, allowed: &[&[u8]], at: u32) {
    let catalog = fs::read(site.at("checkpoints.feldera")).unwrap();
    assert!(allowed.contains(&catalog.as_slice()), "change {at}: {}", String::from_utf8_lossy(&catalog));
    for checkpoint in site.store.list().unwrap() {
        site.store.hold(checkpoint.id).unwrap_or_else(|problem| panic!("change {at}: {problem}"));
    }
}

#[test]
fn a_restore_into_an_empty_directory_is_taken_up_after_any_crash() {
    let (checkpoint, source) = (&expected_host(0).checkpoints[1], Site::copy_of("host0"));
    let changes = at_every_change(
        || {
            let site = Site::empty();
            let staged = site.stage_linked(&source, checkpoint.id());
            (site, staged)
        },
        |site, staged| site.store.install(staged),
        |site, at| {
            // Half a restore is no checkpoint, but no reason to refuse the next pull either.
            let listed = site.store.list().unwrap_or_else(|problem| panic!("change {at}: {problem}"));
            assert!(listed.len() <= 1);
            assert!(!matches!(fs::read(site.at("checkpoints.feldera")), Ok(bytes) if bytes == b"[]"), "change {at}");
        },
        &checkpoint.restored("host0"),
    );
    assert!(changes > u32::try_from(checkpoint.files.len()).unwrap(), "only {changes} changes were tried");
}

#[test]
fn a_restore_over_other_checkpoints_leaves_the_old_or_the_new_ones_after_any_crash() {
    let (old, checkpoint) = (expected_host(1), &expected_host(0).checkpoints[1]);
    let (before, source) = (Site::copy_of(&old.dir), Site::copy_of("host0"));
    let old_catalog = fs::read(before.at("checkpoints.feldera")).unwrap();
    at_every_change(
        || {
            let site = Site::linked_to(&before);
            fs::create_dir(site.at("steps.bin")).unwrap();
            let staged = site.stage_linked(&source, checkpoint.id());
            (site, staged)
        },
        |site, staged| site.store.install(staged),
        |site, at| {
            let new_catalog = checkpoint.alone(&source.root());
            assert_consistent(site, &[&old_catalog, &new_catalog], at);
            // Nobody may find the new catalog beside what belongs to the old history.
            if fs::read(site.at("checkpoints.feldera")).unwrap() == new_catalog {
                assert_eq!(fs::read(site.at("state.json")).unwrap(), checkpoint.restored("host0")["state.json"]);
                assert!(!site.at("steps.bin").exists(), "change {at}");
            }
        },
        &checkpoint.restored("host0"),
    );
}

#[test]
fn a_restore_over_the_same_checkpoint_is_taken_up_after_any_crash() {
    let checkpoint = &expected_host(0).checkpoints[0];
    // Two copies: what is staged are other files than those in place.
    let (before, source) = (Site::copy_of("host0"), Site::copy_of("host0"));
    let old_catalog = fs::read(before.at("checkpoints.feldera")).unwrap();
    at_every_change(
        || {
            let site = Site::linked_to(&before);
            let staged = site.stage_linked(&source, checkpoint.id());
            (site, staged)
        },
        |site, staged| site.store.install(staged),
        |site, at| assert_consistent(site, &[&old_catalog, &checkpoint.alone(&source.root())], at),
        &checkpoint.restored("host0"),
    );
}

#[test]
fn going_back_is_taken_up_after_any_crash() {
    let checkpoint = &expected_host(0).checkpoints[0];
    let source = Site::copy_of("host0");
    let old_catalog = fs::read(source.at("checkpoints.feldera")).unwrap();
    at_every_change(
        || {
            let site = Site::linked_to(&source);
            fs::create_dir(site.at("steps.bin")).unwrap();
            let staged = site.stage_linked(&source, checkpoint.id());
            (site, staged)
        },
        |site, staged| site.store.retain_only(Some(staged.id)),
        |site, at| {
            assert_consistent(site, &[&old_catalog, &checkpoint.alone(&source.root())], at);
            // The root's state lets an engine start from the old checkpoint: then nothing else of the abandoned history may be left for it to go on with.
            if fs::read(site.at("state.json")).unwrap() == checkpoint.restored("host0")["state.json"] {
                assert_ne!(fs::read(site.at("checkpoints.feldera")).unwrap(), old_catalog, "change {at}");
                assert!(!site.at("steps.bin").exists(), "change {at}");
            }
        },
        &checkpoint.restored("host0"),
    );
}

#[test]
fn a_fresh_start_is_taken_up_after_any_crash() {
    let source = Site::copy_of("host0");
    let id = expected_host(0).checkpoints[0].id();
    let old_catalog = fs::read(source.at("checkpoints.feldera")).unwrap();
    at_every_change(
        || {
            let site = Site::linked_to(&source);
            let staged = site.stage_linked(&source, id);
            (site, staged)
        },
        |site, _| site.store.retain_only(None),
        |site, at| assert_consistent(site, &[&old_catalog, b"[]"], at),
        &BTreeMap::from([("checkpoints.feldera".to_owned(), b"[]".to_vec())]),
    );
}
