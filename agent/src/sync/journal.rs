//! What a direct sync must remember from before a PUT until its outcome is known: the fence it claims with, and one commit.

use std::path::{Path, PathBuf};

use lockstep_protocol::{
    digest::Digest,
    fence::Fence,
    id::{Generation, RoundId, Seq},
    key::Key,
    location::Location,
    problem::{Problem, Reason},
};
use serde::{Deserialize, Serialize};

use crate::{durable, work::Work};

/// A commit whose outcome is not known, or not acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pending {
    pub(super) generation: Generation,
    pub(super) seq: Seq,
    pub(super) round: RoundId,
    /// The exact bytes.
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone, Default, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Document {
    /// The exact bytes of the fence; documents are JSON, so they are text.
    fence: Option<String>,
    pending: Option<PendingDocument>,
}

#[derive(Clone, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct PendingDocument {
    generation: Generation,
    seq: Seq,
    round: RoundId,
    document: String,
}

/// One location's journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    document: Document,
}

impl Journal {
    /// Loads it; a new one if there is none. One that can't be read is an error: its commit may stand.
    pub(super) async fn load(state_dir: &Path, location: &Location, work: &Work) -> Result<Self, Problem> {
        let place = format!("{:?} {} {}", location.endpoint(), location.bucket(), location.prefix());
        let digest = Digest::of(place.as_bytes()).to_string();
        let path = state_dir.join(format!("sync-{}.json", digest.get(..16).unwrap_or(&digest)));
        work.disk(move |_| match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(document) => Ok(Self { path, document }),
                Err(error) => Err(Problem::new(
                    Reason::LocalIo,
                    format!("{} is not valid: {error}; it may hold a commit of unknown outcome", path.display()),
                )
                .with("path", path.display())),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { path, document: Document::default() })
            }
            Err(error) => Err(durable::io_problem("read", &path, &error)),
        })
        .await
    }

    /// The fence that was claimed with before.
    pub(super) fn fence(&self) -> Result<Option<Fence>, Problem> {
        let key = Key::Fence(Generation::FIRST).to_string();
        self.document.fence.as_ref().map(|text| Fence::parse(&key, text.as_bytes())).transpose()
    }

    /// The commit whose end the last sync did not see.
    pub(super) fn pending(&self) -> Option<Pending> {
        self.document.pending.clone().map(|pending| Pending {
            generation: pending.generation,
            seq: pending.seq,
            round: pending.round,
            bytes: pending.document.into_bytes(),
        })
    }

    pub(super) async fn remember_fence(&mut self, fence: &Fence, work: &Work) -> Result<(), Problem> {
        let text = self.text(fence.encode())?;
        self.write(|document| document.fence = Some(text), work).await
    }

    pub(super) async fn remember(&mut self, pending: Pending, work: &Work) -> Result<(), Problem> {
        let document = PendingDocument {
            generation: pending.generation,
            seq: pending.seq,
            round: pending.round,
            document: self.text(pending.bytes)?,
        };
        self.write(|journal| journal.pending = Some(document), work).await
    }

    pub(super) async fn forget(&mut self, work: &Work) -> Result<(), Problem> {
        self.write(|journal| journal.pending = None, work).await
    }

    fn text(&self, bytes: Vec<u8>) -> Result<String, Problem> {
        String::from_utf8(bytes).map_err(|error| {
            Problem::new(Reason::LocalIo, format!("{} can't hold a document: {error}", self.path.display()))
                .with("path", self.path.display())
        })
    }

    /// Durable before it is believed.
    async fn write(&mut self, change: impl FnOnce(&mut Document), work: &Work) -> Result<(), Problem> {
        let mut next = self.document.clone();
        change(&mut next);
        let (path, written) = (self.path.clone(), next.clone());
        work.disk(move |_| {
            let failed = |error: &std::io::Error| durable::io_problem("write", &path, error);
            let bytes = serde_json::to_vec(&written).map_err(|error| failed(&error.into()))?;
            durable::replace(&path, &bytes).map_err(|error| failed(&error))
        })
        .await?;
        self.document = next;
        Ok(())
    }
}
