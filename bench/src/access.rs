//! Who may use the S3 server of a measurement: an access key each, so that requests are counted for each.

/// The one region.
pub const REGION: &str = "us-east-1";

/// Secret of an access key.
pub fn secret(key: &str) -> String {
    format!("{key}-secret")
}

/// What a process needs in its environment to come with this key, and with nothing else that lies on this machine.
pub fn environment(key: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ACCESS_KEY_ID", key.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", secret(key)),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
    ]
}
