use super::*;

#[test]
fn going_back_to_a_checkpoint_leaves_what_its_restore_would() {
    for host in expected().hosts {
        for checkpoint in &host.checkpoints {
            let site = Site::copy_of(&host.dir);
            fs::create_dir(site.at("steps.bin")).unwrap();
            site.store.retain_only(Some(checkpoint.id())).unwrap();
            assert_eq!(site.content(), checkpoint.restored(&host.dir));
            assert!(!site.at("steps.bin").exists());
            site.store.retain_only(Some(checkpoint.id())).unwrap();
            assert_eq!(site.content(), checkpoint.restored(&host.dir));
        }
    }
}

#[test]
fn a_fresh_start_leaves_an_empty_catalog_and_nothing_that_the_engine_would_delete() {
    let site = Site::copy_of("host0");
    fs::create_dir(site.at("steps.bin")).unwrap();
    fs::write(site.at("status.json"), "{}").unwrap();
    // Told to discard all that is there, it needs no readable catalog.
    fs::write(site.at("checkpoints.feldera"), "broken").unwrap();
    for _ in 0..2 {
        site.store.retain_only(None).unwrap();
        let content = site.content();
        assert_eq!(names(&content), ["checkpoints.feldera", "status.json"]);
        assert_eq!(content["checkpoints.feldera"], b"[]");
        assert!(!site.at("steps.bin").exists());
        assert!(site.store.list().unwrap().is_empty());
    }
}

#[test]
fn a_fresh_start_of_a_directory_that_never_was_works() {
    let site = Site::empty();
    site.store.retain_only(None).unwrap();
    assert!(site.store.list().unwrap().is_empty());
}

#[test]
fn a_checkpoint_that_is_missing_or_damaged_is_refused_and_nothing_removed() {
    let host = expected_host(0);
    let site = Site::copy_of("host0");
    let before = site.content();
    refused(site.store.retain_only(Some(expected_host(1).checkpoints[0].id())), Reason::CheckpointNotFound);
    assert_eq!(site.content(), before);

    let checkpoint = &host.checkpoints[0];
    let batch = checkpoint.files.iter().map(|file| &file.path).find(|path| path.ends_with(".feldera")).unwrap();
    for missing in [batch.clone(), format!("{}/CHECKPOINT", checkpoint.uuid), format!("{}/state.json", checkpoint.uuid)]
    {
        let site = Site::copy_of("host0");
        fs::remove_file(site.at(&missing)).unwrap();
        let before = site.content();
        let problem = refused(site.store.retain_only(Some(checkpoint.id())), Reason::CheckpointDamaged);
        assert_eq!(problem.metadata["path"], site.at(&missing).display().to_string());
        assert_eq!(site.content(), before);
    }
}
