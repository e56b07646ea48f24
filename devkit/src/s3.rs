//! An S3 server in this process, kept in a directory.
//!
//! A request goes through these modules: `serve` (connection, faults, log) → s3s (signature, XML) → `access`
//! (credentials, denials) → `service` (the operation) → `receive` or `read` (the body) → `store` (what exists).
//! Tests steer it through [`Faults`], [`Denials`], [`RequestLog`] and [`S3Admin`], other processes over HTTP (`control`).
//!
//! What it promises, because a commit rests on it:
//! - a write with `If-None-Match: *` succeeds for exactly one of any number of racing writers, the others get 412;
//! - an object is visible only after its whole body has arrived and every checksum the client sent has been verified;
//! - a bucket exists only if somebody made it; a wrong secret is `SignatureDoesNotMatch`, an unknown key `InvalidAccessKeyId`;
//! - listings show every write that was answered before they began;
//! - a request holds some 3 MiB of memory at most, whatever the size of its object.
//!
//! Path-style addresses only, one region, no versions, no ACLs, no copies on the server side.

mod access;
mod admin;
mod body;
mod checksum;
mod control;
mod convert;
mod faults;
mod operation;
mod percent;
mod read;
mod receive;
mod requests;
mod serve;
mod service;
mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use s3s::auth::SecretKey;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use access::{Denials, DenyRule};
pub use admin::S3Admin;
pub use faults::{FaultAction, FaultRule, FaultStatus, Faults};
pub use requests::{REMEMBERED, RequestLog, RequestRecord, RequestTotals};
pub use store::StoreError;

use access::Secrets;
use serve::Context;
use service::Operations;
use store::Store;

/// The region to configure clients with.
pub const REGION: &str = service::REGION;

/// How a server is to run.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where objects live and stay; `None` is a temporary directory that goes with the server.
    pub root: Option<PathBuf>,
    /// Made if they don't exist.
    pub buckets: Vec<String>,
    /// Access key id and secret, for each who may come.
    pub credentials: Vec<(String, String)>,
    /// Whether an answered write has been synced to the disk. A killed process loses nothing either way.
    pub sync: bool,
    /// Whether the ETag of every body is its MD5. AWS does so, unless objects are encrypted with keys of KMS; it costs some 1.5 s of CPU a GiB,
    /// most of what a write costs here. Without, only a client that sends `Content-MD5` gets such an ETag, and has it verified: for benchmarks, where
    /// server and client share a machine.
    pub md5_etags: bool,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            root: None,
            buckets: Vec::new(),
            credentials: vec![("lockstep".to_owned(), "lockstep-secret".to_owned())],
            sync: false,
            md5_etags: true,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum S3ServerError {
    /// The address is taken or not ours.
    #[error("can't listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    /// Not a name that S3 would accept.
    #[error("{name:?} is not a bucket name")]
    BucketName { name: String },
    /// The directory can't be used, or another server uses it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A running server. Dropping it cuts its connections; [`S3Server::stop`] also waits until the port and the root are free.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    context: Arc<Context>,
    writes: TaskTracker,
    store: Arc<Store>,
}

impl S3Server {
    /// Opens the root and listens.
    pub async fn start(options: S3Options) -> Result<Self, S3ServerError> {
        for name in &options.buckets {
            if !s3s::path::check_bucket_name(name) {
                return Err(S3ServerError::BucketName { name: name.clone() });
            }
        }
        let address = options.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| S3ServerError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| S3ServerError::Listen { address, source })?;

        let (root, sync, md5_etags) = (options.root, options.sync, options.md5_etags);
        let opened = tokio::task::spawn_blocking(move || Store::open(root.as_deref(), sync, md5_etags)).await;
        let ended = |error| StoreError::io("store".as_ref())(std::io::Error::other(error));
        let store = Arc::new(opened.map_err(ended)??);
        for name in &options.buckets {
            match store.create_bucket(name) {
                Ok(()) | Err(StoreError::BucketExists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }

        let denials = Denials::default();
        let (writes, connections) = (TaskTracker::new(), TaskTracker::new());
        let stopping = CancellationToken::new();
        let mut builder = S3ServiceBuilder::new(Operations {
            store: Arc::clone(&store),
            denials: denials.clone(),
            writes: writes.clone(),
            stopping: stopping.clone(),
        });
        let secrets = options.credentials.into_iter().map(|(id, secret)| (id, SecretKey::from(secret)));
        builder.set_auth(Secrets(secrets.collect()));
        builder.set_access(denials.clone());
        let context = Arc::new(Context {
            service: builder.build(),
            faults: Faults::default(),
            denials,
            log: RequestLog::default(),
            stopping,
            connections,
        });
        context.connections.spawn(serve::accept(listener, Arc::clone(&context)));
        Ok(Self { address, context, writes, store })
    }

    /// `http://127.0.0.1:port`, for `AWS_ENDPOINT_URL`; clients need path-style addresses and [`REGION`].
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.context.faults
    }

    /// Who may not do what.
    pub fn denials(&self) -> &Denials {
        &self.context.denials
    }

    /// What was asked.
    pub fn log(&self) -> &RequestLog {
        &self.context.log
    }

    /// What was asked so far, oldest first.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.context.log.requests()
    }

    /// Forgets what was asked.
    pub fn clear_requests(&self) {
        self.context.log.clear();
    }

    /// The objects themselves.
    pub fn admin(&self) -> S3Admin {
        S3Admin { store: Arc::clone(&self.store) }
    }

    /// Cuts every connection and waits until writes whose body had arrived have landed. Then the same address and root can
    /// be used again, if no [`S3Admin`] is left that holds on to the root.
    pub async fn stop(self) {
        let (writes, connections) = (self.writes.clone(), self.context.connections.clone());
        self.context.stopping.cancel();
        writes.close();
        connections.close();
        drop(self);
        connections.wait().await;
        writes.wait().await;
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.context.stopping.cancel();
    }
}
