use super::*;

#[test]
fn every_checkpoint_of_every_host_restores_into_an_empty_directory() {
    for host in expected().hosts {
        for checkpoint in &host.checkpoints {
            let site = Site::empty();
            let staged = site.stage_fixture(&host.dir, checkpoint.id());
            site.store.install(&staged).unwrap();
            let content = site.content();
            assert_eq!(names(&content), names(&checkpoint.restored(&host.dir)));
            assert_eq!(content, checkpoint.restored(&host.dir));
            assert!(!staged.folder.exists());
            assert_eq!(site.store.list().unwrap().len(), 1);
            site.store.hold(checkpoint.id()).unwrap();
        }
    }
}

#[test]
fn a_restore_leaves_the_restored_checkpoint_alone_and_foreign_files_untouched() {
    for at in 0..3 {
        let site = Site::copy_of("host0");
        let checkpoint = &expected_host(0).checkpoints[at];
        let foreign = ["status.json", "activated.feldera", "datafusion-tmp/x", "coordinator/own/x", "notes.txt"];
        for path in foreign {
            fs::create_dir_all(site.at(path).parent().unwrap()).unwrap();
            fs::write(site.at(path), path).unwrap();
        }
        fs::create_dir(site.at("steps.bin")).unwrap();
        fs::write(site.at("steps.bin/0"), "stale").unwrap();

        let staged = site.stage_fixture("host0", checkpoint.id());
        site.store.install(&staged).unwrap();

        let mut wanted = checkpoint.restored("host0");
        wanted.extend(foreign.map(|path| (path.to_owned(), path.into())));
        assert_eq!(site.content(), wanted);
        assert!(!site.at("steps.bin").exists());
        // Again, with the staging moved: the same.
        site.store.install(&staged).unwrap();
        assert_eq!(site.content(), wanted);
    }
}

#[test]
fn a_flipped_byte_in_the_local_copy_of_the_same_checkpoint_is_repaired() {
    let site = Site::copy_of("host0");
    let checkpoint = &expected_host(0).checkpoints[2];
    for file in &checkpoint.files {
        let mut bytes = fs::read(site.at(&file.path)).unwrap();
        bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        fs::write(site.at(&file.path), bytes).unwrap();
    }
    let staged = site.stage_fixture("host0", checkpoint.id());
    site.store.install(&staged).unwrap();
    assert_eq!(site.content(), checkpoint.restored("host0"));
}

#[test]
fn files_that_staging_shares_by_hard_link_are_installed_too() {
    let site = Site::copy_of("host0");
    let checkpoint = &expected_host(0).checkpoints[1];
    let staged = site.stage_fixture("host0", checkpoint.id());
    for file in &staged.files {
        let staged = staged.folder.join(file.as_str());
        fs::remove_file(&staged).unwrap();
        fs::hard_link(site.at(file.as_str()), &staged).unwrap();
    }
    site.store.install(&staged).unwrap();
    assert_eq!(site.content(), checkpoint.restored("host0"));
}

#[test]
fn a_symlink_in_the_place_of_the_folder_is_not_followed() {
    let site = Site::empty();
    let checkpoint = &expected_host(0).checkpoints[0];
    let outside = site.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    let staged = site.stage_fixture("host0", checkpoint.id());
    std::os::unix::fs::symlink(&outside, site.at(&checkpoint.uuid)).unwrap();
    site.store.install(&staged).unwrap();
    assert_eq!(site.content(), checkpoint.restored("host0"));
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"x");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_directory_without_catalog_is_repaired_by_a_restore() {
    let site = Site::copy_of("host0");
    fs::remove_file(site.at("checkpoints.feldera")).unwrap();
    let checkpoint = &expected_host(0).checkpoints[0];
    let staged = site.stage_fixture("host0", checkpoint.id());
    site.store.install(&staged).unwrap();
    assert_eq!(site.content(), checkpoint.restored("host0"));
}

#[test]
fn what_is_neither_staged_nor_installed_is_not_found_and_changes_nothing() {
    let checkpoint = &expected_host(0).checkpoints[0];
    for lose in [
        None,
        Some(checkpoint.uuid.clone()),
        Some(checkpoint.files[3].path.clone()),
        checkpoint.files.last().map(|f| f.path.clone()),
    ] {
        let site = Site::copy_of("host1");
        let staged = site.stage_fixture("host0", checkpoint.id());
        let lost = lose.as_ref().map_or_else(|| staged.folder.clone(), |path| staged.folder.join(path));
        if lost.is_dir() { fs::remove_dir_all(&lost) } else { fs::remove_file(&lost) }.unwrap();
        let before = site.content();
        refused(site.store.install(&staged), Reason::CheckpointNotFound);
        assert_eq!(site.content(), before, "{lose:?}");
    }
}

type Spoil = fn(&mut StagedCheckpoint);

fn add(staged: &mut StagedCheckpoint, path: &str) {
    let at = staged.folder.join(path);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, "x").unwrap();
    staged.files.push(RelativePath::new(path).unwrap());
}

fn edit(staged: &mut StagedCheckpoint, path: &str, edit: impl Fn(String) -> String) {
    let at = staged.folder.join(path);
    fs::write(&at, edit(fs::read_to_string(&at).unwrap())).unwrap();
}

#[test]
fn a_part_that_breaks_the_rules_is_refused_before_anything_changes() {
    let spoils: [(&str, Spoil); 14] = [
        ("a catalog", |staged| add(staged, "checkpoints.feldera")),
        ("a lock", |staged| add(staged, "feldera.pidlock")),
        ("a root state", |staged| add(staged, "state.json")),
        ("another folder", |staged| add(staged, "01a20379-a1a0-74ce-acc6-b08719952cdf/CHECKPOINT")),
        ("a batch nobody needs", |staged| add(staged, "w9-01a20379-a1a0-74ce-acc6-b08719952cdf.feldera")),
        ("our own folder", |staged| add(staged, "coordinator/lockstep/installing")),
        ("a file nobody named", |staged| {
            fs::write(staged.folder.join(staged.id.to_string()).join("extra"), "x").unwrap();
        }),
        ("no state.json though there was one", |staged| {
            let path = format!("{}/state.json", staged.id);
            fs::remove_file(staged.folder.join(&path)).unwrap();
            staged.files.retain(|file| file.as_str() != path);
        }),
        ("a batch too few", |staged| staged.files.retain(|file| file.as_str().contains('/'))),
        ("no marker", |staged| staged.files.retain(|file| !file.as_str().ends_with("/CHECKPOINT"))),
        ("a batch name that leads out", |staged| {
            let path = format!("{}/dependencies.json", staged.id);
            edit(staged, &path, |text| text.replacen("w0-", "../w0-", 1));
        }),
        ("another kind of store", |staged| staged.store_meta = String::new()),
        ("another step", |staged| staged.step = Step::new(5).unwrap()),
        ("another fingerprint", |staged| staged.fingerprint = Some(Fingerprint(1))),
    ];
    for (what, spoil) in spoils {
        let site = Site::copy_of("host1");
        let mut staged = site.stage_fixture("host0", expected_host(0).checkpoints[0].id());
        spoil(&mut staged);
        let before = site.content();
        let result = site.store.install(&staged);
        assert_eq!(result.map_err(|problem| problem.reason), Err(Reason::ManifestInvalid), "{what}");
        assert_eq!(site.content(), before, "{what}");
    }
}

#[test]
fn without_a_recorded_state_json_the_stale_one_goes() {
    let checkpoint = &expected_host(0).checkpoints[2];
    let source = Site::copy_of("host0");
    fs::remove_file(source.at("state.json")).unwrap();
    fs::remove_file(source.at(&format!("{}/state.json", checkpoint.uuid))).unwrap();
    let site = Site::copy_of("host0");
    let staged = site.stage(&*source.store.hold(checkpoint.id()).unwrap());
    site.store.install(&staged).unwrap();
    let mut wanted = checkpoint.restored("host0");
    wanted.remove("state.json");
    wanted.remove(&format!("{}/state.json", checkpoint.uuid));
    assert_eq!(site.content(), wanted);
}
