//! A server with one bucket, the SDK's client for it, and a client that speaks bare HTTP.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use lockstep_devkit::{S3Options, S3Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const BUCKET: &str = "bucket";

/// A server with [`BUCKET`] and the credentials `lockstep` and `other`.
pub(crate) async fn server() -> S3Server {
    S3Server::start(options()).await.unwrap()
}

pub(crate) fn options() -> S3Options {
    let mut options = S3Options { buckets: vec![BUCKET.to_owned()], ..S3Options::default() };
    options.credentials.push(("other".to_owned(), "other-secret".to_owned()));
    options
}

pub(crate) fn client(server: &S3Server) -> Client {
    client_with(server, "lockstep", "lockstep-secret", RequestChecksumCalculation::WhenRequired)
}

/// As the SDK comes: with a CRC32 on every upload.
pub(crate) fn checking_client(server: &S3Server) -> Client {
    client_with(server, "lockstep", "lockstep-secret", RequestChecksumCalculation::WhenSupported)
}

pub(crate) fn client_as(server: &S3Server, id: &str, secret: &str) -> Client {
    client_with(server, id, secret, RequestChecksumCalculation::WhenRequired)
}

fn client_with(server: &S3Server, id: &str, secret: &str, checksums: RequestChecksumCalculation) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new(id, secret, None, None, "test"))
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .request_checksum_calculation(checksums)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

pub(crate) async fn put(client: &Client, key: &str, body: &[u8]) {
    client.put_object().bucket(BUCKET).key(key).body(body.to_vec().into()).send().await.unwrap();
}

pub(crate) async fn get(client: &Client, key: &str) -> Vec<u8> {
    let output = client.get_object().bucket(BUCKET).key(key).send().await.unwrap();
    output.body.collect().await.unwrap().to_vec()
}

/// The HTTP status and the S3 code of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug, E>(result: Result<T, SdkError<E, HttpResponse>>) -> (u16, String)
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match result.unwrap_err() {
        SdkError::ServiceError(refused) => {
            let code = refused.err().code().unwrap_or_default().to_owned();
            (refused.raw().status().as_u16(), code)
        }
        other => panic!("not an answer: {other:?}"),
    }
}

/// No answer at all.
pub(crate) fn is_unknown<T, E>(result: &Result<T, SdkError<E, HttpResponse>>) -> bool {
    matches!(result, Err(SdkError::DispatchFailure(_) | SdkError::ResponseError(_)))
}

pub(crate) fn presigning() -> PresigningConfig {
    PresigningConfig::expires_in(Duration::from_secs(600)).unwrap()
}

/// Sends the head of a presigned request, with these headers on top, and `body`, which may be shorter than announced.
pub(crate) async fn send_raw(server: &S3Server, request: &PresignedRequest, headers: &str, body: &[u8]) -> TcpStream {
    let path = request.uri().strip_prefix(&server.endpoint()).unwrap();
    let mut head = format!("{} {path} HTTP/1.1\r\nhost: {}\r\n{headers}", request.method(), server.addr());
    for (name, value) in request.headers() {
        if name != "host" && !headers.contains(&format!("{name}:")) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str("\r\n");
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream
}

/// A bare request; the answer's status and body.
pub(crate) async fn plain(server: &S3Server, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        server.addr(),
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Bytes that compress badly and differ everywhere.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
