//! Calls with bytes in place of messages: whatever can be put on the wire.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

/// Longest that any of these calls may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Default, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// A connection to a process.
pub(crate) async fn connect(address: &str) -> Channel {
    Channel::from_shared(address.to_owned()).unwrap().connect().await.unwrap()
}

/// One message to `/lockstep.v1.<method>`; of the answer, unary or a stream, the first message.
pub(crate) async fn call(channel: &Channel, method: &str, message: Bytes) -> Result<Option<Bytes>, Status> {
    let path = format!("/lockstep.v1.{method}").parse().unwrap();
    let mut client = Grpc::new(channel.clone());
    let asked = async {
        client.ready().await.map_err(|error| Status::unknown(format!("the connection is gone: {error}")))?;
        let answer = client.server_streaming(Request::new(message), path, Raw).await?;
        answer.into_inner().message().await
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{method} gave no answer in {PATIENCE:?}"))
}
