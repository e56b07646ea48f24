//! A server with one bucket, and connectors to it.

use std::sync::Arc;

use lockstep_bucket::{AwsConnector, AwsOptions, Connector, ObjectStore, StaticCredentials};
use lockstep_devkit::{S3Options, S3Server};
use lockstep_protocol::location::Location;

pub(crate) async fn server() -> S3Server {
    S3Server::start(S3Options { buckets: vec!["bucket".to_owned()], ..S3Options::default() }).await.unwrap()
}

pub(crate) fn options(endpoint: &str, secret: &str) -> AwsOptions {
    AwsOptions {
        credentials: Some(StaticCredentials {
            access_key_id: "lockstep".to_owned(),
            secret_access_key: secret.to_owned(),
        }),
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        ..AwsOptions::default()
    }
}

pub(crate) async fn connector(endpoint: &str, secret: &str) -> AwsConnector {
    AwsConnector::with(options(endpoint, secret)).await
}

pub(crate) fn location(prefix: &str) -> Location {
    format!("s3://bucket/{prefix}").parse().unwrap()
}

pub(crate) async fn store(server: &S3Server) -> Arc<dyn ObjectStore> {
    connector(&server.endpoint(), "lockstep-secret").await.connect(&location("p")).await.unwrap()
}
