//! Channels of clients.

use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response, Uri};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, IntoRequest, Status};
use tower::util::BoxCloneSyncService;

use crate::error::{Retryable, RpcProblem};
use crate::trace::ClientTrace;

/// The channel of all our clients: `CoordinatorClient<TracedChannel>`. Cheap to clone; clones share one connection.
pub type TracedChannel = ClientTrace<Channel>;

/// Carries calls to one server, whatever lies in between: a [`TracedChannel`] in production, the network of a simulation in its place.
pub type Carrier = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// How a client connects.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// Time to establish a TCP connection. 5 s.
    pub connect_timeout: Duration,
    /// While calls are under way, a ping goes out after this much silence. 15 s.
    pub keepalive_interval: Duration,
    /// The connection counts as dead, and its calls as lost, if a ping stays unanswered for this long. 10 s.
    pub keepalive_timeout: Duration,
    /// Deadline of calls without one of their own, until the head of their answer. None.
    pub request_timeout: Option<Duration>,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(10),
            request_timeout: None,
        }
    }
}

/// A channel to `address` (`http://host:port`, or just `host:port`) that connects when it is first used and again
/// whenever it has lost its connection. While the server can't be reached, calls fail with `UNAVAILABLE`.
///
/// # Errors
///
/// `ADDRESS_INVALID`, which says what is wrong with the address; `INTERNAL` outside of a tokio runtime.
pub fn connect_lazy(address: &str, options: &ChannelOptions) -> Result<TracedChannel, RpcProblem> {
    let uri = parse_address(address)?;
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(RpcProblem::new(Code::Internal, "INTERNAL", "a channel needs a tokio runtime to run in"));
    }
    let server = uri.authority().map_or(address, |authority| authority.as_str()).to_owned();
    let mut endpoint = Endpoint::from(uri)
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout);
    if let Some(timeout) = options.request_timeout {
        endpoint = endpoint.timeout(timeout);
    }
    Ok(ClientTrace::new(endpoint.connect_lazy(), server))
}

/// Checks an address and completes its scheme.
///
/// # Errors
///
/// `ADDRESS_INVALID`, which says what is wrong.
pub fn parse_address(address: &str) -> Result<Uri, RpcProblem> {
    // What stands before an @ is a password, and errors are logged.
    let shown = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let wrong = |what: String| {
        RpcProblem::new(Code::InvalidArgument, "ADDRESS_INVALID", format!("address '{shown}' {what}"))
            .with("address", shown)
            .retryable(Retryable::No)
    };
    let text = address.trim();
    if text.is_empty() {
        return Err(wrong("is empty, expected http://host:port".to_owned()));
    }
    let complete = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = complete.parse().map_err(|error| wrong(format!("is not a URL: {error}")))?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        let scheme = uri.scheme_str().unwrap_or_default();
        return Err(wrong(format!("has scheme '{scheme}', only http is supported")));
    }
    let Some(authority) = uri.authority() else {
        return Err(wrong("has no host".to_owned()));
    };
    if authority.as_str().contains('@') {
        return Err(wrong("has credentials, which would not be used".to_owned()));
    }
    if authority.host().is_empty() {
        return Err(wrong("has no host".to_owned()));
    }
    if authority.port_u16().is_none_or(|port| port == 0) {
        return Err(wrong("has no valid port, expected http://host:port".to_owned()));
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(wrong("has a path, expected only http://host:port".to_owned()));
    }
    Ok(uri)
}

/// A request that ends with `DEADLINE_EXCEEDED` if the head of its answer takes longer than `deadline`; the server is
/// told. For calls that answer with a stream that is the time to its start.
pub fn with_deadline<T>(request: impl IntoRequest<T>, deadline: Duration) -> tonic::Request<T> {
    /// More is not expressible in the header, and means never.
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    let mut request = request.into_request();
    request.set_timeout(deadline.min(LONGEST));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_out_its_scheme() {
        for address in ["http://10.0.0.1:7400", "10.0.0.1:7400", " http://10.0.0.1:7400/ "] {
            assert_eq!(parse_address(address).unwrap(), "http://10.0.0.1:7400/", "{address}");
        }
        assert_eq!(parse_address("[::1]:7400").unwrap(), "http://[::1]:7400/");
        assert_eq!(parse_address("orders-0.orders.svc:7402").unwrap().host(), Some("orders-0.orders.svc"));
    }

    #[test]
    fn a_wrong_address_says_what_is_wrong() {
        for (address, expected) in [
            ("", "address '' is empty"),
            ("localhost", "has no valid port"),
            ("http://localhost", "has no valid port"),
            ("localhost:0", "has no valid port"),
            ("localhost:99999", "has no valid port"),
            ("https://localhost:7400", "has scheme 'https', only http"),
            ("http://:7400", "address 'http://:7400' "),
            ("http://me:secret@localhost:7400", "credentials"),
            ("http://localhost:7400/api", "has a path"),
            ("http://local host:7400", "is not a URL"),
        ] {
            let problem = parse_address(address).unwrap_err();
            assert!(problem.message.contains(expected), "{address}: {}", problem.message);
            assert!(!format!("{problem:?}").contains("secret"), "{problem:?}");
            assert_eq!((problem.reason.as_str(), problem.code), ("ADDRESS_INVALID", Code::InvalidArgument));
        }
    }

    #[test]
    fn a_channel_outside_of_a_runtime_is_an_error_and_no_panic() {
        assert!(connect_lazy("localhost:7400", &ChannelOptions::default()).is_err());
    }

    #[test]
    fn an_absurd_deadline_is_clamped() {
        let request = with_deadline((), Duration::MAX);
        assert!(request.metadata().contains_key("grpc-timeout"));
    }
}
