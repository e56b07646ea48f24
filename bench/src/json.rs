//! The medians for programs: one array.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::sample::Medians;

/// A file that could be made before anything was measured: half an hour is not lost to a wrong path.
#[derive(Debug)]
pub(crate) struct Sink {
    path: PathBuf,
    file: File,
}

impl Sink {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("--json {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(crate) fn write(mut self, medians: &[Medians]) -> Result<()> {
        writeln!(self.file, "{:#}", document(medians)).with_context(|| self.path.display().to_string())
    }
}

fn document(medians: &[Medians]) -> Value {
    medians.iter().map(entry).collect()
}

fn entry(medians: &Medians) -> Value {
    let Medians { case, sample, runs, wall_range } = medians;
    json!({
        "data_set": case.data_set.name(),
        "operation": case.operation,
        "tool": case.tool,
        "added_latency_ms": case.added_latency_ms,
        "wall_s": sample.cost.wall_s,
        "wall_s_least": wall_range.0,
        "wall_s_most": wall_range.1,
        "cpu_s": sample.cost.cpu_s,
        "peak_rss_mib": mib(sample.cost.peak_rss),
        "requests": sample.requests,
        "put_requests": sample.put_requests,
        "coordinator_requests": sample.coordinator_requests,
        "bytes_sent": sample.bytes_sent,
        "bytes_received": sample.bytes_received,
        "bytes_changed": sample.bytes_needed,
        "server_cpu_s": sample.server_cpu_s,
        "coordinator_cpu_s": sample.coordinator_cpu_s,
        "runs": runs,
    })
}

/// For figures that people read: sizes are far below what a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "exact below 8 PiB")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{DataSet, Operation, Tool};
    use crate::sample::Results;
    use crate::sample::tests::{case, sample};

    #[test]
    fn an_entry_has_the_agreed_fields() {
        let mut results = Results::default();
        results.add(case(DataSet::B, Operation::Nothing, Tool::S5cmd16), sample(2.0));
        let document = document(&results.medians());
        let entry = &document[0];
        assert_eq!(document.as_array().unwrap().len(), 1);
        for (field, value) in [
            ("data_set", json!("B")),
            ("operation", json!("nothing")),
            ("tool", json!("s5cmd-16")),
            ("added_latency_ms", json!(0)),
            ("wall_s", json!(2.0)),
            ("cpu_s", json!(1.0)),
            ("peak_rss_mib", json!(64.0)),
            ("requests", json!(5)),
            ("bytes_sent", json!(1_000)),
            ("bytes_received", json!(2_000)),
            ("runs", json!(1)),
        ] {
            assert_eq!(entry[field], value, "{field}");
        }
    }

    #[test]
    fn a_path_that_cant_be_written_is_named_at_once() {
        let error = Sink::create(Path::new("/nowhere/figures.json")).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/figures.json"), "{error:#}");
    }
}
