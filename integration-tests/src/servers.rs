//! Further real S3 servers for the conformance tests: Ceph radosgw and moto, started where they are installed.
//!
//! Each runs as child processes in a folder of its own on free ports of this machine, and goes, folder included, when it is dropped or when
//! this process ends in any way: tests keep servers in statics, which are never dropped.
//!
//! - [`radosgw`]: a Ceph cluster of one monitor, one storage daemon in memory, and the gateway
//! - [`moto`]: a mock of S3 that many test with
//! - [`child`]: processes that end with this one; [`scratch`]: folders that do

pub mod child;
pub mod moto;
pub mod radosgw;
pub mod scratch;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
};
pub use moto::Moto;
pub use radosgw::Radosgw;

/// Who asks, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account<'a> {
    /// Access key id.
    pub key: &'a str,
    /// Secret access key.
    pub secret: &'a str,
}

/// A server that can't be started on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotInstalled {
    /// Which server.
    pub server: &'static str,
    /// The program that was not found.
    pub program: String,
}

impl fmt::Display for NotInstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is not installed: no {} (scripts/ensure-conformance-servers.sh installs it)",
            self.server, self.program
        )
    }
}

/// A bare client of the AWS SDK, for what the seam never asks: buckets to be made, requests that servers answer differently. Never retries.
pub fn client(endpoint: &str, account: Account<'_>) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(Credentials::new(account.key, account.secret, None, None, "test"))
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}

/// Where a program is, by PATH.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
