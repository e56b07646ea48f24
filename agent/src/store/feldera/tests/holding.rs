use std::{
    io::Read,
    os::unix::fs::symlink,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::store::{feldera::StateWait, hold::Holding};

fn digests(held: &dyn HeldCheckpoint) -> BTreeMap<String, (u64, String)> {
    held.files()
        .iter()
        .map(|file| {
            let mut bytes = Vec::new();
            held.open(&file.path).unwrap().read_to_end(&mut bytes).unwrap();
            let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            (file.path.as_str().to_owned(), (file.size, digest))
        })
        .collect()
}

fn expected_digests(checkpoint: &ExpectedCheckpoint) -> BTreeMap<String, (u64, String)> {
    checkpoint.files.iter().map(|file| (file.path.clone(), (file.size, file.sha256.clone()))).collect()
}

/// Seconds pass in no time; `at` is called in each pause with its number.
fn instantly(at: impl Fn(u32) + Send + Sync + 'static) -> (StateWait, Arc<AtomicU32>) {
    let pauses = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&pauses);
    let wait = StateWait::new(Duration::from_secs(10), Duration::from_secs(1), move |_| {
        at(counted.fetch_add(1, Ordering::Relaxed) + 1);
    });
    (wait, pauses)
}

#[test]
fn a_held_checkpoint_has_exactly_the_expected_files() {
    for host in expected().hosts {
        let site = Site::copy_of(&host.dir);
        for checkpoint in &host.checkpoints {
            let held = site.store.hold(checkpoint.id()).unwrap();
            assert_eq!(digests(&*held), expected_digests(checkpoint));
            assert_eq!((held.checkpoint().bytes, held.checkpoint().files), (checkpoint.bytes, checkpoint.files_count));
            assert_eq!(held.checkpoint().step.get(), checkpoint.step);
        }
    }
}

#[test]
fn held_files_outlive_the_engines_clean_up_and_vanish_with_the_hold() {
    for holding in [Holding::HardLinks, Holding::OpenFiles] {
        let mut site = Site::copy_of("host1");
        site.store = site.store.with_holding(holding);
        let checkpoint = &expected_host(1).checkpoints[0];
        let held = site.store.hold(checkpoint.id()).unwrap();
        for file in &checkpoint.files {
            fs::remove_file(site.at(&file.path)).unwrap();
        }
        fs::remove_dir(site.at(&checkpoint.uuid)).unwrap();
        assert_eq!(digests(&*held), expected_digests(checkpoint), "{holding:?}");
        // Two readers of one file don't disturb each other.
        assert_eq!(digests(&*held), expected_digests(checkpoint), "{holding:?}");
        drop(held);
        let left: Vec<_> =
            fs::read_dir(site.at("coordinator/lockstep/hold")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".guard"], "{holding:?}");
    }
}

#[test]
fn what_a_dead_process_held_is_released_at_the_next_start() {
    let site = Site::copy_of("host0");
    let dead = site.at("coordinator/lockstep/hold/0d9eb1c4-7b1f-4a53-a9a7-c8b9d5b8a9f0");
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("w0-x.feldera"), "x").unwrap();
    let living = site.store.hold(expected_host(0).checkpoints[0].id()).unwrap();
    let again = FelderaStore::open(site.root()).unwrap();
    assert!(!dead.exists());
    assert!(!digests(&*living).is_empty());
    drop(again);
}

#[test]
fn the_catalog_entry_travels_to_the_byte() {
    let site = Site::copy_of("host0");
    let id = &expected_host(0).checkpoints[0].uuid;
    let entry = format!(
        r#"{{"uuid":"{id}", "fingerprint":11057525854332059820,"identifier":null,"size":4840,"steps":4,"processed_records":3075,"later":[1.50,{{}}]}}"#
    );
    fs::write(site.at("checkpoints.feldera"), format!("[{entry}]")).unwrap();
    let held = site.store.hold(id.parse().unwrap()).unwrap();
    assert_eq!(held.checkpoint().fingerprint, Some(Fingerprint(11_057_525_854_332_059_820)));
    // A pretty-printing, number-parsing peer in between changes nothing, because it is a string.
    let meta: serde_json::Value = serde_json::from_str(held.store_meta()).unwrap();
    assert_eq!(meta["entry"], entry);
    assert_eq!(meta["root_state_json"], true);

    let target = Site::empty();
    target.store.install(&target.stage(&*held)).unwrap();
    assert_eq!(fs::read_to_string(target.at("checkpoints.feldera")).unwrap(), format!("[{entry}]"));
}

#[test]
fn missing_files_of_a_checkpoint_in_the_catalog_are_damage_and_named() {
    let host = expected_host(0);
    let checkpoint = &host.checkpoints[1];
    let batch = checkpoint.files.iter().map(|file| &file.path).find(|path| path.ends_with(".feldera")).unwrap();
    let state = format!("{}/pspine-0-rows.accintegral.dat", checkpoint.uuid);
    let marker = format!("{}/CHECKPOINT", checkpoint.uuid);
    let dependencies = format!("{}/dependencies.json", checkpoint.uuid);
    for missing in [batch, &state, &marker, &dependencies] {
        let site = Site::copy_of(&host.dir);
        fs::remove_file(site.at(missing)).unwrap();
        let problem = refused(site.store.hold(checkpoint.id()), Reason::CheckpointDamaged);
        assert_eq!(problem.metadata["path"], site.at(missing).display().to_string());
    }
}

#[test]
fn a_checkpoint_that_left_the_catalog_is_not_found_and_the_newest_named() {
    let site = Site::copy_of("host0");
    let host = expected_host(0);
    fs::write(site.at("checkpoints.feldera"), host.checkpoints[2].alone(&fixtures().join("host0"))).unwrap();
    let problem = refused(site.store.hold(host.checkpoints[0].id()), Reason::CheckpointNotFound);
    assert!(problem.message.contains(&host.checkpoints[2].uuid), "{problem}");
}

#[test]
fn a_checkpoint_collected_while_it_is_being_held_is_not_found() {
    let mut site = Site::copy_of("host0");
    let host = expected_host(0);
    let id = host.checkpoints[0].id();
    fs::remove_file(site.at(&format!("{id}/state.json"))).unwrap();
    let (root, rest) = (site.root(), host.checkpoints[2].alone(&fixtures().join("host0")));
    let (wait, _) = instantly(move |_| {
        fs::write(root.join("checkpoints.feldera"), &rest).unwrap();
        fs::remove_dir_all(root.join(id.to_string())).unwrap();
    });
    site.store = site.store.with_state_wait(wait);
    refused(site.store.hold(id), Reason::CheckpointNotFound);
}

#[test]
fn a_hold_that_the_catalog_no_longer_backs_when_it_is_complete_does_not_count() {
    let mut site = Site::copy_of("host0");
    let host = expected_host(0);
    let id = host.checkpoints[0].id();
    let late = site.at(&format!("{id}/state.json"));
    let state = fs::read(&late).unwrap();
    fs::remove_file(&late).unwrap();
    let (catalog, rest) = (site.at("checkpoints.feldera"), host.checkpoints[2].alone(&fixtures().join("host0")));
    let (wait, _) = instantly(move |_| {
        fs::write(&catalog, &rest).unwrap();
        fs::write(&late, &state).unwrap();
    });
    site.store = site.store.with_state_wait(wait);
    refused(site.store.hold(id), Reason::CheckpointNotFound);
}

#[test]
fn a_late_state_json_is_waited_for() {
    let mut site = Site::copy_of("host0");
    let checkpoint = &expected_host(0).checkpoints[2];
    let late = site.at(&format!("{}/state.json", checkpoint.uuid));
    let bytes = fs::read(&late).unwrap();
    fs::remove_file(&late).unwrap();
    let (wait, pauses) = instantly(move |pause| {
        if pause == 3 {
            fs::write(&late, &bytes).unwrap();
        }
    });
    site.store = site.store.with_state_wait(wait);
    let held = site.store.hold(checkpoint.id()).unwrap();
    assert_eq!(digests(&*held), expected_digests(checkpoint));
    assert_eq!(pauses.load(Ordering::Relaxed), 3);
}

#[test]
fn a_state_json_that_never_comes_fails_the_host_after_ten_seconds() {
    let mut site = Site::copy_of("host0");
    let id = expected_host(0).checkpoints[2].id();
    fs::remove_file(site.at(&format!("{id}/state.json"))).unwrap();
    let (wait, pauses) = instantly(|_| {});
    site.store = site.store.with_state_wait(wait);
    let problem = refused(site.store.hold(id), Reason::CheckpointDamaged);
    assert_eq!(problem.metadata["waited_ms"], "10000");
    assert_eq!(pauses.load(Ordering::Relaxed), 10);
}

#[test]
fn without_a_controller_no_state_json_is_expected() {
    let mut site = Site::copy_of("host0");
    let id = expected_host(0).checkpoints[2].id();
    fs::remove_file(site.at(&format!("{id}/state.json"))).unwrap();
    fs::remove_file(site.at("state.json")).unwrap();
    let (wait, pauses) = instantly(|_| {});
    site.store = site.store.with_state_wait(wait);
    let held = site.store.hold(id).unwrap();
    assert!(!held.files().iter().any(|file| file.path.as_str().ends_with("state.json")));
    assert!(held.store_meta().contains("\"root_state_json\":false"));
    assert_eq!(pauses.load(Ordering::Relaxed), 0);
}

#[test]
fn the_old_form_of_dependencies_is_held_too() {
    let site = Site::copy_of("host0");
    let checkpoint = &expected_host(0).checkpoints[0];
    let path = site.at(&format!("{}/dependencies.json", checkpoint.uuid));
    let new: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::write(&path, new["batches"].to_string()).unwrap();
    let held = site.store.hold(checkpoint.id()).unwrap();
    let paths: Vec<&str> = held.files().iter().map(|file| file.path.as_str()).collect();
    let mut wanted: Vec<&str> = checkpoint.files.iter().map(|file| file.path.as_str()).collect();
    wanted.sort_unstable();
    assert_eq!(paths, wanted);
}

#[test]
fn links_and_special_files_are_refused_with_their_path() {
    let checkpoint = &expected_host(0).checkpoints[0];
    let (folder, marker) = (checkpoint.uuid.clone(), format!("{}/CHECKPOINT", checkpoint.uuid));
    let batch = checkpoint.files.iter().map(|file| &file.path).find(|path| path.ends_with(".feldera")).unwrap();
    for holding in [Holding::HardLinks, Holding::OpenFiles] {
        for linked in [&folder, &marker, batch] {
            let mut site = Site::copy_of("host0");
            site.store = site.store.with_holding(holding);
            fs::rename(site.at(linked), site.at("elsewhere")).unwrap();
            symlink(site.at("elsewhere"), site.at(linked)).unwrap();
            let problem = refused(site.store.hold(checkpoint.id()), Reason::SourceUnsupported);
            assert_eq!(problem.metadata["path"], site.at(linked).display().to_string());
        }
        for special in [format!("{folder}/pipe"), batch.clone()] {
            let mut site = Site::copy_of("host0");
            site.store = site.store.with_holding(holding);
            let _ = fs::remove_file(site.at(&special));
            nix::unistd::mkfifo(&site.at(&special), nix::sys::stat::Mode::S_IRWXU).unwrap();
            let problem = refused(site.store.hold(checkpoint.id()), Reason::SourceUnsupported);
            assert_eq!(problem.metadata["path"], site.at(&special).display().to_string());
            assert_eq!(problem.metadata["found"], "is a FIFO");
        }
    }
}

#[test]
fn a_file_that_grew_under_the_hold_is_a_changed_source() {
    let site = Site::copy_of("host0");
    let checkpoint = &expected_host(0).checkpoints[0];
    let held = site.store.hold(checkpoint.id()).unwrap();
    let marker = RelativePath::new(format!("{}/CHECKPOINT", checkpoint.uuid)).unwrap();
    fs::write(site.at(marker.as_str()), "x").unwrap();
    let problem = refused(held.open(&marker), Reason::SourceChanged);
    assert_eq!((problem.metadata["expected_size"].as_str(), problem.metadata["found_size"].as_str()), ("0", "1"));
    refused(held.open(&RelativePath::new("status.json").unwrap()), Reason::SourceChanged);
}
