//! A Feldera `sync` block as a pipeline spec: every field is mapped, ignored with a word why, or refused with the way to do it.
//!
//! Fields and defaults are those of Feldera's `SyncConfig`. What Feldera's own sync has written can't be read by Lockstep: it has another layout in the
//! bucket. So the spec gets a prefix of its own beside it, and the pipeline's first push sends everything once.

use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// Appended to Feldera's prefix, so that the two layouts never meet.
const BESIDE: &str = "lockstep";

/// What a `sync` block can't know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Around {
    pub(crate) name: String,
    /// None: solo.
    pub(crate) hosts: Option<u32>,
    pub(crate) agents: Vec<String>,
}

/// A spec, and a line on each field that has no place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Imported {
    pub(crate) spec: Value,
    pub(crate) notes: Vec<String>,
}

/// Fields that belong to how rclone moves files.
const OF_RCLONE: [(&str, &str); 9] = [
    ("provider", "the store is probed for what it does, whoever made it"),
    ("checkers", "there is nothing to list before a transfer"),
    ("transfers", "set transfer.concurrency in the spec if 16 requests at once are not right"),
    ("upload_concurrency", "set transfer.concurrency in the spec if 16 requests at once are not right"),
    ("multi_thread_streams", "large files always move in pieces, side by side"),
    ("multi_thread_cutoff", "large files always move in pieces; set transfer.part_size for their size"),
    ("ignore_checksum", "every byte is verified; there is no way to leave that out"),
    ("optimize_download_resources", "transfers run on threads of low priority with bounded memory"),
    ("flags", "rclone is not used; encryption and storage class are the bucket's settings"),
];

/// Takes a block as it stands in a pipeline's configuration, or anything around it down to `storage.backend.config.sync`.
pub(crate) fn import(document: &Value, around: &Around) -> Result<Imported, Failure> {
    let sync = find(document).ok_or_else(|| {
        Failure::local(
            "SPEC_INVALID",
            "there is no sync block: give storage.backend.config.sync of the pipeline, or what is around it",
        )
        .with("field", "sync")
    })?;
    refuse(sync)?;
    let mut block = Block { fields: sync.clone(), notes: Vec::new() };
    let location = block.location()?;
    let mut spec = json!({"name": around.name, "agents": agents(around), "location": location});
    match around.hosts {
        Some(hosts) => spec["hosts"] = json!(hosts),
        None => spec["solo"] = json!(true),
    }
    if let Some(read) = block.text("read_bucket")? {
        let (bucket, prefix) = split(&read);
        spec["read_location"] = beside(location.clone(), bucket, prefix.to_owned());
        block.note(
            "read_bucket",
            "becomes read_location as it stands: it must hold checkpoints that Lockstep has pushed, not Feldera's own",
        );
    }
    spec["start"] = json!({"from": "latest", "fail_if_none": block.flag("fail_if_no_checkpoint")?});
    block.start_from()?;
    if let Some(seconds) = block.number("push_interval")? {
        spec["push_interval"] = json!(format!("{seconds}s"));
    }
    if let Some(seconds) = block.number("pull_interval")? {
        spec["pull_interval"] = json!(format!("{seconds}s"));
        block.note("pull_interval", "counts while the pipeline is a standby (initial: standby)");
    }
    // Feldera's defaults hold where one of the two is missing.
    let (count, days) = (block.number("retention_min_count")?, block.number("retention_min_age")?);
    if count.is_some() || days.is_some() {
        spec["retention"] = json!({"min_count": count.unwrap_or(10), "min_age": format!("{}d", days.unwrap_or(30))});
    }
    // Set to nothing, or refused above.
    for field in ["access_key", "secret_key", "standby"] {
        block.take(field);
    }
    for (field, why) in OF_RCLONE {
        if block.take(field).is_some() {
            block.note(field, &format!("ignored: {why}"));
        }
    }
    if let Some(field) = block.fields.keys().next() {
        return Err(Failure::local(
            "SPEC_INVALID",
            format!("sync.{field} is no field of Feldera's sync that this version knows: remove it, or tell us of it"),
        )
        .with("field", format!("sync.{field}")));
    }
    Ok(Imported { spec, notes: block.notes })
}

fn find(document: &Value) -> Option<&Map<String, Value>> {
    let mut at = document;
    for name in ["runtime_config", "storage", "backend", "config", "sync"] {
        at = at.get(name).unwrap_or(at);
    }
    at.as_object().filter(|fields| fields.contains_key("bucket"))
}

/// All that is refused, at once.
fn refuse(sync: &Map<String, Value>) -> Result<(), Failure> {
    let set = |field: &str| sync.get(field).is_some_and(|value| !value.is_null() && value != "");
    if set("standby") {
        let problem = lockstep_protocol::spec::standby_field_removed(&sync["standby"]);
        return Err(Failure::from(problem).with("field", "sync.standby"));
    }
    let keys: Vec<&str> = ["access_key", "secret_key"].into_iter().filter(|field| set(field)).collect();
    if keys.is_empty() {
        return Ok(());
    }
    Err(Failure::local(
        "SPEC_INVALID",
        format!(
            "sync has {} in clear: a spec never holds credentials. Remove them, and give them to the agents and the coordinator by the standard AWS \
             chain (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY from a secret, a profile, or an IAM role)",
            keys.join(" and ")
        ),
    )
    .with("field", keys.iter().map(|key| format!("sync.{key}")).collect::<Vec<_>>().join(", ")))
}

fn agents(around: &Around) -> Value {
    match around.agents.as_slice() {
        [one] => json!(one),
        list => json!(list),
    }
}

fn split(bucket: &str) -> (&str, &str) {
    bucket.split_once('/').map_or((bucket, ""), |(bucket, prefix)| (bucket, prefix.trim_matches('/')))
}

fn beside(mut location: Value, bucket: &str, prefix: String) -> Value {
    location["bucket"] = json!(bucket);
    location["prefix"] = json!(prefix);
    location
}

/// What of the block has no place yet.
struct Block {
    fields: Map<String, Value>,
    notes: Vec<String>,
}

impl Block {
    fn note(&mut self, field: &str, what: &str) {
        self.notes.push(format!("{field}: {what}"));
    }

    fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    fn text(&mut self, field: &str) -> Result<Option<String>, Failure> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(field, &other, "a text")),
        }
    }

    fn number(&mut self, field: &str) -> Result<Option<u64>, Failure> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(field, &value, "a whole number")),
        }
    }

    fn flag(&mut self, field: &str) -> Result<bool, Failure> {
        match self.take(field) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(field, &value, "true or false")),
        }
    }

    fn location(&mut self) -> Result<Value, Failure> {
        let bucket = self.text("bucket")?.unwrap_or_default();
        let (endpoint, region) = (self.text("endpoint")?, self.text("region")?);
        let (bucket, prefix) = split(&bucket);
        let prefix = if prefix.is_empty() { BESIDE.to_owned() } else { format!("{prefix}/{BESIDE}") };
        self.notes.push(format!(
            "bucket: the location's prefix is {prefix}, beside what Feldera's own sync has written; the first push sends everything once"
        ));
        // Without one rclone takes the same region.
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        // A host of one's own has no DNS names for its buckets.
        let path_style = endpoint.is_some();
        let location = json!({"region": region, "endpoint": endpoint, "force_path_style": path_style});
        Ok(beside(location, bucket, prefix))
    }

    fn start_from(&mut self) -> Result<(), Failure> {
        match self.text("start_from_checkpoint")?.as_deref() {
            Some("latest") => {}
            None => self.note(
                "start_from_checkpoint",
                "not set: Feldera would not restore at its start. Lockstep pulls when it is told to (`lockstep pull`)",
            ),
            Some(uuid) => self.note(
                "start_from_checkpoint",
                &format!("{uuid} names a checkpoint in Feldera's own layout, which can't be pulled: start from latest, or from one that Lockstep has pushed"),
            ),
        }
        Ok(())
    }
}

fn wrong(field: &str, value: &Value, what: &str) -> Failure {
    Failure::local("SPEC_INVALID", format!("sync.{field} {value} is not {what}"))
        .with("field", format!("sync.{field}"))
        .with("value", value)
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::spec::PipelineSpec;

    use super::*;

    fn around() -> Around {
        Around { name: "orders".to_owned(), hosts: Some(3), agents: vec!["http://orders-{host}:7402".to_owned()] }
    }

    fn full() -> Value {
        json!({
            "endpoint": "http://minio:9000", "bucket": "acme/ckpt/orders", "region": "eu-west-1", "provider": "Minio",
            "access_key": null, "secret_key": "", "start_from_checkpoint": "latest", "fail_if_no_checkpoint": true,
            "transfers": 20, "checkers": 20, "ignore_checksum": false, "multi_thread_streams": 10,
            "multi_thread_cutoff": "100M", "upload_concurrency": 10, "pull_interval": 10, "push_interval": 120,
            "flags": ["--s3-no-check-bucket"], "retention_min_count": 7, "retention_min_age": 14,
            "read_bucket": "seed/orders", "optimize_download_resources": true,
        })
    }

    #[test]
    fn every_field_is_mapped_or_ignored_with_a_word_and_the_result_is_a_valid_spec() {
        let imported = import(&full(), &around()).unwrap();
        let spec = PipelineSpec::from_value(imported.spec).unwrap();
        // As it is printed, it is read again.
        let printed: Value = serde_saphyr::from_str(&crate::view::spec_lines(&spec.to_value())).unwrap();
        assert_eq!(PipelineSpec::from_value(printed).unwrap(), spec);
        assert_eq!(spec.location.bucket(), "acme");
        assert_eq!(spec.location.prefix(), "ckpt/orders/lockstep");
        assert_eq!(spec.location.endpoint(), Some("http://minio:9000"));
        assert!(spec.location.force_path_style());
        assert_eq!(spec.read_location.unwrap().bucket(), "seed");
        assert!(spec.start.fail_if_none);
        let seconds = |interval: Option<std::time::Duration>| interval.unwrap().as_secs();
        assert_eq!((seconds(spec.push_interval), seconds(spec.pull_interval)), (120, 10));
        let retention = spec.retention.unwrap();
        assert_eq!((retention.min_count, retention.min_age.as_secs()), (7, 14 * 86_400));
        for field in OF_RCLONE.map(|(field, _)| field).iter().chain(&["bucket", "read_bucket", "pull_interval"]) {
            assert!(imported.notes.iter().any(|note| note.starts_with(&format!("{field}:"))), "{field} has no note");
        }
    }

    #[test]
    fn the_block_is_found_wherever_it_is_cut_out() {
        let sync = json!({"bucket": "acme"});
        let backend = json!({"name": "file", "config": {"sync": sync}});
        let whole = json!({"runtime_config": {"workers": 8, "storage": {"backend": backend}}});
        for document in [&sync, &backend, &json!({"storage": {"backend": backend}}), &whole] {
            let imported = import(document, &around()).unwrap();
            assert_eq!(imported.spec["location"]["bucket"], "acme", "{document}");
            assert_eq!(imported.spec["location"]["prefix"], "lockstep");
            assert_eq!(imported.spec["location"]["force_path_style"], false);
            PipelineSpec::from_value(imported.spec).unwrap();
        }
        let solo = Around { hosts: None, agents: vec!["http://a:7402".to_owned()], ..around() };
        assert_eq!(import(&sync, &solo).unwrap().spec["solo"], true);
        assert_eq!(import(&json!({"storage": {}}), &solo).unwrap_err().metadata["field"], "sync");
    }

    #[test]
    fn what_can_not_be_kept_is_refused_with_the_way_to_do_it() {
        for standby in [true, false] {
            let failure = import(&json!({"bucket": "acme", "standby": standby}), &around()).unwrap_err();
            assert_eq!(failure.reason, "STANDBY_FIELD_REMOVED");
            assert!(failure.message.contains("initial: standby"), "{failure}");
        }
        let clear = json!({"bucket": "acme", "access_key": "AKIAWHATEVER", "secret_key": "hush-hush"});
        let failure = import(&clear, &around()).unwrap_err();
        let shown = failure.to_string();
        assert_eq!(failure.metadata["field"], "sync.access_key, sync.secret_key");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY"), "{shown}");
        assert!(!shown.contains("hush-hush") && !shown.contains("AKIAWHATEVER"), "{shown}");
        for (field, value) in [
            ("push_interval", json!("2m")),
            ("bucket", json!(7)),
            ("shiny", json!(1)),
            ("fail_if_no_checkpoint", json!("no")),
        ] {
            let mut sync = json!({"bucket": "acme"});
            sync[field] = value;
            let failure = import(&sync, &around()).unwrap_err();
            assert_eq!(failure.metadata["field"], format!("sync.{field}"), "{failure}");
        }
    }
}
