//! A coordinator in this process, over its own database on a real Postgres and a real S3 server, called over gRPC.

use std::{sync::Arc, time::Duration};

use lockstep_bucket::{AwsConnector, AwsOptions, Connector, StaticCredentials};
use lockstep_coordinator::{
    agents::{AgentPool, AgentPoolOptions},
    api::{Api, ApiOptions},
    app,
    dispatch::{DispatchOptions, Dispatcher},
    store::{Store, StoreOptions},
};
use lockstep_devkit::{S3Options, S3Server, TestDatabase};
use lockstep_proto::v1::{self, coordinator_client::CoordinatorClient};
use lockstep_rpc::{ChannelOptions, MAX_MESSAGE_BYTES, RpcProblem, TracedChannel, connect_lazy};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

pub(crate) type Client = CoordinatorClient<TracedChannel>;

pub(crate) const BUCKET: &str = "acme-ckpt";

/// Ends with the value: tasks are told to stop, the database goes with the cluster.
pub(crate) struct Coordinator {
    pub(crate) s3: S3Server,
    pub(crate) database: TestDatabase,
    pub(crate) channel: TracedChannel,
    pub(crate) client: Client,
    stopping: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        Self::start_with(ApiOptions::default()).await
    }

    pub(crate) async fn start_with(options: ApiOptions) -> Self {
        // More than one provider is compiled in; whoever comes first installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let database = TestDatabase::create().await.unwrap();
        let s3 = S3Server::start(S3Options { buckets: vec![BUCKET.to_owned()], ..S3Options::default() }).await.unwrap();
        let store = Store::connect(database.url(), StoreOptions { max_connections: 8, ..StoreOptions::default() })
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let connector: Arc<dyn Connector> = Arc::new(
            AwsConnector::with(AwsOptions {
                credentials: Some(StaticCredentials {
                    access_key_id: "lockstep".to_owned(),
                    secret_access_key: "lockstep-secret".to_owned(),
                }),
                endpoint: Some(s3.endpoint()),
                region: Some("us-east-1".to_owned()),
                ..AwsOptions::default()
            })
            .await,
        );
        let agents = AgentPool::new(AgentPoolOptions::default());
        let stopping = CancellationToken::new();
        let api = Api::new(store.clone(), Arc::new(agents.clone()), connector.clone(), options, stopping.clone());
        let server = app::grpc_server(api, Duration::from_secs(4)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let dispatcher = Dispatcher::new(
            store,
            connector,
            agents,
            DispatchOptions { replica: "test".to_owned(), ..DispatchOptions::default() },
        );
        let (serving, driving) = (stopping.clone(), stopping.clone());
        let tasks = vec![
            tokio::spawn(async move { server.serve(listener, serving.cancelled_owned()).await.unwrap() }),
            tokio::spawn(async move {
                dispatcher.run(driving).await;
            }),
        ];
        let channel = connect_lazy(&address, &ChannelOptions::default()).unwrap();
        let client = CoordinatorClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { s3, database, channel, client, stopping, tasks }
    }

    /// Stops as a process would on SIGTERM.
    pub(crate) async fn stop(mut self) {
        self.stopping.cancel();
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
    }

    /// A spec of three hosts whose agents nobody runs.
    pub(crate) fn spec(&self, name: &str) -> v1::PipelineSpec {
        v1::PipelineSpec {
            name: name.to_owned(),
            hosts: 3,
            // Nothing listens on port 9 (discard) of this machine.
            agents: (0..3).map(|host| format!("http://127.0.0.{}:9", host + 1)).collect(),
            location: Some(self.location(name)),
            ..v1::PipelineSpec::default()
        }
    }

    pub(crate) fn location(&self, prefix: &str) -> v1::Location {
        v1::Location {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: self.s3.endpoint(),
            region: "us-east-1".to_owned(),
            force_path_style: true,
        }
    }

    pub(crate) async fn create(&mut self, spec: v1::PipelineSpec) -> Result<v1::Pipeline, RpcProblem> {
        let request = v1::CreatePipelineRequest { spec: Some(spec), ..v1::CreatePipelineRequest::default() };
        self.client.create_pipeline(request).await.map(tonic::Response::into_inner).map_err(RpcProblem::from)
    }

    /// Requests other than reads that reached the store so far.
    pub(crate) fn writes(&self) -> usize {
        self.s3.requests().iter().filter(|request| matches!(request.method.as_str(), "PUT" | "POST" | "DELETE")).count()
    }
}

/// The problem that a call was refused with; every value of its message stands in the metadata.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>, reason: &str) -> RpcProblem {
    let problem = RpcProblem::from(answer.map(tonic::Response::into_inner).unwrap_err());
    assert_eq!(problem.reason, reason, "{problem:?}");
    problem
}

pub(crate) fn as_actor<T>(message: T, actor: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(lockstep_coordinator::api::ACTOR_HEADER, actor.parse().unwrap());
    request
}

pub(crate) fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}
