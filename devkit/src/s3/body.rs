//! Bodies that are counted and, if a fault says so, slowed down, cut short or bent.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use s3s::StdError;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::requests::Exchange;

/// How a body is to differ from itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    pub(crate) bytes_per_second: Option<u64>,
    /// The stream fails after this many bytes.
    pub(crate) cut_after: Option<u64>,
    /// One bit of this byte is flipped.
    pub(crate) corrupt_at: Option<u64>,
    /// Nothing passes after this many bytes, until the token is cancelled.
    pub(crate) stop: Option<(u64, CancellationToken)>,
    /// The head tells another length.
    pub(crate) hides_length: bool,
    /// Cancelled when the body is over.
    pub(crate) over: Option<CancellationToken>,
}

/// Which of an exchange's bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

/// A body and what is done to it.
#[derive(Debug)]
pub(crate) struct Shaped<B> {
    inner: B,
    shape: Shape,
    exchange: Arc<Exchange>,
    direction: Direction,
    passed: u64,
    /// What waits for its time.
    held: Bytes,
    pace: Option<Pace>,
    stop: Option<Stop>,
}

#[derive(Debug)]
struct Pace {
    begun: Instant,
    sleep: Pin<Box<Sleep>>,
}

#[derive(Debug)]
struct Stop {
    after: u64,
    removed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<B> Shaped<B> {
    pub(crate) fn new(inner: B, shape: Shape, exchange: Arc<Exchange>, direction: Direction) -> Self {
        let pace = shape.bytes_per_second.map(|_| {
            let begun = Instant::now();
            Pace { begun, sleep: Box::pin(tokio::time::sleep_until(begun)) }
        });
        let stop =
            shape.stop.clone().map(|(after, removed)| Stop { after, removed: Box::pin(removed.cancelled_owned()) });
        Self { inner, shape, exchange, direction, passed: 0, held: Bytes::new(), pace, stop }
    }

    /// Counts and bends what is about to pass; `None` if the body ends in failure here.
    fn pass(&mut self, mut data: Bytes) -> Option<Bytes> {
        if let Some(cut) = self.shape.cut_after {
            let left = cut.saturating_sub(self.passed);
            if left == 0 {
                return None;
            }
            data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let end = self.passed + data.len() as u64;
        if let Some(at) = self.shape.corrupt_at.filter(|at| (self.passed..end).contains(at)) {
            let mut bent = BytesMut::from(&data[..]);
            // In range, as just checked.
            bent[usize::try_from(at - self.passed).unwrap_or_default()] ^= 1;
            data = bent.freeze();
        }
        self.passed = end;
        match self.direction {
            Direction::In => self.exchange.came_in(data.len() as u64),
            Direction::Out => self.exchange.went_out(data.len() as u64),
        }
        Some(data)
    }

    /// A slice of what is held back, once its time has come. 20 slices a second keep the pace even.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.held.is_empty() {
            return Poll::Ready(None);
        }
        let mut slice = self.held.len();
        if let Some(stop) = &mut self.stop {
            match stop.after.checked_sub(self.passed).filter(|&left| left > 0) {
                Some(left) => slice = slice.min(usize::try_from(left).unwrap_or(usize::MAX)),
                None => {
                    ready!(stop.removed.as_mut().poll(cx));
                    self.stop = None;
                }
            }
        }
        if let Some(pace) = &mut self.pace {
            ready!(pace.sleep.as_mut().poll(cx));
            let rate = self.shape.bytes_per_second.unwrap_or(u64::MAX).max(1);
            slice = slice.min(usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1));
            let passed = self.passed + slice as u64;
            pace.sleep.as_mut().reset(pace.begun + Duration::from_secs_f64(passed as f64 / rate as f64));
        }
        Poll::Ready(Some(self.held.split_to(slice)))
    }
}

impl<B> Body for Shaped<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        loop {
            if let Some(data) = ready!(this.poll_held(cx)) {
                return Poll::Ready(Some(this.pass(data).map(Frame::data).ok_or_else(cut)));
            }
            let data = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            };
            if this.pace.is_none() && this.stop.is_none() {
                return Poll::Ready(Some(this.pass(data).map(Frame::data).ok_or_else(cut)));
            }
            this.held = data;
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.shape.hides_length {
            return SizeHint::new();
        }
        let held = self.held.len() as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(inner.lower() + held);
        hint
    }
}

impl<B> Drop for Shaped<B> {
    fn drop(&mut self) {
        // hyper drops the answer's body when it has taken all of it, or when the connection is gone.
        if self.direction == Direction::Out {
            self.exchange.finished();
        }
        if let Some(over) = &self.shape.over {
            over.cancel();
        }
    }
}

fn cut() -> StdError {
    "cut short by a fault".into()
}

/// A request's body that s3s reads and that we finish if s3s does not: a client that is still sending would otherwise see
/// its connection reset instead of the answer.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<Shaped<Incoming>>>);

impl Shared {
    pub(crate) fn new(body: Shaped<Incoming>) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    /// Whether somebody has begun to read: only then does hyper tell a client that sent `Expect: 100-continue` to go on.
    pub(crate) fn begun(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).passed > 0
    }
}

impl Body for Shared {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
