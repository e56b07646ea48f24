//! Connecting, and how each call is made.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_proto::v1::coordinator_client::CoordinatorClient;
use lockstep_rpc::{ChannelOptions, MAX_MESSAGE_BYTES, RpcProblem, TracedChannel, connect_lazy, with_deadline};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use crate::error::ClientError;
use crate::retry::RetryPolicy;

/// gRPC metadata that names the caller; it stands in the audit trail of what the call did.
pub const ACTOR_METADATA: &str = "x-lockstep-actor";

/// Most entries that one page of a list may have.
const LARGEST_PAGE: usize = 1000;

pub(crate) type Coordinator = CoordinatorClient<TracedChannel>;

/// A client of one coordinator (or of the name behind which its replicas stand). Clones share the connection.
#[derive(Clone)]
pub struct LockstepClient {
    coordinator: Coordinator,
    settings: Arc<Settings>,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) address: String,
    actor: Option<AsciiMetadataValue>,
    deadline: Duration,
    pub(crate) reconnect_for: Duration,
    pub(crate) retry: RetryPolicy,
}

impl fmt::Debug for LockstepClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockstepClient").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// How a client shall be; made by [`LockstepClient::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    address: String,
    actor: Option<String>,
    deadline: Duration,
    connect_timeout: Duration,
    reconnect_for: Duration,
    retry: RetryPolicy,
}

impl Builder {
    /// Who calls, for the audit trail: printable ASCII. Without it the audit trail only knows the address.
    #[must_use]
    pub fn actor(mut self, name: impl Into<String>) -> Self {
        self.actor = Some(name.into());
        self
    }

    /// How long each try of a call may take; of watches: until they begin. 30 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long one attempt to connect may take. 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// For how long a watch that lost its coordinator tries to find it again. 5 min.
    #[must_use]
    pub fn reconnect_for(mut self, patience: Duration) -> Self {
        self.reconnect_for = patience;
        self
    }

    /// How calls are repeated.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// The client. Nothing is sent yet: a coordinator that is not there shows with the first call.
    ///
    /// # Errors
    ///
    /// `ADDRESS_INVALID`; `ACTOR_INVALID` for a name that can't travel in a header; `INTERNAL` outside of a tokio runtime.
    pub fn connect(self) -> Result<LockstepClient, ClientError> {
        let actor = self.actor.map(|name| actor_value(&name)).transpose()?;
        let options = ChannelOptions { connect_timeout: self.connect_timeout, ..ChannelOptions::default() };
        let channel = connect_lazy(&self.address, &options)?;
        let coordinator = CoordinatorClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let settings = Settings {
            address: self.address,
            actor,
            deadline: self.deadline,
            reconnect_for: self.reconnect_for,
            retry: self.retry,
        };
        Ok(LockstepClient { coordinator, settings: Arc::new(settings) })
    }
}

fn actor_value(name: &str) -> Result<AsciiMetadataValue, RpcProblem> {
    let printable = !name.is_empty() && name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    AsciiMetadataValue::try_from(name).ok().filter(|_| printable).ok_or_else(|| {
        let message = format!("actor {name:?} is not a name of printable ASCII characters");
        RpcProblem::new(Code::InvalidArgument, "ACTOR_INVALID", message).with("actor", name)
    })
}

impl LockstepClient {
    /// A client with all defaults; see [`Self::builder`] to name the caller or change limits.
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    pub fn connect(address: impl Into<String>) -> Result<Self, ClientError> {
        Self::builder(address).connect()
    }

    /// A client of the coordinator at `address` (`http://host:port`), about to be configured.
    pub fn builder(address: impl Into<String>) -> Builder {
        Builder {
            address: address.into(),
            actor: None,
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            reconnect_for: Duration::from_secs(300),
            retry: RetryPolicy::default(),
        }
    }

    /// The same client over the same connection with another retry policy.
    #[must_use]
    pub fn with_retry(&self, retry: RetryPolicy) -> Self {
        let settings = Settings { retry, ..Settings::clone(&self.settings) };
        Self { coordinator: self.coordinator.clone(), settings: Arc::new(settings) }
    }

    /// The address the client was made with.
    pub fn address(&self) -> &str {
        &self.settings.address
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// One try.
    pub(crate) async fn send<Q, A, F>(
        &self,
        message: Q,
        call: impl FnOnce(Coordinator, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = with_deadline(Request::new(message), self.settings.deadline);
        if let Some(actor) = &self.settings.actor {
            request.metadata_mut().insert(ACTOR_METADATA, actor.clone());
        }
        call(self.coordinator.clone(), request).await.map(Response::into_inner)
    }

    /// As many tries as the policy gives, all with the very same message. With the answer comes whether an earlier try
    /// was lost, and so may have happened too.
    pub(crate) async fn call_noting_loss<Q, A, F>(
        &self,
        message: Q,
        call: impl Fn(Coordinator, Request<Q>) -> F,
    ) -> (Result<A, ClientError>, bool)
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let began = Instant::now();
        let (mut tries, mut lost) = (0, false);
        loop {
            tries += 1;
            // On the heap: a request and its answer on the way are kilobytes, and callers hold several of these futures.
            let status = match Box::pin(self.send(message.clone(), &call)).await {
                Ok(answer) => return (Ok(answer), lost),
                Err(status) => status,
            };
            let error = ClientError::from_status(&status, &self.settings.address, tries);
            let Some(pause) = self.settings.retry.pause(&error, tries, began.elapsed()) else {
                return (Err(error), lost);
            };
            lost |= error.is_unreachable();
            tracing::debug!(%error, tries, ?pause, "call failed, trying again");
            tokio::time::sleep(pause).await;
        }
    }

    pub(crate) async fn call<Q, A, F>(
        &self,
        message: Q,
        call: impl Fn(Coordinator, Request<Q>) -> F,
    ) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call_noting_loss(message, call).await.0
    }
}

/// Draws the id of a logical call where the caller gave none.
pub(crate) fn fill_request_id(id: &mut String) {
    if id.is_empty() {
        *id = Uuid::new_v4().to_string();
    }
}

/// Walks through pages until `limit` entries are there or no page is left. `page` gets size and token, and gives
/// entries and the next token.
pub(crate) async fn collect_pages<T, F>(limit: usize, page: impl Fn(i32, String) -> F) -> Result<Vec<T>, ClientError>
where
    F: Future<Output = Result<(Vec<T>, String), ClientError>>,
{
    let mut all = Vec::new();
    let mut token = String::new();
    while all.len() < limit {
        // At most 1000, so it fits.
        let size = (limit - all.len()).min(LARGEST_PAGE) as i32;
        let (entries, next) = page(size, token).await?;
        all.extend(entries);
        if next.is_empty() {
            break;
        }
        token = next;
    }
    all.truncate(limit);
    Ok(all)
}
