//! Accepting connections: no more than allowed, none that stays silent, and all of them closed in the end.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// `PRI * HTTP/2.0...`: what every HTTP/2 client says first. Keepalive pings only start after it.
const PREFACE: usize = 24;

/// Pause after a failure to accept that is not one connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts from `listener` for ever. At most `limit` connections exist at a time, more are closed at once, so that the
/// caller sees `UNAVAILABLE` and not silence. A connection that has not said the HTTP/2 preface within
/// `greeting_timeout` is closed, and all of them are when `hang_up` is cancelled.
pub(crate) fn accept(
    listener: TcpListener,
    limit: usize,
    greeting_timeout: Duration,
    hang_up: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
    futures::stream::unfold((listener, permits, hang_up), move |(listener, permits, hang_up)| async move {
        let connection = loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                metrics::counter!("lockstep_rpc_server_connections_refused_total").increment(1);
                tracing::debug!(limit, "connection refused: all allowed connections are taken");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "connection without TCP_NODELAY");
            }
            break Connection::new(stream, permit, greeting_timeout, hang_up.clone());
        };
        Some((Ok(connection), (listener, permits, hang_up)))
    })
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

/// An accepted connection; counted until it is dropped.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Runs until the preface is complete.
    greeting: Option<Pin<Box<Sleep>>>,
    greeted: usize,
    hang_up: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        greeting_timeout: Duration,
        hang_up: CancellationToken,
    ) -> Self {
        metrics::gauge!("lockstep_rpc_server_connections").increment(1);
        Self {
            stream,
            greeting: Some(Box::pin(tokio::time::sleep(greeting_timeout))),
            greeted: 0,
            hang_up: Box::pin(hang_up.cancelled_owned()),
            _permit: permit,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!("lockstep_rpc_server_connections").decrement(1);
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Always polled by its connection, so this is where it can be told to end.
        if this.hang_up.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionAborted, "the server is shutting down")));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Some(expired) = this.greeting.as_mut() {
            if read.is_ready() {
                this.greeted += buffer.filled().len() - before;
            }
            if this.greeted >= PREFACE {
                this.greeting = None;
            } else if expired.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "no HTTP/2 preface")));
            }
        }
        ready!(read)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
