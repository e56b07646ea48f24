//! HTTP/2 by hand, for peers that no library would be.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types and flags (RFC 9113, section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) struct Peer {
    stream: TcpStream,
}

impl Peer {
    /// A connection on which nothing was said yet. `address` is `http://host:port`.
    pub(crate) async fn silent(address: &str) -> Self {
        let stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).await.unwrap();
        Self { stream }
    }

    /// A connection with the preface and these settings.
    pub(crate) async fn greeted(address: &str, settings: &[(u16, u32)]) -> Self {
        let mut peer = Self::silent(address).await;
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        peer.send(PREFACE).await;
        peer.frame(SETTINGS, 0, 0, &payload).await;
        peer
    }

    /// False: the other side has hung up.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        // A peer that neither reads nor hangs up would keep us for ever.
        tokio::time::timeout(Duration::from_secs(60), self.stream.write_all(bytes)).await.unwrap().is_ok()
    }

    pub(crate) async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.send(&frame(kind, flags, stream, payload)).await
    }

    /// Reads until the other side hangs up.
    pub(crate) async fn until_closed(&mut self, patience: Duration) -> bool {
        let closed = async {
            let mut buffer = [0; 4096];
            while !matches!(self.stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
        };
        tokio::time::timeout(patience, closed).await.is_ok()
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header as a literal that is not indexed (RFC 7541, section 6.2.2); both shorter than 127 bytes.
pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap();
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// The headers of a call.
pub(crate) fn call(path: &str) -> Vec<u8> {
    [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", path),
        header(":authority", "localhost"),
        header("te", "trailers"),
        header("content-type", "application/grpc"),
    ]
    .concat()
}

/// A message as gRPC frames it.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}
