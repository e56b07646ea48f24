//! Bytes of an object on their way in.

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use lockstep_bucket::{error::StoreError, store::ByteStream};

use super::signal_of;
use crate::{
    window::{Place, Signal},
    work::Work,
};

/// One try to read a range; holds its place among the requests in flight until it ends or drops.
pub(crate) struct Incoming {
    chunks: ByteStream,
    place: Option<Place>,
    /// How long the store took to answer: what says how it is. How fast bytes come is the line's doing, and ours.
    answered: Duration,
    work: Work,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("answered", &self.answered).finish_non_exhaustive()
    }
}

impl Incoming {
    pub(super) const fn new(chunks: ByteStream, place: Place, answered: Duration, work: Work) -> Self {
        Self { chunks, place: Some(place), answered, work }
    }

    /// The next bytes, no faster than the bandwidth limit; None after exactly those that were asked for, an error if fewer came.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        match self.chunks.next().await {
            Some(Ok(bytes)) => {
                let length = bytes.len() as u64;
                if let Some(pace) = &self.work.pace {
                    pace.take(length).await;
                }
                self.work.progress.transferred(length);
                Some(Ok(bytes))
            }
            Some(Err(error)) => {
                self.end(signal_of(&error));
                Some(Err(error))
            }
            None => {
                self.work.budget.earn();
                self.end(Signal::Answered { bytes: 0, took: self.answered });
                None
            }
        }
    }

    fn end(&mut self, signal: Signal) {
        if let Some(place) = self.place.take() {
            place.leave(signal);
        }
    }
}
