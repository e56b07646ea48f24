//! Credentials, regions and endpoints: from the location, else from the environment and profile of this process.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableRegionProvider,
    meta::region::ProvideRegion as _, profile::ProfileFileRegionProvider, retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_sdk_s3::{
    Client,
    config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient},
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use lockstep_protocol::{
    location::Location,
    problem::{Problem, Reason},
};

use super::{AwsStore, request::SendTrace};
use crate::store::{Connector, ObjectStore};

/// Where a custom endpoint doesn't care and nobody names one.
const ANY_REGION: &str = "us-east-1";

const CONNECT: Duration = Duration::from_secs(5);

const STALL: Duration = Duration::from_secs(30);

/// Credentials that are given, not found by the chain: for `lockstep dev`, demo and tests.
#[derive(Clone)]
pub struct StaticCredentials {
    /// Names who asks.
    pub access_key_id: String,
    /// Never shown.
    pub secret_access_key: String,
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticCredentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// What replaces the environment's values.
#[derive(Clone, Debug)]
pub struct AwsOptions {
    /// None: the standard AWS chain (environment, profile, IRSA, ECS, IMDS).
    pub credentials: Option<StaticCredentials>,
    /// For locations without one. None: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, profile, else AWS.
    pub endpoint: Option<String>,
    /// For locations without one. None: `AWS_REGION`, `AWS_DEFAULT_REGION`, profile. IMDS is never asked for it.
    pub region: Option<String>,
    /// The longest silence: a transfer is given up once no byte has moved for this long, a request once it is not answered for this long.
    pub stall: Duration,
}

impl Default for AwsOptions {
    fn default() -> Self {
        Self { credentials: None, endpoint: None, region: None, stall: STALL }
    }
}

#[derive(PartialEq, Eq, Hash, Debug, Clone)]
struct ClientKey {
    endpoint: Option<String>,
    region: String,
    path_style: bool,
}

/// Opens locations over the AWS SDK. Cheap to clone; clones share clients, connections and cached credentials.
#[derive(Debug, Clone)]
pub struct AwsConnector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sdk: SdkConfig,
    endpoint: Option<String>,
    region: Option<String>,
    stall: Duration,
    clients: Mutex<HashMap<ClientKey, Client>>,
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl AwsConnector {
    /// As the environment and profile of this process say. Makes no request: credentials are fetched when they are first needed.
    pub async fn from_env() -> Self {
        Self::with(AwsOptions::default()).await
    }

    /// With some values given.
    pub async fn with(options: AwsOptions) -> Self {
        let http: SharedHttpClient = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let region = match options.region {
            Some(region) => Some(region),
            None => match EnvironmentVariableRegionProvider::new().region().await {
                Some(region) => Some(region.to_string()),
                None => ProfileFileRegionProvider::new().region().await.map(|region| region.to_string()),
            },
        };
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            // Set in any case: without a region the chain would ask IMDS for one. STS (IRSA) uses it too.
            .region(Region::new(region.clone().unwrap_or_else(|| ANY_REGION.to_owned())));
        if let Some(given) = options.credentials {
            loader = loader.credentials_provider(Credentials::new(
                given.access_key_id,
                given.secret_access_key,
                None,
                None,
                "lockstep",
            ));
        }
        let sdk = loader.load().await;
        let endpoint =
            options.endpoint.or_else(|| env("AWS_ENDPOINT_URL_S3")).or_else(|| sdk.endpoint_url().map(str::to_owned));
        Self(Arc::new(Inner { sdk, endpoint, region, stall: options.stall, clients: Mutex::default() }))
    }

    /// As `connect`, for those who have an `AwsConnector`.
    pub fn open(&self, location: &Location) -> Result<Arc<dyn ObjectStore>, Problem> {
        let endpoint = location.endpoint().map(str::to_owned).or_else(|| self.0.endpoint.clone());
        let region = location.region().map(str::to_owned).or_else(|| self.0.region.clone());
        let region = match (region, &endpoint) {
            (Some(region), _) => region,
            (None, Some(_)) => ANY_REGION.to_owned(),
            (None, None) => {
                return Err(Problem::new(
                    Reason::SpecInvalid,
                    format!(
                        "{location} has no region: name it in the location (region=...), in AWS_REGION or in the AWS profile of this process"
                    ),
                )
                .with("field", "region")
                .with("location", location));
            }
        };
        let path_style = location.force_path_style() || endpoint.is_some();
        let client = self.client(ClientKey { endpoint, region, path_style });
        Ok(Arc::new(AwsStore::new(client, location.clone(), self.0.stall)))
    }

    fn client(&self, key: ClientKey) -> Client {
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return client.clone();
        }
        let mut config = aws_sdk_s3::config::Builder::from(&self.0.sdk);
        config.set_endpoint_url(key.endpoint.clone());
        let config = config
            .region(Region::new(key.region.clone()))
            .force_path_style(key.path_style)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // Else the SDK sends signed aws-chunked trailers, which garage and ceph refuse and rclone stores as data.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .interceptor(SendTrace)
            .build();
        let client = Client::from_conf(config);
        clients.insert(key, client.clone());
        client
    }
}

#[async_trait]
impl Connector for AwsConnector {
    async fn connect(&self, location: &Location) -> Result<Arc<dyn ObjectStore>, Problem> {
        self.open(location)
    }

    fn default_endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }
}
