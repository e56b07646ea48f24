//! `lockstep probe`.

use clap::Args;
use lockstep_bucket::{AwsConnector, ProbeReport, probe};
use lockstep_protocol::location::Location;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::Format;
use crate::text;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Probe {
    /// s3://bucket/prefix, with ?endpoint=URL&region=REGION&path_style=true as needed.
    #[arg(value_name = "LOCATION")]
    location: String,
}

const AFTER_HELP: &str = "\
Writes and reads some objects below the prefix: that a create-only write is refused when the key exists, that of several at once
one wins, that what was written is read and listed right away. Coordinators try the same before they first use a location.

Credentials come from the standard AWS chain of this shell (environment, profile, IRSA, IMDS).

Examples:
  lockstep probe s3://acme-ckpt/orders
  AWS_PROFILE=ceph lockstep probe 's3://ckpt/orders?endpoint=http://rgw.local:7480&region=default&path_style=true'";

pub(crate) async fn run(format: Format, args: Probe) -> Result<(), Failure> {
    let location: Location = args.location.parse()?;
    let store = AwsConnector::from_env().await.open(&location)?;
    let report = Box::pin(probe(store.as_ref())).await?;
    format.give(|| document(&location, &report), || table(&location, &report));
    Ok(())
}

fn document(location: &Location, report: &ProbeReport) -> Value {
    let checks: Vec<Value> =
        report.checks.iter().map(|check| json!({"check": check.name, "found": check.did})).collect();
    json!({
        "location": location.to_string(),
        "suitable": true,
        "checks": checks,
        "may_delete": report.may_delete,
        "left": report.left,
    })
}

fn table(location: &Location, report: &ProbeReport) -> String {
    let rows = report.checks.iter().map(|check| [check.name.to_owned(), check.did.clone()]);
    let mut shown = text::table(["CHECK", "FOUND"], rows);
    shown.push_str(&format!("\n\n{location} can hold checkpoints"));
    if !report.may_delete {
        shown.push_str("\nthis shell may not delete there: agents need not, a coordinator's garbage collection must");
    }
    if !report.left.is_empty() {
        shown.push_str(&format!("\nleft behind, for somebody who may delete: {}", report.left.join(", ")));
    }
    shown
}
