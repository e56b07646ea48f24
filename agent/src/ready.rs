//! What the engine was told it may do, in memory and on disk: the word of the newest pull that every host has ended (protocol.md, "Pull" step 5).
//!
//! An install takes the word back before it touches the disk; the next word comes when all hosts have installed. A restarted agent says the same again, but only
//! while the disk is as it was told: once the engine has gone on from there, its newest checkpoint need not be the other hosts' (S9), and the next pull says.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::PipelineId,
    order::{OrderHeader, OrderMark},
    problem::{Problem, Reason},
    ready::Word,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{durable, marks::place, store::CheckpointStore};

pub(crate) mod hook;

const FILE: &str = "ready.json";

/// The format this version writes and the only one it reads.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    /// Of the newest install or word that was ordered; none: nobody coordinates this host.
    order: Option<Ordered>,
    word: Option<Word>,
    /// Whether the hook has run for this word.
    hooked: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ordered {
    pipeline: PipelineId,
    /// As in the file of marks.
    location: String,
    mark: OrderMark,
}

impl Ordered {
    fn of(header: &OrderHeader) -> Self {
        Self { pipeline: header.pipeline, location: place(&header.own_location), mark: header.mark() }
    }
}

/// The last word, in memory and on disk.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    path: PathBuf,
    /// For whoever waits beside the agent: there exactly while the word holds.
    told_in: Option<PathBuf>,
    document: Document,
    said: watch::Sender<Option<Word>>,
}

impl Words {
    /// Loads what an earlier process was told. `again`: it is said once more if the disk is as it was told.
    pub(crate) fn load(
        state_dir: &Path,
        told_in: Option<PathBuf>,
        store: &dyn CheckpointStore,
        again: bool,
    ) -> Result<Self, Problem> {
        let path = state_dir.join(FILE);
        if let Some(told_in) = &told_in {
            remove(told_in)?;
        }
        let document = match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Document { format: FORMAT, order: None, word: None, hooked: false }
            }
            Err(error) => return Err(durable::io_problem("read", &path, &error)),
        };
        let words = Self { path, told_in, document, said: watch::Sender::new(None) };
        match words.document.word {
            Some(word) if again && is_as_told(store, &word) => words.tell(&word)?,
            Some(word) => {
                tracing::info!(round = ?word.round, "what the engine was told is not said again: the next pull says when it may start");
            }
            None => {}
        }
        Ok(words)
    }

    /// Each word from now on, and the present one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Word>> {
        self.said.subscribe()
    }

    /// The present word.
    pub(crate) fn word(&self) -> Option<Word> {
        *self.said.borrow()
    }

    /// Whether this word is on the disk already, said or not.
    pub(crate) fn keeps(&self, word: Word) -> bool {
        self.document.word == Some(word)
    }

    /// Of the newest install or word that was ordered for the header's pipeline and own location.
    pub(crate) fn mark(&self, header: &OrderHeader) -> Option<OrderMark> {
        let asked = Ordered::of(header);
        let known = self.document.order.as_ref()?;
        (known.pipeline == asked.pipeline && known.location == asked.location).then_some(known.mark)
    }

    /// Says a word, on disk first. Blocks. None as header: nobody ordered it. One that a start did not say again is not said now either.
    pub(crate) fn say(&mut self, header: Option<&OrderHeader>, word: Word) -> Result<(), Problem> {
        let kept = self.keeps(word);
        let hooked = self.document.hooked && kept;
        let order = header.map(Ordered::of).or_else(|| self.document.order.clone());
        reached(Point::WordBeforeStored);
        self.store(Document { format: FORMAT, order, word: Some(word), hooked })?;
        reached(Point::WordStored);
        if kept && self.word().is_none() { Ok(()) } else { self.tell(&word) }
    }

    /// Takes the word back, before the disk is changed. Blocks. A word older than the order is refused from now on.
    pub(crate) fn take_back(&mut self, header: Option<&OrderHeader>) -> Result<(), Problem> {
        if let Some(told_in) = &self.told_in {
            remove(told_in)?;
        }
        self.said.send_if_modified(|said| said.take().is_some());
        let order = header.map(Ordered::of).or_else(|| self.document.order.clone());
        self.store(Document { format: FORMAT, order, word: None, hooked: false })
    }

    fn is_new_to_the_hook(&self, word: Word) -> bool {
        self.keeps(word) && !self.document.hooked
    }

    /// The hook need not run again for this word. Blocks.
    pub(crate) fn hooked(&mut self, word: Word) -> Result<(), Problem> {
        if !self.keeps(word) {
            return Ok(());
        }
        self.store(Document { hooked: true, ..self.document.clone() })
    }

    fn tell(&self, word: &Word) -> Result<(), Problem> {
        if let Some(told_in) = &self.told_in {
            let mut text = shown(word).to_string();
            text.push('\n');
            durable::replace(told_in, text.as_bytes())
                .map_err(|error| durable::io_problem("write", told_in, &error))?;
        }
        self.said.send_if_modified(|said| said.replace(*word) != Some(*word));
        Ok(())
    }

    fn store(&mut self, document: Document) -> Result<(), Problem> {
        let bytes = serde_json::to_vec_pretty(&document).map_err(|error| {
            Problem::new(Reason::LocalIo, format!("cannot write {}: {error}", self.path.display()))
                .with("path", self.path.display())
        })?;
        // The disk may have been emptied under a running agent.
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|error| durable::io_problem("create", folder, &error))?;
        durable::replace(&self.path, &bytes).map_err(|error| durable::io_problem("write", &self.path, &error))?;
        self.document = document;
        Ok(())
    }
}

/// As the ready file and `wait-ready` show it.
pub(crate) fn shown(word: &Word) -> serde_json::Value {
    serde_json::json!({
        "checkpoint": word.checkpoint.map(|(id, _)| id),
        "step": word.checkpoint.map(|(_, step)| step),
        "fresh": word.checkpoint.is_none(),
        "role": word.role,
        "round": word.round,
    })
}

/// Whether this host has what the word speaks of. `CHECKPOINT_NOT_FOUND`. Blocks.
pub(crate) fn check_disk(store: &dyn CheckpointStore, word: &Word) -> Result<(), Problem> {
    let Some((id, step)) = word.checkpoint else { return Ok(()) };
    if store.list()?.iter().any(|local| local.id == id && local.step == step) {
        return Ok(());
    }
    Err(Problem::new(
        Reason::CheckpointNotFound,
        format!("local checkpoint {id} of step {step} is not on this host's disk any more: pull again"),
    )
    .with("local_checkpoint", id)
    .with("step", step))
}

fn is_as_told(store: &dyn CheckpointStore, word: &Word) -> bool {
    match store.list() {
        Ok(list) => list.iter().map(|local| (local.id, local.step)).eq(word.checkpoint),
        Err(problem) => {
            tracing::warn!(reason = %problem.reason, "the disk can't be compared with what was told: {}", problem.message);
            false
        }
    }
}

fn remove(path: &Path) -> Result<(), Problem> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(durable::io_problem("remove", path, &error)),
        _ => Ok(()),
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Document, Problem> {
    let broken = |why: String| {
        Problem::new(
            Reason::LocalIo,
            format!(
                "{} {why}: it holds what the engine was told and can't be guessed; remove it and pull again",
                path.display()
            ),
        )
        .with("path", path.display())
    };
    let document: Document = serde_json::from_slice(bytes).map_err(|error| broken(format!("is not valid: {error}")))?;
    if document.format == FORMAT {
        Ok(document)
    } else {
        Err(broken(format!("has format {}, this version knows {FORMAT}", document.format)))
    }
}
