//! Bodies that tell whether they move, and streams that end with an error where a body is not what was announced.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use aws_sdk_s3::primitives::{ByteStream as SdkStream, SdkBody};
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use http_body::{Body, Frame, SizeHint};

use super::{
    STALL,
    request::{self, Request},
};
use crate::{
    error::{StoreError, StoreErrorKind},
    store::ByteStream,
};

/// What is handed to the connection at once: small enough to see progress on a slow line.
const FRAME: usize = 128 << 10;

/// Bytes to send, and how many of them the connection has taken.
#[derive(Debug)]
pub(super) struct Upload {
    bytes: Bytes,
    taken: Arc<AtomicU64>,
}

impl Upload {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, taken: Arc::default() }
    }

    pub(super) fn length(&self) -> i64 {
        // No allocation is longer than isize::MAX.
        i64::try_from(self.bytes.len()).unwrap_or(i64::MAX)
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(super) fn body(&self) -> SdkBody {
        if self.bytes.is_empty() {
            return SdkBody::empty();
        }
        SdkBody::from_body_1_x(Frames { left: self.bytes.clone(), taken: Arc::clone(&self.taken) })
    }
}

struct Frames {
    left: Bytes,
    taken: Arc<AtomicU64>,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(FRAME);
        let frame = self.left.split_to(length);
        self.taken.fetch_add(u64::try_from(length).unwrap_or(0), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.left.len()).unwrap_or(u64::MAX))
    }
}

/// The chunks of an answer; ends with an error after [`STALL`] without a byte.
pub(super) fn chunks(body: SdkStream, request: Request) -> BoxStream<'static, Result<Bytes, StoreError>> {
    futures::stream::unfold(Some((body, request)), |state| async {
        let (mut body, request) = state?;
        match tokio::time::timeout(STALL, body.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => {
                request::received(chunk.len());
                Some((Ok(chunk), Some((body, request))))
            }
            Ok(Some(Err(error))) => {
                let why = format!("the answer broke off: {}", request::chain(&error));
                Some((Err(request.error(StoreErrorKind::Unavailable, why)), None))
            }
            Err(_) => {
                let why = format!("no byte for {} s", STALL.as_secs());
                Some((Err(request.error(StoreErrorKind::Unavailable, why)), None))
            }
        }
    })
    .boxed()
}

/// Passes on exactly `length` bytes, and an error for fewer or more. The end is waited for, so that the connection can be used again.
pub(super) fn exactly(
    chunks: BoxStream<'static, Result<Bytes, StoreError>>,
    length: u64,
    request: Request,
) -> ByteStream {
    futures::stream::unfold(Some((chunks, length, request)), move |state| async move {
        let (mut chunks, left, request) = state?;
        match chunks.next().await {
            None if left == 0 => None,
            None => {
                let why = format!("asked for {length} bytes, got {}", length - left);
                Some((Err(request.lied(why)), None))
            }
            Some(Err(error)) => Some((Err(error), None)),
            Some(Ok(chunk)) => match left.checked_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX)) {
                Some(left) => Some((Ok(chunk), Some((chunks, left, request)))),
                None => Some((Err(request.lied(format!("asked for {length} bytes, got more"))), None)),
            },
        }
    })
    .boxed()
}
