use super::*;

#[test]
fn every_checkpoint_of_every_host_is_listed_as_it_is() {
    for host in expected().hosts {
        let listed = Site::copy_of(&host.dir).store.list().unwrap();
        assert_eq!(listed.len(), host.checkpoints.len());
        for (listed, expected) in listed.iter().zip(&host.checkpoints) {
            assert_eq!(listed.id, expected.id());
            assert_eq!(listed.step.get(), expected.step);
            assert_eq!(listed.fingerprint, Some(Fingerprint(expected.fingerprint)));
            assert_eq!(listed.processed_records, Some(expected.processed_records));
            assert_eq!((listed.files, listed.bytes), (expected.files_count, expected.bytes));
            assert!(listed.created_at.is_some());
        }
    }
}

#[test]
fn nothing_is_listed_only_where_that_is_proven() {
    let site = Site::empty();
    assert!(site.store.list().unwrap().is_empty(), "no directory");
    fs::create_dir_all(site.at("coordinator")).unwrap();
    fs::write(site.at("status.json"), "{}").unwrap();
    assert!(site.store.list().unwrap().is_empty(), "no catalog and nothing it could name");
    fs::write(site.at("checkpoints.feldera"), "[]").unwrap();
    assert!(site.store.list().unwrap().is_empty(), "an empty catalog");
}

#[test]
fn a_missing_catalog_beside_batches_is_an_error_because_the_engine_would_delete_them() {
    let site = Site::copy_of("host0");
    fs::remove_file(site.at("checkpoints.feldera")).unwrap();
    let problem = refused(site.store.list(), Reason::ManifestInvalid);
    assert_eq!(problem.metadata["path"], site.at("checkpoints.feldera").display().to_string());
    refused(site.store.retain_only(Some(expected_host(0).checkpoints[0].id())), Reason::ManifestInvalid);
}

#[test]
fn a_truncated_or_edited_catalog_is_an_error_with_path_and_byte() {
    let site = Site::copy_of("host0");
    let whole = fs::read(site.at("checkpoints.feldera")).unwrap();
    let id = expected_host(0).checkpoints[0].id();
    for bytes in [&whole[..whole.len() - 1], &whole[..whole.len() / 2], b"", b"[{}]", b"\xff[]"] {
        fs::write(site.at("checkpoints.feldera"), bytes).unwrap();
        for problem in [
            refused(site.store.list(), Reason::ManifestInvalid),
            refused(site.store.hold(id), Reason::ManifestInvalid),
            refused(site.store.retain_only(Some(id)), Reason::ManifestInvalid),
        ] {
            assert_eq!(problem.metadata["path"], site.at("checkpoints.feldera").display().to_string());
            assert!(problem.metadata.contains_key("byte"), "{problem}");
        }
    }
}

#[test]
fn a_catalog_that_is_no_regular_file_is_unsupported() {
    let site = Site::copy_of("host0");
    fs::rename(site.at("checkpoints.feldera"), site.at("real")).unwrap();
    std::os::unix::fs::symlink(site.at("real"), site.at("checkpoints.feldera")).unwrap();
    refused(site.store.list(), Reason::SourceUnsupported);
}

#[test]
fn files_to_reuse_are_found_without_the_catalog() {
    let site = Site::copy_of("host0");
    fs::write(site.at("checkpoints.feldera"), "broken").unwrap();
    let reusable: BTreeMap<String, u64> =
        site.store.reusable_files().unwrap().into_iter().map(|file| (file.path.into(), file.size)).collect();
    for checkpoint in expected_host(0).checkpoints {
        for file in checkpoint.files {
            assert_eq!(reusable.get(&file.path), Some(&file.size), "{}", file.path);
        }
    }
    assert!(
        !reusable.keys().any(|path| ["checkpoints.feldera", "state.json", "feldera.pidlock"].contains(&path.as_str()))
    );
}
