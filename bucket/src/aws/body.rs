//! Bodies that tell whether they move, and streams that end with an error where a body is not what was announced.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use aws_sdk_s3::primitives::{ByteStream as SdkStream, SdkBody};
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use http_body::{Body, Frame, SizeHint};

use super::request::{self, Request};
use crate::{
    error::{StoreError, StoreErrorKind},
    payload::Payload,
    store::ByteStream,
};

/// What is handed to the connection at once: small enough to see progress on a slow line.
const FRAME: usize = 128 << 10;

/// Bytes to send, and how far the connection is with them.
#[derive(Debug)]
pub(super) struct Upload {
    payload: Payload,
    moved: Arc<Moved>,
}

#[derive(Debug, Default)]
struct Moved {
    /// Bytes that the connection has taken.
    taken: AtomicU64,
    /// It is us who hold back, not the other side.
    paced: AtomicBool,
}

impl Upload {
    pub(super) fn new(payload: Payload) -> Self {
        Self { payload, moved: Arc::default() }
    }

    pub(super) fn length(&self) -> i64 {
        // S3 takes no body that comes near.
        i64::try_from(self.payload.length()).unwrap_or(i64::MAX)
    }

    pub(super) fn taken(&self) -> u64 {
        self.moved.taken.load(Ordering::Relaxed)
    }

    /// Whether it waits for its turn under a bandwidth limit.
    pub(super) fn is_paced(&self) -> bool {
        self.moved.paced.load(Ordering::Relaxed)
    }

    pub(super) fn body(&self) -> SdkBody {
        if self.payload.is_empty() {
            return SdkBody::empty();
        }
        SdkBody::from_body_1_x(Frames {
            left: self.payload.length(),
            frame_length: self
                .payload
                .pace()
                .map_or(FRAME, |pace| usize::try_from(pace.slice()).unwrap_or(FRAME).min(FRAME)),
            payload: self.payload.clone(),
            next_chunk: 0,
            chunk: Bytes::new(),
            turn: None,
            moved: Arc::clone(&self.moved),
        })
    }
}

struct Frames {
    payload: Payload,
    next_chunk: usize,
    /// What is left of the current chunk.
    chunk: Bytes,
    /// What is left of all.
    left: u64,
    frame_length: usize,
    /// The wait for the next frame's turn, if there is a pace.
    turn: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    moved: Arc<Moved>,
}

impl Frames {
    /// Goes to the next chunk that has bytes; false: there is none.
    fn has_more(&mut self) -> bool {
        while self.chunk.is_empty() {
            let Some(next) = self.payload.chunks().get(self.next_chunk) else { return false };
            self.chunk = next.clone();
            self.next_chunk += 1;
        }
        true
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if !this.has_more() {
            return Poll::Ready(None);
        }
        let length = this.chunk.len().min(this.frame_length);
        // A length is never more than u64.
        let bytes = length as u64;
        if let Some(pace) = this.payload.pace() {
            let turn = this.turn.get_or_insert_with(|| {
                let pace = Arc::clone(pace);
                Box::pin(async move { pace.take(bytes).await })
            });
            let is_waiting = turn.as_mut().poll(cx).is_pending();
            this.moved.paced.store(is_waiting, Ordering::Relaxed);
            if is_waiting {
                return Poll::Pending;
            }
            this.turn = None;
        }
        let frame = this.chunk.split_to(length);
        this.payload.count(bytes);
        this.left -= bytes;
        this.moved.taken.fetch_add(bytes, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The chunks of an answer; ends with an error once no byte has come for too long.
pub(super) fn chunks(body: SdkStream, request: Request) -> BoxStream<'static, Result<Bytes, StoreError>> {
    futures::stream::unfold(Some((body, request)), |state| async {
        let (mut body, request) = state?;
        match tokio::time::timeout(request.stall(), body.next()).await {
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
                let why = format!("the answer stalled: no byte for {:?}", request.stall());
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
