//! Sending a body: a range of an object, read from its files a chunk ahead of the client.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use s3s::Body;
use s3s::dto::StreamingBlob;
use tokio::task::JoinHandle;

use super::store::{Blob, Object};

/// Bytes read at once. A range that fits is answered from memory in one piece.
const CHUNK: u64 = 512 * 1024;

/// The bytes of `range`. If the files have fewer (a test cut them), the stream ends with an error and the connection
/// with it, so that nobody takes the rest for the whole.
pub(crate) async fn read(object: &Object, range: Range<u64>) -> std::io::Result<StreamingBlob> {
    let reader = Reader::new(object, range);
    if reader.left <= CHUNK {
        let (bytes, _) = reader.next().await?;
        return Ok(StreamingBlob::from(Body::from(bytes)));
    }
    let chunks = stream::try_unfold(Some(Ahead::start(reader)), |ahead| async move {
        let Some(ahead) = ahead else { return Ok(None) };
        let (bytes, reader) = ahead.reading.await.map_err(std::io::Error::other)??;
        let following = (reader.left > 0).then(|| Ahead::start(reader));
        Ok::<_, std::io::Error>(Some((bytes, following)))
    });
    Ok(StreamingBlob::wrap(chunks))
}

/// A chunk on its way. Started before the one before it is sent.
struct Ahead {
    reading: JoinHandle<std::io::Result<(Bytes, Reader)>>,
}

impl Ahead {
    fn start(reader: Reader) -> Self {
        Self { reading: tokio::task::spawn_blocking(move || reader.read_chunk()) }
    }
}

struct Reader {
    /// In reverse: the next one is the last. Holding them keeps their files.
    pieces: Vec<(Arc<Blob>, Range<u64>)>,
    open: Option<File>,
    left: u64,
}

impl Reader {
    fn new(object: &Object, range: Range<u64>) -> Self {
        let mut pieces = Vec::new();
        let mut begin = 0;
        for blob in &object.blobs {
            let end = begin + blob.len;
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                pieces.push((Arc::clone(blob), from - begin..to - begin));
            }
            begin = end;
        }
        pieces.reverse();
        Self { pieces, open: None, left: range.end - range.start }
    }

    async fn next(self) -> std::io::Result<(Bytes, Self)> {
        if self.left == 0 {
            return Ok((Bytes::new(), self));
        }
        tokio::task::spawn_blocking(move || self.read_chunk()).await.map_err(std::io::Error::other)?
    }

    fn read_chunk(mut self) -> std::io::Result<(Bytes, Self)> {
        let wanted = self.left.min(CHUNK);
        let mut buffer = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        while (buffer.len() as u64) < wanted {
            let missing = wanted - buffer.len() as u64;
            let Some((blob, range)) = self.pieces.last_mut() else { break };
            let file = match &mut self.open {
                Some(file) => file,
                None => {
                    let mut file = File::open(blob.path())?;
                    file.seek(SeekFrom::Start(range.start))?;
                    self.open.insert(file)
                }
            };
            let read = file.take(missing.min(range.end - range.start)).read_to_end(&mut buffer)?;
            if read == 0 {
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the body's file is too short"));
            }
            range.start += read as u64;
            self.left -= read as u64;
            if range.is_empty() {
                self.pieces.pop();
                self.open = None;
            }
        }
        Ok((Bytes::from(buffer), self))
    }
}
