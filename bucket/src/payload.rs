//! Bytes to send: chunks that stay where they were read, their CRC-32, and the pace at which they may go.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use crate::pace::Pace;

/// A body for [`ObjectStore::put`](crate::ObjectStore::put) and [`upload_part`](crate::ObjectStore::upload_part). Clones share the bytes, so that a
/// second try sends the same ones.
#[derive(Clone, Default)]
pub struct Payload {
    chunks: Arc<[Bytes]>,
    length: u64,
    crc32: Arc<OnceLock<u32>>,
    pace: Option<Arc<Pace>>,
    meter: Option<Arc<AtomicU64>>,
}

impl Payload {
    /// These chunks, one after the other.
    pub fn new(chunks: Vec<Bytes>) -> Self {
        // No sum of allocations is longer than u64.
        let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        Self { chunks: chunks.into(), length, crc32: Arc::default(), pace: None, meter: None }
    }

    /// Whoever read the bytes has computed their CRC-32 (the common one, ISO-HDLC) along the way.
    #[must_use]
    pub fn with_crc32(mut self, crc32: u32) -> Self {
        self.crc32 = Arc::new(OnceLock::from(crc32));
        self
    }

    /// Sends no faster than `pace` permits.
    #[must_use]
    pub fn with_pace(mut self, pace: Option<Arc<Pace>>) -> Self {
        self.pace = pace;
        self
    }

    /// Adds to `meter` what is handed to the connection, as it is: a slow line shows movement long before a body is through. What is sent again counts again.
    #[must_use]
    pub fn with_meter(mut self, meter: Arc<AtomicU64>) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Bytes in all.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Whether there is nothing to send.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// CRC-32 of all bytes; computed once, unless it was given.
    pub fn crc32(&self) -> u32 {
        *self.crc32.get_or_init(|| {
            let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
            self.chunks.iter().for_each(|chunk| digest.update(chunk));
            // The upper half of what a 32-bit algorithm returns is zero.
            u32::try_from(digest.finalize()).unwrap_or_default()
        })
    }

    /// The chunks as they were given.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// What limits it.
    pub(crate) const fn pace(&self) -> Option<&Arc<Pace>> {
        self.pace.as_ref()
    }

    pub(crate) fn count(&self, bytes: u64) {
        if let Some(meter) = &self.meter {
            meter.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// All bytes in one piece: without a copy if there is only one chunk.
    pub(crate) fn into_bytes(self) -> Bytes {
        match &*self.chunks {
            [] => Bytes::new(),
            [only] => only.clone(),
            several => several.concat().into(),
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::new(vec![bytes])
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("chunks", &self.chunks.len())
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_of_chunks_is_that_of_all_bytes_and_a_given_one_is_believed() {
        let chunks = vec![Bytes::from_static(b"1234"), Bytes::new(), Bytes::from_static(b"56789")];
        let payload = Payload::new(chunks);
        // The check value of CRC-32.
        assert_eq!(payload.crc32(), 0xcbf4_3926);
        assert_eq!(payload.length(), 9);
        assert_eq!(payload.clone().with_crc32(7).crc32(), 7);
        assert_eq!(payload.crc32(), 0xcbf4_3926, "a clone's CRC is its own");
        assert_eq!(payload.into_bytes(), "123456789");
    }
}
