//! The servers, each started once in this process, and what a test gets of one.

use std::{
    env, fmt,
    future::Future,
    io::Write as _,
    sync::{Arc, LazyLock},
};

use lockstep_bucket::{AwsConnector, AwsOptions, Connector as _, ObjectStore, StaticCredentials};
use lockstep_devkit::{RequestRecord, S3Options, S3Server};
use lockstep_integration_tests::servers::{Account, Moto, NotInstalled, Radosgw, client, scratch::Scratch};
use lockstep_protocol::location::Location;
use tokio::{runtime::Runtime, sync::OnceCell};

pub(crate) const BUCKET: &str = "conformance";

pub(crate) const ACCOUNT: Account<'static> =
    Account { key: "LOCKSTEPCONFORMANCE", secret: "lockstep-conformance-secret" };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Embedded,
    Moto,
    Radosgw,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "the embedded server",
            Self::Moto => "moto",
            Self::Radosgw => "radosgw",
        })
    }
}

/// What a test works with: a server, and a prefix of its own there.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) kind: Kind,
    pub(crate) connector: AwsConnector,
    server: Arc<Server>,
    prefix: &'static str,
}

impl Ground {
    pub(crate) fn location(&self) -> Location {
        format!("s3://{BUCKET}/{}", self.prefix).parse().unwrap()
    }

    pub(crate) async fn store(&self) -> Arc<dyn ObjectStore> {
        self.connector.connect(&self.location()).await.unwrap()
    }

    /// The same server, asked by somebody else.
    pub(crate) async fn asked_by(&self, key: &str, secret: &str) -> AwsConnector {
        connector(self.server.endpoint(), Account { key, secret }).await
    }

    pub(crate) async fn asked_with_wrong_secret(&self) -> AwsConnector {
        self.asked_by(ACCOUNT.key, "another-secret").await
    }

    /// For requests that the seam never makes.
    pub(crate) fn client(&self) -> aws_sdk_s3::Client {
        client(self.server.endpoint(), ACCOUNT)
    }

    /// The full key for such a request.
    pub(crate) fn full_key(&self, key: &str) -> String {
        self.location().full_key(key)
    }
}

#[derive(Debug)]
enum Server {
    Embedded { server: S3Server, endpoint: String, _scratch: Scratch },
    Moto(Moto),
    Radosgw(Radosgw),
}

impl Server {
    async fn start(kind: Kind) -> Result<Self, NotInstalled> {
        Ok(match kind {
            Kind::Embedded => {
                let scratch = Scratch::new("embedded");
                let options = S3Options {
                    root: Some(scratch.path().join("s3")),
                    buckets: vec![BUCKET.to_owned()],
                    credentials: vec![(ACCOUNT.key.to_owned(), ACCOUNT.secret.to_owned())],
                    ..S3Options::default()
                };
                let server = S3Server::start(options).await.unwrap();
                let endpoint = server.endpoint();
                Self::Embedded { server, endpoint, _scratch: scratch }
            }
            Kind::Moto => Self::Moto(Moto::start(&Moto::find()?, ACCOUNT, BUCKET).await),
            Kind::Radosgw => Self::Radosgw(Radosgw::start(&Radosgw::find()?, ACCOUNT, BUCKET).await),
        })
    }

    fn endpoint(&self) -> &str {
        match self {
            Self::Embedded { endpoint, .. } => endpoint,
            Self::Moto(moto) => moto.endpoint(),
            Self::Radosgw(radosgw) => radosgw.endpoint(),
        }
    }

    fn log(&self) -> String {
        match self {
            Self::Embedded { server, .. } => {
                let requests = server.requests();
                let last = &requests[requests.len().saturating_sub(15)..];
                let line = |r: &RequestRecord| format!("{} {:?} {:?}\n", r.operation, r.key, r.status);
                last.iter().map(line).collect()
            }
            Self::Moto(moto) => moto.log(),
            Self::Radosgw(radosgw) => radosgw.log(),
        }
    }
}

async fn connector(endpoint: &str, account: Account<'_>) -> AwsConnector {
    AwsConnector::with(AwsOptions {
        credentials: Some(StaticCredentials {
            access_key_id: account.key.to_owned(),
            secret_access_key: account.secret.to_owned(),
        }),
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        ..AwsOptions::default()
    })
    .await
}

type Started = Result<(Arc<Server>, AwsConnector), NotInstalled>;

/// One for all tests: connections of a client die with the runtime that opened them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

static SERVERS: [OnceCell<Started>; 3] = [OnceCell::const_new(), OnceCell::const_new(), OnceCell::const_new()];

async fn server(kind: Kind) -> &'static Started {
    SERVERS[kind as usize]
        .get_or_init(|| async move {
            let started = Server::start(kind).await;
            match &started {
                Err(missing) if env::var("LOCKSTEP_CONFORMANCE").is_ok_and(|which| which == "all") => {
                    panic!("{missing}; LOCKSTEP_CONFORMANCE=all wants it");
                }
                // Written past the capture of tests' output: nobody should believe that these tests ran.
                Err(missing) => {
                    let said = format!("skipped: all conformance tests on {kind}: {missing}\n");
                    std::io::stderr().write_all(said.as_bytes()).unwrap();
                }
                Ok(_) => {}
            }
            let server = Arc::new(started?);
            let connector = connector(server.endpoint(), ACCOUNT).await;
            Ok((server, connector))
        })
        .await
}

/// Shows what the server said if the test fails.
struct ShowLog(Arc<Server>);

impl Drop for ShowLog {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.log());
        }
    }
}

/// Runs a test on a server, if that is installed.
pub(crate) fn on<F: Future<Output = ()>>(kind: Kind, prefix: &'static str, test: impl FnOnce(Ground) -> F) {
    RUNTIME.block_on(async {
        let Ok((server, connector)) = server(kind).await else { return };
        let _log = ShowLog(Arc::clone(server));
        Box::pin(test(Ground { kind, connector: connector.clone(), server: Arc::clone(server), prefix })).await;
    });
}
