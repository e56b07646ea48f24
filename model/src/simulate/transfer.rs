//! What an agent does for an order: upload a part, manifest last; download one and verify every byte.

use std::{collections::BTreeMap, rc::Rc};

use lockstep_protocol::{
    commit::CommitPart,
    digest::Digest,
    key::Key,
    manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath},
    problem::{Problem, Reason},
};

use super::{
    agent::{At, PullOrder, PushOrder, Pushed, State},
    bucket::{self, Bytes, Read},
    timeline::MILLISECOND,
    world::{LocalContent, Sim},
};

/// Bytes of one file.
const FILE: u64 = 8;

/// Tries of one PUT in one attempt.
const PUTS: u32 = 3;

pub(super) fn push(sim: &Sim, at: At, order: PushOrder) -> impl Future<Output = ()> + 'static {
    let sim = Rc::clone(sim);
    async move {
        let state = match upload(&sim, at, &order).await {
            Ok(pushed) => State::Pushed(Box::new(pushed)),
            Err(problem) => State::Failed(problem),
        };
        at.with(&sim, |agent| agent.finish(order.header.round, state));
    }
}

pub(super) fn pull(sim: &Sim, at: At, order: PullOrder) -> impl Future<Output = ()> + 'static {
    let sim = Rc::clone(sim);
    async move {
        let state = match download(&sim, at, &order).await {
            Ok(()) => State::Staged(order.part.local_checkpoint),
            Err(problem) => State::Failed(problem),
        };
        at.with(&sim, |agent| agent.finish(order.header.round, state));
    }
}

fn unavailable(what: &str) -> Problem {
    Problem::new(Reason::StoreUnavailable, format!("no answer: {what}"))
}

fn damaged(what: &str) -> Problem {
    Problem::new(Reason::CheckpointDamaged, format!("not there, or not as it was: {what}"))
}

async fn put(sim: &Sim, key: &Key, bytes: &Bytes) -> Result<(), Problem> {
    for again in 0..PUTS {
        if bucket::put(sim, key, bytes).await.is_ok() {
            return Ok(());
        }
        sim.sleep((200 * MILLISECOND) << again).await;
    }
    Err(unavailable(&key.to_string()))
}

async fn read(sim: &Sim, key: &str) -> Result<Bytes, Problem> {
    match bucket::get(sim, key).await {
        Read::Found(bytes) => Ok(bytes),
        Read::Absent => Err(damaged(key)),
        Read::Unknown => Err(unavailable(key)),
    }
}

/// The part that a commit names.
pub(super) async fn manifest(sim: &Sim, part: &CommitPart) -> Result<PartManifest, Problem> {
    let bytes = read(sim, &part.manifest).await?;
    if Digest::of(&bytes) != part.manifest_blake3 || bytes.len() as u64 != part.manifest_length {
        return Err(damaged(&part.manifest));
    }
    PartManifest::parse(&part.manifest, &bytes)
}

/// Where contents of the base lie, by their digests.
type Reusable = BTreeMap<Digest, (ObjectEntry, u64)>;

async fn reusable(sim: &Sim, order: &PushOrder) -> Result<Reusable, Problem> {
    let mut found = Reusable::new();
    let Some((_, parts)) = &order.base else { return Ok(found) };
    let Some(part) = parts.iter().find(|part| part.host_idx == order.header.slot.idx()) else { return Ok(found) };
    let base = manifest(sim, part).await?;
    for file in &base.files {
        if let Some(object) = base.object_of(file) {
            found.insert(file.blake3, (object.clone(), file.offset));
        }
    }
    Ok(found)
}

/// Objects of a part, each once.
#[derive(Default)]
struct Objects(Vec<ObjectEntry>);

impl Objects {
    fn index(&mut self, object: &ObjectEntry) -> u32 {
        let index = self.0.iter().position(|known| known.key == object.key).unwrap_or_else(|| {
            self.0.push(object.clone());
            self.0.len() - 1
        });
        index as u32
    }
}

async fn upload(sim: &Sim, at: At, order: &PushOrder) -> Result<Pushed, Problem> {
    let id = order.local_checkpoint;
    let holds = at.with(sim, |agent| agent.holds(id)).unwrap_or(false);
    let content = sim.contents.borrow().get(&id).cloned().filter(|_| holds);
    let content =
        content.ok_or_else(|| Problem::new(Reason::CheckpointNotFound, format!("no local checkpoint {id}")))?;
    let reusable = reusable(sim, order).await?;
    sim.sleep(sim.random(MILLISECOND, 500 * MILLISECOND)).await;

    let header = &order.header;
    let own = lockstep_protocol::key::AttemptPath::new(
        header.slot,
        header.generation,
        header.round,
        header.incarnation,
        header.attempt,
    );
    let (mut objects, mut files, mut packed) = (Objects::default(), Vec::new(), Vec::new());
    let fresh = content.files.values().filter(|value| !reusable.contains_key(&digest(**value))).count();
    let pack = ObjectEntry { key: own.data(0).to_string(), size: FILE * fresh as u64 };
    // Files are packed in the order in which they were read.
    let mut read: Vec<(&String, &u64)> = content.files.iter().collect();
    let first = sim.random(0, 2) as usize % read.len().max(1);
    read.rotate_left(first);
    for (path, value) in read {
        let blake3 = digest(*value);
        let (object, offset) = match reusable.get(&blake3) {
            Some((object, offset)) => (objects.index(object), *offset),
            None => {
                packed.extend_from_slice(&value.to_le_bytes());
                (objects.index(&pack), packed.len() as u64 - FILE)
            }
        };
        let path = RelativePath::new(path.clone())?;
        files.push(FileEntry { path, size: FILE, blake3, head: None, object: Some(object), offset, length: FILE });
    }
    let uploaded = packed.len() as u64;
    if !packed.is_empty() {
        put(sim, &own.data(0), &packed.into()).await?;
    }
    let part = PartManifest {
        pipeline: header.pipeline,
        slot: header.slot,
        generation: header.generation,
        round: header.round,
        incarnation: header.incarnation,
        attempt: header.attempt,
        local_checkpoint: id,
        step: content.step,
        fingerprint: content.fingerprint,
        processed_records: None,
        store_meta: String::new(),
        objects: objects.0,
        files,
        delta: None,
    };
    let bytes: Bytes = part.encode().into();
    put(sim, &own.manifest(), &bytes).await?;
    let part = CommitPart {
        host_idx: header.slot.idx(),
        local_checkpoint: id,
        manifest: own.manifest().to_string(),
        manifest_length: bytes.len() as u64,
        manifest_blake3: Digest::of(&bytes),
        files: content.files.len() as u64,
        bytes: FILE * content.files.len() as u64,
        bytes_uploaded: uploaded,
        processed_records: None,
    };
    Ok(Pushed { part, step: content.step, fingerprint: content.fingerprint })
}

pub(super) fn digest(value: u64) -> Digest {
    Digest::of(&value.to_le_bytes())
}

async fn download(sim: &Sim, _at: At, order: &PullOrder) -> Result<(), Problem> {
    let part = manifest(sim, &order.part).await?;
    let mut objects = Vec::new();
    for object in &part.objects {
        objects.push(read(sim, &object.key).await?);
    }
    let mut files = BTreeMap::new();
    for file in &part.files {
        let bytes = file.object.and_then(|index| objects.get(index as usize)).and_then(|object| {
            let start = usize::try_from(file.offset).ok()?;
            object.get(start..start.checked_add(usize::try_from(file.length).ok()?)?)
        });
        let value = bytes.filter(|bytes| Digest::of(bytes) == file.blake3).and_then(|bytes| bytes.try_into().ok());
        let value = value.ok_or_else(|| damaged(&file.path.to_string()))?;
        files.insert(file.path.to_string(), u64::from_le_bytes(value));
    }
    let staged = LocalContent { step: part.step, fingerprint: part.fingerprint, files };
    let made = sim.contents.borrow().get(&part.local_checkpoint).cloned();
    if made.as_deref() != Some(&staged) {
        super::audit::broken(sim, "S9", || {
            format!("{} was restored as something that never was", part.local_checkpoint)
        });
    }
    sim.sleep(sim.random(MILLISECOND, 500 * MILLISECOND)).await;
    Ok(())
}
