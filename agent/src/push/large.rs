//! A file of several pieces: read, hashed and sent in parallel, one multipart upload.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use lockstep_bucket::{Payload, UploadId};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    manifest::ObjectEntry,
    problem::{Problem, Reason, Retryable},
};
use tokio::sync::{OnceCell, SetOnce};

use super::{
    ledger::{Content, Entry, Upload},
    sending::{Outcome, Sending, Wanted, unread},
    sizes::Sizes,
    source::{Body, Source},
};
use crate::{
    blocks::Room,
    store::{HeldCheckpoint, HeldFile},
    tree::{Piece, PieceHasher, TreeDigest},
};

/// One large file on its way.
#[derive(Debug)]
pub(super) struct Large {
    wanted: Wanted,
    file: HeldFile,
    /// Bytes of each piece but the last.
    piece: u64,
    /// Pieces that an earlier attempt sent are not among these.
    missing: Vec<u16>,
    /// Open while pieces of it are read.
    source: Mutex<Option<Arc<Source>>>,
    /// Key and id.
    upload: OnceCell<(String, UploadId)>,
    /// Whether it must be sent: known when its beginning was compared with the base.
    must_send: SetOnce<bool>,
    compared: Mutex<Compared>,
}

/// What is known of a file that may not have to be sent.
#[derive(Debug)]
struct Compared {
    digest: TreeDigest,
    /// Pieces that are not hashed yet.
    left: usize,
}

/// One piece in memory.
struct Read {
    payload: Payload,
    piece: Piece,
}

impl Large {
    /// Takes up what an earlier attempt left, if anything.
    pub(super) fn new(to: &Sending, sizes: &Sizes, wanted: Wanted) -> Result<Self, Problem> {
        let file = to.file(wanted)?;
        let mut piece = sizes.piece(&file.path, file.size)?;
        let begun = to.ledger.upload(&file, |upload| {
            piece = upload.piece;
            let done: Vec<u16> = upload.tags.keys().copied().collect();
            (upload.key.clone(), UploadId(upload.id.clone()), done)
        });
        // At most 10,000.
        let pieces = u16::try_from(file.size.div_ceil(piece)).unwrap_or(u16::MAX);
        let must_send = begun.is_some() || wanted.is_new || !to.base.may_hold(file.size, None);
        let (upload, done) = match begun {
            None => (OnceCell::new(), Vec::new()),
            Some((key, id, done)) => (OnceCell::new_with(Some((key, id))), done),
        };
        let missing: Vec<u16> = (1..=pieces).filter(|number| done.binary_search(number).is_err()).collect();
        let large = Self {
            piece,
            source: Mutex::default(),
            upload,
            must_send: if must_send { SetOnce::new_with(Some(true)) } else { SetOnce::new() },
            compared: Mutex::new(Compared { digest: TreeDigest::new(file.size), left: missing.len() }),
            missing,
            wanted,
            file,
        };
        to.work().progress.done(done.iter().map(|&number| large.range(number).1).sum());
        Ok(large)
    }

    /// Numbers of the pieces that are to be read.
    pub(super) fn missing(&self) -> Vec<u16> {
        self.missing.clone()
    }

    /// Offset and length of a piece.
    pub(super) fn range(&self, number: u16) -> (u64, u64) {
        let size = self.file.size;
        let offset = (u64::from(number).saturating_sub(1) * self.piece).min(size);
        (offset, self.piece.min(size - offset))
    }

    fn source(&self, held: &dyn HeldCheckpoint) -> Result<Arc<Source>, Problem> {
        let mut open = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = &*open {
            return Ok(Arc::clone(source));
        }
        let source = Arc::new(Source::open(held, &self.file)?);
        source.announce();
        *open = Some(Arc::clone(&source));
        Ok(source)
    }

    fn read(&self, to: &Sending, number: u16, room: Room) -> Result<Read, Problem> {
        let (offset, length) = self.range(number);
        let source = self.source(to.held.as_ref())?;
        let mut body = Body::new(room);
        let mut hasher = PieceHasher::new(self.file.size, offset);
        body.read(&source, (offset, length), &to.work().stop, |slice| hasher.update(slice))?;
        source.check()?;
        Ok(Read { payload: body.into_payload(), piece: hasher.finish() })
    }

    /// Reads and sends one piece; with the last one the file stands.
    pub(super) async fn piece(self: Arc<Self>, to: &Sending, number: u16, room: Room) -> Result<Outcome, Problem> {
        let (this, reading) = (Arc::clone(&self), to.clone());
        let Read { payload, piece } = to.work().disk(move |_| this.read(&reading, number, room)).await?;
        if number == 1 && !self.must_send.initialized() {
            // Nobody else sets it.
            let _ = self.must_send.set(!to.base.may_hold(self.file.size, piece.head()));
        }
        if !*self.must_send.wait().await {
            drop(payload);
            return Ok(self.compare(to, piece));
        }
        let file = &self.file;
        let (key, id) = self.upload.get_or_try_init(|| self.start(to)).await?;
        let length = payload.length();
        let tag = to.remote.upload_part(key, id, number, payload).await.map_err(|problem| self.lost(to, problem))?;
        reached(Point::PushPieceSent);
        to.work().progress.done(length);
        let all = to.ledger.upload(file, |upload| {
            upload.head = upload.head.or(piece.head());
            upload.tags.insert(number, tag);
            upload.digest.add(piece);
            upload.tags.len() as u64 == file.size.div_ceil(self.piece)
        });
        if all == Some(true) { self.complete(to).await } else { Ok(Outcome::default()) }
    }

    /// Begins the upload. Once asked for it is seen to its end, whatever becomes of the push: an upload that nobody knows of could not be aborted.
    async fn start(&self, to: &Sending) -> Result<(String, UploadId), Problem> {
        let key = to.next_key();
        to.ledger.asks(&to.path);
        let starting = {
            let (remote, key, ledger, file) = (to.remote.clone(), key.clone(), to.ledger.clone(), self.file.clone());
            let piece = self.piece;
            to.starts.spawn(async move {
                let id = remote.start_upload(&key).await?;
                reached(Point::PushUploadBegun);
                let digest = TreeDigest::new(file.size);
                let (tags, head, inherited) = (BTreeMap::new(), None, false);
                let upload = Upload { key: key.clone(), id: id.0.clone(), piece, tags, digest, head, inherited };
                if !ledger.opened(&file, upload) {
                    remote.abort_upload(&key, &id.0).await?;
                }
                Ok::<_, Problem>(id)
            })
        };
        let id = starting.await.map_err(|_| Problem::new(Reason::Cancelled, "the agent is stopping"))??;
        Ok((key, id))
    }

    /// All pieces are in the store: makes the object of them.
    pub(super) async fn complete(&self, to: &Sending) -> Result<Outcome, Problem> {
        let file = &self.file;
        let (key, id) = self.upload.get().ok_or_else(|| unread(file))?;
        let (tags, digest, head) = to
            .ledger
            .upload(file, |upload| (upload.tags.values().cloned().collect(), upload.digest.clone(), upload.head))
            .ok_or_else(|| unread(file))?;
        let blake3 = digest.finish().ok_or_else(|| unread(file))?;
        // An earlier attempt may have completed it without hearing of it: that is found out there.
        reached(Point::PushBeforeComplete);
        let completed = to.remote.complete_upload(key, id, file.size, tags).await;
        completed.map_err(|problem| self.lost(to, problem))?;
        reached(Point::PushObjectSent);
        if let Some(look) = &file.look {
            to.digests.learn(look, blake3);
        }
        let object = Arc::new(ObjectEntry { key: key.clone(), size: file.size });
        to.ledger.sent([(self.wanted.index, Entry { blake3, head, content: Some(Content { object, offset: 0 }) })]);
        to.work().progress.file_done();
        Ok(Outcome::default())
    }

    /// The store may have lost an upload of an earlier attempt meanwhile: then the next attempt begins it anew.
    fn lost(&self, to: &Sending, problem: Problem) -> Problem {
        let inherited = to.ledger.upload(&self.file, |upload| upload.inherited) == Some(true);
        if !inherited || problem.retryable() == Retryable::Yes || problem.reason == Reason::StoreDenied {
            return problem;
        }
        to.ledger.forget_upload(&self.file);
        problem.retry(Retryable::Yes)
    }

    /// It begins like a file of the base: all of it is hashed before anything is sent.
    fn compare(&self, to: &Sending, piece: Piece) -> Outcome {
        let digest = {
            let mut compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner);
            compared.digest.add(piece);
            compared.left = compared.left.saturating_sub(1);
            if compared.left > 0 {
                return Outcome::default();
            }
            compared.digest.clone().finish()
        };
        let (Wanted { index, .. }, file) = (self.wanted, &self.file);
        let Some(entry) = digest.and_then(|digest| to.base.find(file.size, digest)) else {
            return Outcome { known: Vec::new(), again: Some(Wanted { is_new: true, ..self.wanted }) };
        };
        if let Some(look) = &file.look {
            to.digests.learn(look, entry.blake3);
        }
        Outcome { known: vec![(index, entry)], again: None }
    }
}
