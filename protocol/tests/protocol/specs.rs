use lockstep_protocol::{problem::Reason, spec::PipelineSpec, unit};
use proptest::prelude::*;
use serde_json::{Value, json};

fn good() -> Value {
    json!({
        "name": "orders",
        "hosts": 3,
        "agents": "http://orders-{host}.orders:7402",
        "location": {"bucket": "acme-ckpt", "prefix": "orders", "region": "eu-west-1", "endpoint": null, "force_path_style": false},
        "read_location": null,
        "start": {"from": "latest", "fail_if_none": false},
        "push_interval": "2m",
        "pull_interval": "10s",
        "retention": {"min_count": 10, "min_age": "30d"},
        "transfer": {"concurrency": 16, "part_size": "16MiB", "memory": "64MiB", "bandwidth_limit": null},
    })
}

#[test]
fn the_spec_of_the_interface_page_is_read_and_printed_back() {
    let spec = PipelineSpec::from_value(good()).unwrap();
    assert_eq!(spec.agents.of(2), "http://orders-2.orders:7402");
    assert_eq!(spec.transfer.part_size, 16 << 20);
    assert_eq!(PipelineSpec::from_value(spec.to_value()).unwrap(), spec);
}

#[test]
fn bad_specs_are_refused_with_field_and_value() {
    type Edit = fn(&mut Value);
    let cases: Vec<(&str, Edit)> = vec![
        ("unknown field `color`", |v| v["color"] = json!("red")),
        ("unknown field `buckets`", |v| v["location"]["buckets"] = json!("x")),
        ("no unit", |v| v["push_interval"] = json!("120")),
        ("no duration", |v| v["push_interval"] = json!("2 fortnights")),
        ("no unit", |v| v["transfer"]["part_size"] = json!("16")),
        ("no size", |v| v["transfer"]["part_size"] = json!("16 bananas")),
        ("not between 5MiB and 1GiB", |v| v["transfer"]["part_size"] = json!("1MiB")),
        ("below transfer.part_size", |v| v["transfer"]["memory"] = json!("6MiB")),
        ("not between 1 and 256", |v| v["transfer"]["concurrency"] = json!(0)),
        ("contains a slash", |v| v["location"]["bucket"] = json!("acme/ckpt")),
        ("component . or ..", |v| v["location"]["prefix"] = json!("a/../b")),
        ("no {host}", |v| v["agents"] = json!("http://orders:7402")),
        ("has 2 addresses", |v| v["agents"] = json!(["http://a:1", "http://b:1"])),
        ("is not http://host:port", |v| v["agents"] = json!(["http://a:1", "b:1", "http://c:1"])),
        ("is not http://host:port", |v| v["agents"] = json!("http://{host}")),
        ("same place", |v| v["read_location"] = v["location"].clone()),
        ("same place", |v| v["read_location"] = json!({"bucket": "acme-ckpt", "prefix": "orders/old"})),
        ("stands beside", |v| v["solo"] = json!(true)),
        ("neither hosts nor solo", |v| {
            v.as_object_mut().unwrap().remove("hosts");
        }),
        ("neither running nor standby", |v| v["initial"] = json!("paused")),
        ("is none of latest", |v| v["start"]["from"] = json!("newest")),
        ("not known", |v| v["start"]["from"] = json!({"uuid": "x"})),
        ("RFC 3339", |v| v["start"]["from"] = json!({"time": "yesterday"})),
        ("name", |v| v["name"] = json!("Orders!")),
        ("name", |v| v["name"] = json!("")),
        ("missing field", |v| {
            v.as_object_mut().unwrap().remove("location");
        }),
    ];
    for (expected, edit) in cases {
        let mut value = good();
        edit(&mut value);
        let problem = PipelineSpec::from_value(value).expect_err(expected);
        assert_eq!(problem.reason, Reason::SpecInvalid, "{problem}");
        assert!(problem.message.contains(expected), "expected {expected:?} in {problem}");
    }
    let mut no_hosts = good();
    no_hosts["hosts"] = json!(0);
    assert_eq!(PipelineSpec::from_value(no_hosts).expect_err("0 hosts").reason, Reason::HostInfoInvalid);
}

#[test]
fn the_old_standby_flag_is_refused_whatever_its_value() {
    for value in [json!(true), json!(false), json!(null)] {
        let mut spec = good();
        spec["standby"] = value;
        let problem = PipelineSpec::from_value(spec).expect_err("removed");
        assert_eq!(problem.reason, Reason::StandbyFieldRemoved);
        assert!(problem.message.contains("initial: standby"), "{problem}");
    }
}

proptest! {
    #[test]
    fn sizes_are_printed_as_they_are_parsed(bytes in 0..=i64::MAX as u64) {
        prop_assert_eq!(unit::size("x", &unit::show_size(bytes)).unwrap(), bytes);
    }

    #[test]
    fn durations_are_printed_as_they_are_parsed(seconds in 0_u64..10_000_000) {
        let duration = std::time::Duration::from_secs(seconds);
        prop_assert_eq!(unit::duration("x", &unit::show_duration(duration)).unwrap(), duration);
    }

    #[test]
    fn arbitrary_specs_never_panic(name in ".{0,70}", bucket in ".{0,70}", prefix in ".{0,70}", agents in ".{0,40}", interval in ".{0,12}") {
        let mut value = good();
        value["name"] = json!(name);
        value["location"]["bucket"] = json!(bucket);
        value["location"]["prefix"] = json!(prefix);
        value["agents"] = json!(agents);
        value["push_interval"] = json!(interval);
        let _ = PipelineSpec::from_value(value);
    }
}
