use lockstep_protocol::{
    host::{HostInfo, Layout},
    id::{Attempt, Generation, Incarnation, RoundId, Seq},
    key::{AttemptPath, Key},
    location::Location,
    problem::Reason,
};
use proptest::prelude::*;
use uuid::Uuid;

fn any_uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn any_attempt_path() -> impl Strategy<Value = AttemptPath> {
    (prop::option::of(0_u32..4096), 0..=i64::MAX as u64, any_uuid(), any_uuid(), 1_u32..).prop_map(
        |(host_idx, generation, round, incarnation, attempt)| AttemptPath {
            host_idx,
            generation: Generation::new(generation).unwrap(),
            round: RoundId::new(round),
            incarnation: Incarnation::new(incarnation),
            attempt: Attempt::new(attempt).unwrap(),
        },
    )
}

fn any_key() -> impl Strategy<Value = Key> {
    let generation = || (0..=i64::MAX as u64).prop_map(|g| Generation::new(g).unwrap());
    let seq = || (0..=i64::MAX as u64).prop_map(|s| Seq::new(s).unwrap());
    prop_oneof![
        Just(Key::Format),
        Just(Key::Head),
        (any_uuid(), any::<u32>()).prop_map(|(id, n)| Key::Probe(id, n)),
        generation().prop_map(Key::Fence),
        generation().prop_map(Key::FenceBase),
        (generation(), seq()).prop_map(|(g, s)| Key::Commit(g, s)),
        (generation(), seq()).prop_map(|(g, s)| Key::Retired(g, s)),
        (generation(), seq()).prop_map(|(g, s)| Key::Damaged(g, s)),
        ("[A-Za-z0-9_-]{1,20}", any_uuid()).prop_map(|(name, id)| Key::Pin(name, id)),
        any_attempt_path().prop_map(Key::PartManifest),
        (any_attempt_path(), any::<u32>()).prop_map(|(path, n)| Key::Data(path, n)),
    ]
}

proptest! {
    #[test]
    fn every_key_is_parsed_back(key in any_key()) {
        prop_assert_eq!(Key::parse(&key.to_string()), Some(key));
    }

    #[test]
    fn what_is_parsed_is_printed_byte_by_byte(text in "(fences|commits|host1|solo|pins|retired)/[-0-9a-f./]{0,60}(json)?") {
        if let Some(key) = Key::parse(&text) {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn two_attempts_never_share_a_key(a in any_attempt_path(), b in any_attempt_path(), n in any::<u32>(), m in any::<u32>()) {
        prop_assume!(a != b);
        prop_assert_ne!(a.data(n).to_string(), b.data(m).to_string());
        prop_assert_ne!(a.manifest().to_string(), b.manifest().to_string());
    }

    #[test]
    fn keys_of_one_process_at_one_round_begin_alike_and_no_others(a in any_attempt_path(), b in any_attempt_path(), attempt in any::<u16>(), n in any::<u32>()) {
        let prefix = a.all_of_process();
        let later = AttemptPath { attempt: Attempt::new(u32::from(attempt) + 1).unwrap(), ..a };
        prop_assert!(later.data(n).to_string().starts_with(&prefix));
        let same = (a.host_idx, a.generation, a.round, a.incarnation) == (b.host_idx, b.generation, b.round, b.incarnation);
        prop_assert_eq!(b.data(n).to_string().starts_with(&prefix), same);
    }

    #[test]
    fn commit_keys_sort_like_their_numbers(a in (0..=i64::MAX as u64, 0..=i64::MAX as u64), b in (0..=i64::MAX as u64, 0..=i64::MAX as u64)) {
        let key = |(g, s)| Key::Commit(Generation::new(g).unwrap(), Seq::new(s).unwrap()).to_string();
        prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
    }

    #[test]
    fn a_key_begins_with_what_is_said_of_its_kind(key in any_key()) {
        prop_assert!(key.to_string().starts_with(key.prefix()), "{} of {key}", key.prefix());
        let folder = matches!(key, Key::Format | Key::Head) || key.prefix() == Key::HOSTS || key.prefix().ends_with('/');
        prop_assert!(folder, "{} of {key}", key.prefix());
    }

    #[test]
    fn a_listing_from_a_place_on_has_it_and_nothing_before_it(a in (0..=i64::MAX as u64, 0..=i64::MAX as u64), b in (0..=i64::MAX as u64, 0..=i64::MAX as u64)) {
        for kind in [Key::Commit, Key::Retired, Key::Damaged] {
            let key = |(g, s)| kind(Generation::new(g).unwrap(), Seq::new(s).unwrap());
            let after = key(a).list_after().unwrap();
            prop_assert!(after.starts_with(key(a).prefix()) && after < key(a).to_string());
            prop_assert_eq!(after < key(b).to_string(), a <= b);
        }
        let (generation, other) = (Generation::new(a.0).unwrap(), Generation::new(b.0).unwrap());
        let after = Key::Fence(generation).list_after().unwrap();
        for key in [Key::FenceBase(other), Key::Fence(other)] {
            prop_assert_eq!(after < key.to_string(), generation <= other, "{} after {}", key, after);
        }
    }

    #[test]
    fn only_documents_are_listed_from(key in any_key()) {
        let data = matches!(key, Key::Data(..) | Key::Probe(..));
        prop_assert_eq!(key.list_after().is_none(), data, "{}", key);
    }

    #[test]
    fn host_info_refuses_exactly_what_is_malformed(host_idx in any::<u32>(), n_hosts in any::<u32>()) {
        let good = n_hosts > 0 && n_hosts <= 4096 && host_idx < n_hosts;
        match HostInfo::new(host_idx, n_hosts) {
            Ok(info) => prop_assert!(good && info.host_idx() == host_idx && info.n_hosts() == n_hosts),
            Err(problem) => {
                prop_assert!(!good);
                prop_assert_eq!(problem.reason, Reason::HostInfoInvalid);
                prop_assert_eq!(&problem.metadata["host_idx"], &host_idx.to_string());
                prop_assert_eq!(&problem.metadata["n_hosts"], &n_hosts.to_string());
            }
        }
    }
}

#[test]
fn host_1_is_no_prefix_of_host_10() {
    let layout = Layout::hosts(11).unwrap();
    let prefixes: Vec<String> = layout.slots().map(|slot| slot.prefix()).collect();
    for (i, a) in prefixes.iter().enumerate() {
        for (j, b) in prefixes.iter().enumerate() {
            assert!(i == j || !b.starts_with(a.as_str()), "{a} is a prefix of {b}");
        }
    }
    assert_eq!(Layout::Solo.slot(0).unwrap().prefix(), "solo/");
}

#[test]
fn other_spellings_of_a_key_are_no_keys() {
    let good = "commits/00000000000000000001-00000000000000000002.json";
    assert!(Key::parse(good).is_some());
    for bad in [
        "commits/1-2.json",
        "commits/+0000000000000000001-00000000000000000002.json",
        "commits/00000000000000000001-00000000000000000002.json ",
        "commits/99999999999999999999-00000000000000000002.json",
        "fences/00000000000000000001.base.base.json",
        "host01/1/00000000-0000-0000-0000-000000000001/00000000-0000-0000-0000-000000000002-1/part.json",
        "host1/1/00000000-0000-0000-0000-000000000001/00000000-0000-0000-0000-000000000002-0/part.json",
        "host1/1/00000000-0000-0000-0000-00000000000A/00000000-0000-0000-0000-000000000002-1/part.json",
        "host1/1/00000000-0000-0000-0000-000000000001/00000000-0000-0000-0000-000000000002-1/../part.json",
        "host9999/1/00000000-0000-0000-0000-000000000001/00000000-0000-0000-0000-000000000002-1/part.json",
        "",
        "/",
    ] {
        assert_eq!(Key::parse(bad), None, "{bad:?} was taken for a key");
    }
}

#[test]
fn locations_refuse_what_s3_or_people_would_stumble_over() {
    for (text, field) in [
        ("s3://acme/ckpt/../other", "prefix"),
        ("s3://acme//ckpt", "prefix"),
        ("s3://acme/./ckpt", "prefix"),
        ("s3://Acme/ckpt", "bucket"),
        ("s3://a/ckpt", "bucket"),
        ("s3://acme/ckpt?endpoint=127.0.0.1:9000", "endpoint"),
        ("s3://acme/ckpt?endpoint=http://127.0.0.1:9000/path", "endpoint"),
        ("s3://acme/ckpt?color=red", "location"),
        ("http://acme/ckpt", "location"),
    ] {
        let problem = text.parse::<Location>().expect_err(text);
        assert_eq!(problem.reason, Reason::SpecInvalid, "{text}");
        assert_eq!(problem.metadata["field"], field, "{text}: {problem}");
    }
    let problem = "s3://acme/x?endpoint=http://key:s3cr3t@127.0.0.1:9000".parse::<Location>().expect_err("credentials");
    assert!(!format!("{problem:?}").contains("s3cr3t"), "{problem:?}");
}

#[test]
fn a_location_is_printed_as_it_is_parsed() {
    for text in
        ["s3://acme", "s3://acme/a/b", "s3://acme/a?endpoint=http://127.0.0.1:9000&region=eu-west-1&path_style=true"]
    {
        assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
    }
}

#[test]
fn same_and_nested_places_overlap_and_neighbours_do_not() {
    let at = |text: &str| text.parse::<Location>().unwrap();
    assert!(at("s3://acme/a").overlaps(&at("s3://acme/a?region=eu-west-1")));
    assert!(at("s3://acme/a").overlaps(&at("s3://acme/a/b")));
    assert!(at("s3://acme/a/b").overlaps(&at("s3://acme/a")));
    assert!(at("s3://acme").overlaps(&at("s3://acme/a")));
    assert!(!at("s3://acme/a").overlaps(&at("s3://acme/ab")));
    assert!(!at("s3://acme/a").overlaps(&at("s3://acme-2/a")));
    assert!(!at("s3://acme/a").overlaps(&at("s3://acme/a?endpoint=http://127.0.0.1:9000")));
}
