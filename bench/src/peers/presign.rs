//! URLs that need no signature from who uses them: what is left is the copying itself.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::presigning::PresigningConfig;

use super::Move;
use crate::server::BUCKET;
use lockstep_bench::access::{REGION, secret};

/// Longer than any run.
const VALID: Duration = Duration::from_secs(3600);

/// A configuration file for curl: one transfer for each file.
pub(super) async fn curl_config(up: bool, what: &Move<'_>, local: &Path, key: &str) -> Result<String> {
    let client = aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(what.endpoint)
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .credentials_provider(Credentials::new(key, secret(key), None, None, "bench"))
            .build(),
    );
    let mut text = String::new();
    for path in what.tree.files.keys() {
        let object = format!("{}/{path}", what.prefix);
        let valid = PresigningConfig::expires_in(VALID)?;
        let signed = if up {
            client.put_object().bucket(BUCKET).key(object).presigned(valid).await?
        } else {
            client.get_object().bucket(BUCKET).key(object).presigned(valid).await?
        };
        let place = local.join(path);
        let place = place.to_str().with_context(|| format!("{} is not UTF-8", place.display()))?;
        if place.contains(['"', '\\']) {
            bail!("{place} has a quote or backslash, which curl's configuration would need escaped");
        }
        let option = if up { "upload-file" } else { "output" };
        writeln!(text, "url = \"{}\"\n{option} = \"{place}\"", signed.uri())?;
    }
    Ok(text)
}
