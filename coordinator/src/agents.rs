//! Calls to agents: lazily connected channels, a deadline on every call, bounded concurrency, and answers that keep "no" and "nobody knows" apart.
//!
//! An agent is asked at the address that the round froze for its slot. What it says it is gets compared with that slot ([`check_identity`]); it is
//! never used to find another host, since two pods that started swapped would then both be believed (scenario 17).

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use lockstep_proto::v1::{self, agent_client::AgentClient};
use lockstep_protocol::{
    host::Slot,
    id::{PipelineId, PipelineName},
    order::OrderHeader,
    problem::{Problem, Reason},
    ready::Word,
};
use lockstep_rpc::{Carrier, ChannelOptions, MAX_MESSAGE_BYTES, RpcProblem, connect_lazy, with_deadline};
use tokio::sync::Semaphore;
use tonic::{Code, Response, Status};

use crate::convert::agent as convert;

mod channels;
mod message;
mod recent;

use channels::{Channels, InUse};
pub use message::{
    Counters, Deadline, Described, Host, InstallWhat, Listing, PullDone, PullOrder, PushDone, PushOrder, Reach,
    TransferState, TransferStatus,
};
use recent::Recent;

/// What became of a call to an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum AgentAnswer<T> {
    /// It answered.
    Answer(T),
    /// It said no, with a reason of the error table.
    Refused(Problem),
    /// No answer: the call may or may not have arrived. Always `AGENT_UNREACHABLE` with host and address.
    Unknown(Problem),
}

impl<T> AgentAnswer<T> {
    /// For those who do the same about "no" and "nobody knows".
    pub fn done(self) -> Result<T, Problem> {
        match self {
            Self::Answer(value) => Ok(value),
            Self::Refused(problem) | Self::Unknown(problem) => Err(problem),
        }
    }

    /// Checks an answer further.
    pub fn and_then<U>(self, check: impl FnOnce(T) -> Result<U, Problem>) -> AgentAnswer<U> {
        match self {
            Self::Answer(value) => match check(value) {
                Ok(value) => AgentAnswer::Answer(value),
                Err(problem) => AgentAnswer::Refused(problem),
            },
            Self::Refused(problem) => AgentAnswer::Refused(problem),
            Self::Unknown(problem) => AgentAnswer::Unknown(problem),
        }
    }
}

/// What planning asks of agents: no order, no effect. The seam for tests of the choices that rest on it.
#[async_trait]
pub trait AgentReads: fmt::Debug + Send + Sync {
    /// Who is there?
    async fn describe(&self, host: &Host) -> AgentAnswer<Described>;

    /// What has it on its disk?
    async fn list_checkpoints(&self, host: &Host) -> AgentAnswer<Listing>;

    /// Keeps both answers for whoever asks next.
    fn leave(&self, _host: &Host, _described: Described, _listing: Listing) {}

    /// Both answers, if somebody has left them just now.
    fn take(&self, _host: &Host) -> Option<(Described, Listing)> {
        None
    }
}

/// Limits of all calls together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgentPoolOptions {
    /// Time to establish a connection. 5 s.
    pub connect_timeout: Duration,
    /// Deadline of a call that is answered at once. 10 s.
    pub call_timeout: Duration,
    /// Deadline of a call that waits for disk work or for something to stop: list, install, cancel. 70 s, above the minute after which an agent
    /// answers an install with its progress.
    pub slow_call_timeout: Duration,
    /// What a long poll may take beyond its wait. 10 s.
    pub poll_grace: Duration,
    /// Calls at once, long polls not counted. 256.
    pub max_calls: usize,
    /// Long polls at once: one a host that transfers. 4096.
    pub max_polls: usize,
    /// A connection that was not used for so long is closed. 30 s, above a long poll.
    pub idle_after: Duration,
    /// Connections that nothing is under way on; of more, those that were used least lately are closed. 1024.
    pub max_idle: usize,
    /// While calls are under way, a ping goes out after this much silence. 15 s.
    pub keepalive_interval: Duration,
    /// A connection that does not answer a ping for so long is closed, and its calls may or may not have arrived. 10 s; together with the interval
    /// less than after what an agent counts as unreachable, so that a connection that went silent costs no attempt.
    pub keepalive_timeout: Duration,
}

impl Default for AgentPoolOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(10),
            slow_call_timeout: Duration::from_secs(70),
            poll_grace: Duration::from_secs(10),
            max_calls: 256,
            max_polls: 4096,
            idle_after: Duration::from_secs(30),
            max_idle: 1024,
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Channels to agents by address. Cheap to clone; clones share connections and limits.
#[derive(Clone)]
pub struct AgentPool {
    shared: Arc<Shared>,
}

struct Shared {
    options: AgentPoolOptions,
    channels: Channels,
    recent: Recent,
    calls: Semaphore,
    polls: Semaphore,
}

impl fmt::Debug for AgentPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentPool").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

type Client = AgentClient<Carrier>;

impl AgentPool {
    /// No connection is made yet.
    pub fn new(options: AgentPoolOptions) -> Self {
        Self::over(options, |address, options| connect_lazy(address, options).map(Carrier::new))
    }

    /// Over another network: that of a simulation.
    pub fn over(
        options: AgentPoolOptions,
        dial: impl Fn(&str, &ChannelOptions) -> Result<Carrier, RpcProblem> + Send + Sync + 'static,
    ) -> Self {
        let (calls, polls) = (Semaphore::new(options.max_calls.max(1)), Semaphore::new(options.max_polls.max(1)));
        Self {
            shared: Arc::new(Shared {
                options,
                channels: Channels::new(options, Box::new(dial)),
                recent: Recent::default(),
                calls,
                polls,
            }),
        }
    }

    /// Agents that are connected to, or were lately.
    pub fn connected(&self) -> usize {
        self.shared.channels.count()
    }

    fn client(&self, host: &Host) -> Result<(Client, InUse), Problem> {
        let (channel, in_use) = self.shared.channels.get(&host.address).map_err(|error| {
            Problem::new(Reason::SpecInvalid, format!("{}: {}", host.slot, error.message))
                .with("field", "agents")
                .with("host_idx", host.slot.idx())
                .with("address", &host.address)
        })?;
        let client = AgentClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok((client, in_use))
    }

    /// One call: a permit, a client, the call, its outcome.
    async fn call<M, T, F>(
        &self,
        host: &Host,
        permits: &Semaphore,
        call: impl FnOnce(Client) -> F + Send,
        convert: impl FnOnce(M) -> Result<T, Problem> + Send,
    ) -> AgentAnswer<T>
    where
        F: Future<Output = Result<Response<M>, Status>> + Send,
        M: Send,
    {
        // Closed it never is; and without a permit the call would merely be unbounded.
        let _permit = permits.acquire().await.ok();
        let (client, in_use) = match self.client(host) {
            Ok(client) => client,
            Err(problem) => return AgentAnswer::Refused(problem),
        };
        // Boxed: the generated client's future is big, and each host of each round has one.
        let outcome = Box::pin(call(client)).await.map(Response::into_inner);
        if outcome.as_ref().is_err_and(|status| status.code() == Code::DeadlineExceeded) {
            // The agent hangs, or only this connection does: the next call finds out over another one.
            in_use.give_up();
        }
        convert::answer_of(host, outcome, convert)
    }

    /// Starts an upload; the same order again is answered with its status.
    pub async fn push(&self, host: &Host, order: &PushOrder) -> AgentAnswer<TransferStatus<PushDone>> {
        let request = with_deadline(convert::push_order(order), self.shared.options.call_timeout);
        let call = async |mut client: Client| client.push(request).await;
        self.call(host, &self.shared.calls, call, |answer| convert::push_status_of(host, answer)).await
    }

    /// Starts a download; the same order again is answered with its status.
    pub async fn pull(&self, host: &Host, order: &PullOrder) -> AgentAnswer<TransferStatus<PullDone>> {
        let request = with_deadline(convert::pull_order(order), self.shared.options.call_timeout);
        let call = async |mut client: Client| client.pull(request).await;
        self.call(host, &self.shared.calls, call, convert::pull_status_of).await
    }

    fn poll(&self, order: &OrderHeader, wait: Duration) -> tonic::Request<v1::StatusRequest> {
        with_deadline(convert::status_request(order, wait), wait + self.shared.options.poll_grace)
    }

    /// Waits at the agent until an upload ends or moves, at the longest for `wait`.
    pub async fn push_status(
        &self,
        host: &Host,
        header: &OrderHeader,
        wait: Duration,
    ) -> AgentAnswer<TransferStatus<PushDone>> {
        let request = self.poll(header, wait);
        let call = async |mut client: Client| client.push_status(request).await;
        self.call(host, &self.shared.polls, call, |answer| convert::push_status_of(host, answer)).await
    }

    /// Waits at the agent until a download or install ends or moves, at the longest for `wait`.
    pub async fn pull_status(
        &self,
        host: &Host,
        header: &OrderHeader,
        wait: Duration,
    ) -> AgentAnswer<TransferStatus<PullDone>> {
        let request = self.poll(header, wait);
        let call = async |mut client: Client| client.pull_status(request).await;
        self.call(host, &self.shared.polls, call, convert::pull_status_of).await
    }

    /// Makes a staged or local checkpoint the only one; answered when that is done, or with progress after a minute.
    pub async fn install(
        &self,
        host: &Host,
        header: &OrderHeader,
        what: InstallWhat,
    ) -> AgentAnswer<TransferStatus<PullDone>> {
        let request = with_deadline(convert::install_order(header, what), self.shared.options.slow_call_timeout);
        let call = async |mut client: Client| client.install(request).await;
        self.call(host, &self.shared.polls, call, convert::pull_status_of).await
    }

    /// Tells what the engine may do. The same word again is answered the same.
    pub async fn ready(&self, host: &Host, header: &OrderHeader, word: &Word) -> AgentAnswer<()> {
        let request = with_deadline(convert::ready_order(header, word), self.shared.options.call_timeout);
        let call = async |mut client: Client| client.ready(request).await;
        self.call(host, &self.shared.calls, call, |_: v1::ReadyResponse| Ok(())).await
    }

    /// Stops whatever the round runs there. True: nothing of it is left.
    pub async fn cancel(&self, host: &Host, header: &OrderHeader, deadline: Duration) -> AgentAnswer<bool> {
        let order = v1::CancelOrder { header: Some(convert::header(header)) };
        let request = with_deadline(order, deadline);
        let call = async |mut client: Client| client.cancel(request).await;
        self.call(host, &self.shared.polls, call, |answer: v1::CancelResponse| Ok(answer.stopped)).await
    }
}

#[async_trait]
impl AgentReads for AgentPool {
    async fn describe(&self, host: &Host) -> AgentAnswer<Described> {
        let request = with_deadline(v1::DescribeRequest {}, self.shared.options.call_timeout);
        let call = async |mut client: Client| client.describe(request).await;
        self.call(host, &self.shared.calls, call, convert::described_of).await
    }

    async fn list_checkpoints(&self, host: &Host) -> AgentAnswer<Listing> {
        let request = with_deadline(v1::ListLocalCheckpointsRequest {}, self.shared.options.slow_call_timeout);
        let call = async |mut client: Client| client.list_checkpoints(request).await;
        self.call(host, &self.shared.calls, call, convert::listing_of).await
    }

    fn leave(&self, host: &Host, described: Described, listing: Listing) {
        self.shared.recent.leave(host, described, listing);
    }

    fn take(&self, host: &Host) -> Option<(Described, Listing)> {
        self.shared.recent.take(host)
    }
}

/// Compares who answered with who was meant. Agents check the same of each order; this is said before any order is sent.
pub fn check_identity(
    host: &Host,
    pipeline: PipelineId,
    name: &PipelineName,
    described: &Described,
) -> Result<(), Problem> {
    let with_host = |problem: Problem| problem.with("host_idx", host.slot.idx()).with("address", &host.address);
    // A name is never a UUID, so the two spellings can't be confused.
    if described.pipeline != name.as_str() && described.pipeline != pipeline.to_string() {
        return Err(with_host(
            Problem::new(
                Reason::PipelineMismatch,
                format!(
                    "{} of pipeline {name} ({pipeline}) is said to be at {}, but the agent there runs for pipeline {}: check --pipeline of \
                     the pod or agents of the spec",
                    host.slot, host.address, described.pipeline
                ),
            )
            .with("ordered_name", name)
            .with("ordered_id", pipeline)
            .with("own", &described.pipeline),
        ));
    }
    if described.slot != host.slot {
        let show =
            |slot: Slot| slot.host_info().map_or("solo".to_owned(), |i| format!("{}/{}", i.host_idx(), i.n_hosts()));
        return Err(with_host(
            Problem::new(
                Reason::HostInfoMismatch,
                format!(
                    "{} of pipeline {name} is said to be at {}, but the agent there runs as {}: check --host-idx and --n-hosts of the pod or \
                     agents of the spec",
                    host.slot, host.address, described.slot
                ),
            )
            .with("ordered", show(host.slot))
            .with("own", show(described.slot)),
        ));
    }
    Ok(())
}
